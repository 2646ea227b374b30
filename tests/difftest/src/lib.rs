//! Differential test: what the eBPF path makes of a packet has to be what the
//! kernel path makes of it.
//!
//! A seed gives a sequence of packets ([`generate`]): loose ones, plain so that flows
//! are confirmed, or odd in up to three ways ([`oddity`]), sent by pods or put on the
//! underlay; and those of connections ([`pool`]), which the nodes' rules treat by
//! kind ([`kind`], [`ruleset`]). A mode says what there is of each ([`mode`]). The
//! same frames go over two nodes on the kernel path and two on the eBPF path
//! ([`lane`]), and what arrives in the pods and on the underlay is compared
//! ([`compare`], [`report`]). Where they may differ is said in [`exceptions`], and what
//! a build has to do besides in [`demands`].

pub mod backend;
pub mod compare;
pub mod connection;
pub mod demands;
pub mod draft;
pub mod exceptions;
pub mod expected;
pub mod generate;
pub mod invalid;
pub mod kind;
pub mod lane;
pub mod mode;
pub mod oddity;
mod part;
pub mod place;
pub mod pool;
pub mod ports;
pub mod report;
pub mod ruleset;
pub mod run;
pub mod signs;
pub mod slots;
pub mod tally;
pub mod world;

#[cfg(test)]
mod tests;
