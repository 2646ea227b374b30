//! The agent of flannel-ebpf, as a library so that tests can use its parts.
#![deny(unsafe_code)]

pub mod bpf;
pub mod cli;
pub mod config;
pub mod desired;
pub mod files;
pub mod firewall;
pub mod kernel;
pub mod lease;
pub mod mac;
pub mod plan;
pub mod source;
pub mod underlay;
