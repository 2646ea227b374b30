//! The agent's parts against the real kernel and a real etcd; one program, because
//! each program links the whole agent.

mod bounds;
mod datapath;
mod decisions;
mod etcd;
mod events;
mod firewall;
mod flow_table;
mod grace;
mod inspect;
mod kernel;
mod loader;
mod mend;
mod netns;
mod nftables;
mod packet_rules;
mod peer_stats;
mod pins;
mod place;
mod process;
mod programs;
mod routes;
mod sysctl;
mod udp;
mod watch;
