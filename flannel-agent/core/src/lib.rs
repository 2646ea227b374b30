//! What the agent decides, without doing it: leases, peers, the desired state
//! and the plan that leads there. Nothing in here does I/O.
#![forbid(unsafe_code)]

pub mod backend;
pub mod blackhole;
pub mod check;
pub mod checksum;
pub mod config;
pub mod connectivity;
pub mod desired;
pub mod detours;
pub mod envelope;
pub mod events;
pub mod firewall;
pub mod flows;
pub mod forwarding;
mod go_json;
pub mod health;
pub mod lease;
pub mod limits;
pub mod link;
pub mod mac;
pub mod model;
pub mod monitor;
pub mod observed;
pub mod op;
pub mod peer;
pub mod plan;
pub mod pods;
pub mod probe;
pub mod reach;
pub mod redact;
pub mod repair;
pub mod schedule;
pub mod state;
pub mod status;
pub mod subnet;
pub mod subnet_env;
pub mod text;
pub mod trace;
pub mod underlay;
pub mod unit;
