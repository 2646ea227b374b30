//! What stands around the programs, and what they may go around. Pure.
//!
//! A device is bypassed only if nothing on it would have acted on the packet:
//! [`Scene`] says which devices packets of pods and peers pass, [`Seen`] what
//! stands on them, [`judge`] what follows for each veth and for the node.

mod devices;
mod ipsec;
mod judge;
mod programs;
mod reason;
mod report;
mod scene;
#[cfg(test)]
mod tests;

pub use self::devices::{CLSACT_PRIORITY, Filter, PodEnd, Stacked, TrafficControl};
pub use self::ipsec::IpsecPolicy;
pub use self::judge::{DeviceFacts, Judgement, NetdevChain, Seen, judge};
pub use self::programs::{Inlet, Inward, Keep, PodVeth, Tcx, TcxProgram, VethEntry};
pub use self::reason::{Obstacle, Reason, Side};
pub use self::report::{EnvelopeReport, HookReport, Kept, KeptWay, NotServed, Outward, VethReport};
pub use self::scene::{Scene, Veth};
