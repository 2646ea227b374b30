//! Rules that judge each packet and not the connection. No program can repeat
//! their decision for a flow, so the flows that they can match stay on the kernel
//! path.
//!
//! `nft` and `iptables` read listings into a [`ruleset::RuleSet`]; `walk` follows
//! packets through it; `exempt` turns what it finds into the programs'
//! [`Exemption`](flannel_ebpf::abi::Exemption)s. `outer` finds the rules about the
//! tunnel's own packets. `fate` tells what becomes of given packets, and by which rule.

pub mod devices;
mod draft;
pub mod exempt;
pub mod fate;
mod flags;
mod helpers;
pub mod iptables;
mod kinds;
pub mod matches;
pub mod nft;
pub mod outer;
pub mod ranges;
pub mod ruleset;
pub mod walk;
mod words;
