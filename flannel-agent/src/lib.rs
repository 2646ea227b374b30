//! The agent of flannel-ebpf, as a library so that tests can use its parts.
#![deny(unsafe_code)]

pub mod backend;
pub mod backoff;
pub mod bpf;
pub mod cli;
pub mod commands;
pub mod control;
pub mod daemon;
pub mod datapath;
pub mod files;
pub mod firewall;
pub mod flag;
pub mod healthz;
pub mod kernel;
pub mod logging;
pub mod memory;
pub mod metrics;
pub mod notify;
pub mod probe;
pub mod reconcile;
pub mod record;
pub mod responder;
pub mod source;
pub mod status;
pub mod task;
pub mod timer;
pub mod watch;
