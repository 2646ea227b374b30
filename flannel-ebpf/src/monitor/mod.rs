//! What the monitor's programs and its readers share: which packets are looked at, and
//! what is told of them.
//!
//! Its programs run before and behind each program of the packet path (`fentry` and
//! `fexit`), as long as somebody looks. They change nothing: the counters that a program
//! raised meanwhile on its CPU say what became of the packet.

mod filter;
mod packet;
mod rate;

pub use filter::{Filter, Net};
pub use packet::{Packet, describe};
pub use rate::Rate;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::abi::{OUTCOMES, program};

/// Map names. None of these maps is pinned.
pub mod map {
    /// One [`super::Settings`].
    pub const SETTINGS: &str = "mon_settings";
    /// Per-CPU array: one [`super::Desk`].
    pub const DESK: &str = "mon_desk";
    /// Ring buffer: [`super::Event`].
    pub const EVENTS: &str = "mon_events";
    /// Per-CPU array: packets by hook and outcome ([`super::count_index`]).
    pub const COUNTS: &str = "mon_counts";
    /// All that are the monitor's own.
    pub const OWN: [&str; 4] = [SETTINGS, DESK, EVENTS, COUNTS];
}

/// Program names: the functions of the object file.
pub mod watcher {
    /// `fentry` of each program of the packet path.
    pub const ENTERED: &str = "entered";
    /// `fexit` of each.
    pub const LEFT: &str = "left";
}

/// The hooks; a hook's index is the cookie of the links that watch its program.
pub const HOOKS: [&str; 7] = {
    let [a, b, c, d, e, f] = program::ALL;
    [a, b, c, d, e, f, program::FROM_WIRE]
};

/// Index of the one hook whose packets have no skb.
pub const WIRE_HOOK: u32 = HOOKS.len() as u32 - 1;

/// Size of the ring buffer in bytes.
pub const EVENTS_SIZE: usize = 1 << 20;

/// Entries of [`map::COUNTS`].
pub const COUNTERS: usize = HOOKS.len() * OUTCOMES as usize;

/// Where an outcome at a hook is counted.
#[inline(always)]
pub const fn count_index(hook: u32, outcome: u32) -> u32 {
    hook * OUTCOMES + outcome
}

/// Bits of [`Settings::flags`].
pub mod flag {
    /// Put events into the ring buffer.
    pub const TELL: u32 = 1;
    /// Count outcomes by hook.
    pub const COUNT: u32 = 2;
    /// Also packets that raised no counter.
    pub const ALL: u32 = 4;
}

/// What is looked at; written before the programs are attached.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Settings {
    /// Where the kernel's structures have their members.
    pub layout: Layout,
    /// Which packets.
    pub filter: Filter,
    /// How many.
    pub rate: Rate,
    /// Bits by [`crate::abi::Outcome`]: only packets that raised one of these counters.
    pub outcomes: u64,
    /// Bits of [`flag`].
    pub flags: u32,
    /// UDP port of the tunnel, network byte order; 0 where there is none.
    pub port: [u8; 2],
    /// Zero.
    pub reserved: [u8; 2],
}

/// Byte offsets of members in the running kernel's structures.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Layout {
    /// `sk_buff.data`.
    pub skb_data: u32,
    /// `sk_buff.len`.
    pub skb_len: u32,
    /// `sk_buff.data_len`.
    pub skb_data_len: u32,
    /// `sk_buff.dev`.
    pub skb_dev: u32,
    /// `net_device.ifindex`.
    pub dev_ifindex: u32,
    /// `xdp_buff.data`.
    pub xdp_data: u32,
    /// `xdp_buff.data_end`.
    pub xdp_data_end: u32,
    /// `xdp_buff.rxq`.
    pub xdp_rxq: u32,
    /// `xdp_rxq_info.dev`.
    pub rxq_dev: u32,
}

/// What a CPU notes between both ends of a program.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Desk {
    /// When the next packet may be told ([`Rate`]).
    pub due_ns: u64,
    /// Wanted packets that were not told, because there were too many.
    pub missed: u64,
    /// One more than the index of the hook whose program runs; 0: not looked at.
    pub watched: u32,
    /// The packet as it came.
    pub packet: Packet,
    /// Counters that were raised since: bits by [`crate::abi::Outcome`].
    pub raised: u64,
    /// The counters before.
    pub before: [u64; OUTCOMES as usize],
}

/// One packet at one hook.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Event {
    /// Monotonic time.
    pub time_ns: u64,
    /// Counters that it raised: bits by [`crate::abi::Outcome`].
    pub outcomes: u64,
    /// Index in [`HOOKS`].
    pub hook: u32,
    /// What the program returned.
    pub verdict: i32,
    /// The packet as it came to the hook.
    pub packet: Packet,
    /// Zero.
    pub reserved: u32,
}

const _: () = {
    assert!(OUTCOMES <= u64::BITS, "an outcome has no bit");
    assert!(size_of::<Packet>() == 36);
    assert!(size_of::<Event>() == 64);
    assert!(size_of::<Settings>() == 96);
};
