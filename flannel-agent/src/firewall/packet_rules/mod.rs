//! Rules that judge each packet and not the connection
//! ([`flannel_core::firewall::packet_rules`]): `read` runs the tools that list
//! them, and `follow` does that when the rules change.

pub mod follow;
pub mod read;
