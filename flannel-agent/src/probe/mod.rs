//! Packets that try the way to other nodes: ICMP echoes of any size, and the first
//! packet of TCP with and without the card's checksum.

mod echo;
mod handshake;
mod packet;
mod raw;

pub use self::echo::{Echo, echo};
pub use self::handshake::{offloaded, plain};
