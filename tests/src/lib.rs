//! Harness of the end-to-end cases: nodes in network namespaces on one
//! underlay, a real etcd, the real agent, real packets.
//!
//! Everything here panics when the machine does not do what it has to: a case
//! that cannot be set up has failed. Whatever is made is removed by `Drop`, and
//! what a killed run left behind by the next one ([`netns::sweep`]).

mod addresses;
pub mod agent;
pub mod assembled;
pub mod beside;
mod booted;
pub mod cgroup;
pub mod complexity;
pub mod debian;
pub mod docker;
pub mod document;
pub mod endpoint;
pub mod etcd;
pub mod faulty_card;
pub mod first_edition;
pub mod forge;
pub mod forger;
pub mod ftp;
pub mod hooks;
mod http;
pub mod interrupt;
pub mod lab;
pub mod link;
pub mod load;
pub mod machine;
mod maps;
pub mod members;
pub mod netns;
pub mod node;
pub mod packet;
pub mod pair;
pub mod plain;
pub mod pod;
pub mod process;
mod program;
pub mod root;
pub mod rules;
pub mod service;
pub mod skip;
mod started;
pub mod streams;
pub mod tls;
pub mod told;
pub mod traffic;
pub mod udp;
pub mod unit;
pub mod wait;
