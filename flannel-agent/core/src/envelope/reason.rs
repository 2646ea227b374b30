//! Why packets are left to the kernel.

use crate::text::counted;
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What stands where.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct Reason {
    /// Name of the device; empty where it is none.
    pub device: String,
    /// What it is.
    #[serde(flatten)]
    pub what: Obstacle,
}

/// Something that acts on packets, or may.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "what", rename_all = "snake_case")]
pub enum Obstacle {
    /// A root qdisc that queues.
    RootQdisc {
        /// Its kind.
        qdisc: String,
    },
    /// Somebody else's TC filter.
    Filter {
        /// Where it hangs.
        side: Side,
        /// Its kind.
        filter: String,
        /// Its priority.
        priority: u16,
    },
    /// Somebody else's tcx program.
    Program {
        /// Where it hangs.
        side: Side,
        /// Its id, as `bpftool prog` shows it.
        id: u32,
        /// Another agent's, for another network of the node.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        another_agents: bool,
    },
    /// A chain of nftables' netdev family.
    Chain {
        /// Where it hangs.
        side: Side,
        /// Table and chain.
        chain: String,
    },
    /// An XDP program on the pod's side of the veth.
    XdpInPod,
    /// An XDP program on a pods' bridge.
    Xdp,
    /// What stands there cannot be read.
    Unreadable {
        /// Why not.
        error: String,
    },
    /// The programs' table of veths is full.
    TooManyVeths {
        /// Veths that it holds.
        limit: u32,
    },
    /// A rule that may drop or change the tunnel's packets that go out.
    OuterRule {
        /// Family, table and chain.
        chain: String,
        /// Its text.
        rule: String,
        /// What it does.
        does: String,
    },
    /// An IPsec policy for tunnel packets.
    Ipsec {
        /// Its selector.
        policy: String,
        /// What it does.
        does: String,
    },
    /// A routing rule that looks at firewall marks.
    MarkRule,
    /// `--tunnel-checksum=kernel`: no program can make a checksum.
    KernelChecksum,
    /// The programs' tables of peers are full.
    TooManyPeers {
        /// Peers that did not fit.
        left_out: usize,
    },
}

/// One side of a device.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// What comes in.
    Ingress,
    /// What goes out.
    Egress,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        })
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.device.is_empty() {
            write!(f, "{}: ", self.device)?;
        }
        self.what.fmt(f)
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RootQdisc { qdisc } => write!(f, "root qdisc {qdisc}"),
            Self::Filter { side, filter, priority } => {
                write!(f, "{filter} filter on {side}, priority {priority}")
            }
            Self::Program { side, id, another_agents } => {
                let whose = if *another_agents { " of another agent" } else { "" };
                write!(f, "tcx program {id}{whose} on {side}")
            }
            Self::Chain { side, chain } => write!(f, "nftables chain {chain} on {side}"),
            Self::Xdp => f.write_str("XDP program"),
            Self::XdpInPod => f.write_str("XDP program on the pod's side"),
            Self::Unreadable { error } => write!(f, "cannot be looked at: {error}"),
            Self::TooManyVeths { limit } => {
                write!(f, "the programs know {} at most", counted(*limit, "veth"))
            }
            Self::OuterRule { chain, rule, does } => {
                write!(f, "rule about tunnel packets ({does}) in {chain}: {rule}")
            }
            Self::Ipsec { policy, does } => {
                write!(f, "IPsec policy about tunnel packets ({does}): {policy}")
            }
            Self::MarkRule => f.write_str("an ip rule looks at firewall marks"),
            Self::KernelChecksum => {
                f.write_str("the kernel makes its checksums (--tunnel-checksum=kernel)")
            }
            Self::TooManyPeers { left_out } => {
                let verb = if *left_out == 1 { "does" } else { "do" };
                let peers = counted(*left_out, "peer");
                write!(f, "{peers} {verb} not fit into the programs' tables")
            }
        }
    }
}
