//! Differential test: what the eBPF path makes of a packet has to be what the
//! kernel path makes of it.
//!
//! A seed gives a sequence of packets ([`generate`]), half of them plain, so
//! that flows are confirmed, the others odd in up to three ways ([`oddity`]):
//! sent by pods, or as tunnel packets put on the underlay. The same frames go
//! over two nodes on the kernel path and two on the eBPF path ([`lane`]), and
//! what arrives in the pods and on the underlay is compared ([`compare`]). Where they
//! may differ is said in [`exceptions`].

pub mod compare;
pub mod connection;
pub mod demands;
pub mod draft;
pub mod exceptions;
pub mod generate;
pub mod kind;
pub mod lane;
pub mod mode;
pub mod oddity;
pub mod pool;
pub mod ports;
pub mod ruleset;
pub mod run;
pub mod signs;
pub mod world;

#[cfg(test)]
mod tests;
