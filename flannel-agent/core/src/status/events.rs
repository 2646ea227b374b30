//! What the agent did or noticed, as `events` shows it.

use std::fmt;
use std::net::Ipv4Addr;
use std::time::SystemTime;

use ipnetwork::Ipv4Network;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::DatapathKind;
use crate::envelope::KeptWay;
use crate::health::Subject;
use crate::repair::Repair;

/// One thing that the agent did or noticed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Event {
    /// Counted from 1 since the agent's start.
    pub number: u64,
    /// When, in UTC.
    #[serde(with = "super::time")]
    #[schemars(with = "String")]
    pub at: SystemTime,
    /// What, and why.
    #[serde(flatten)]
    pub what: What,
}

/// Events, and where to go on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Events {
    /// Number of the last event so far. One that is less than before is another run's.
    pub last: u64,
    /// Oldest first.
    pub events: Vec<Event>,
}

/// What was done or noticed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum What {
    /// The agent began.
    Started {
        /// Its version.
        version: String,
    },
    /// It has a lease.
    LeaseAcquired {
        /// Our subnet.
        #[schemars(with = "String")]
        subnet: Ipv4Network,
        /// What peers send to.
        public_ip: Ipv4Addr,
    },
    /// The lease was written again, before its end or for another address.
    LeaseRenewed {
        /// Our subnet.
        #[schemars(with = "String")]
        subnet: Ipv4Network,
        /// What peers send to.
        public_ip: Ipv4Addr,
    },
    /// The lease is another's, or has gone.
    LeaseLost {
        /// Our subnet.
        #[schemars(with = "String")]
        subnet: Ipv4Network,
        /// What became of it.
        why: String,
    },
    /// A lost lease is ours again.
    LeaseClaimed {
        /// Our subnet.
        #[schemars(with = "String")]
        subnet: Ipv4Network,
    },
    /// Pods have a network.
    Ready {
        /// Our subnet.
        #[schemars(with = "String")]
        subnet: Ipv4Network,
        /// Number of peers.
        peers: usize,
    },
    /// A peer's lease came.
    PeerAdded {
        /// Its subnet.
        #[schemars(with = "String")]
        subnet: Ipv4Network,
        /// Its underlay address.
        public_ip: Ipv4Addr,
    },
    /// A peer's lease names another address or MAC.
    PeerChanged {
        /// Its subnet.
        #[schemars(with = "String")]
        subnet: Ipv4Network,
        /// Its underlay address.
        public_ip: Ipv4Addr,
        /// The one before.
        former: Ipv4Addr,
    },
    /// A peer's lease went.
    PeerRemoved {
        /// Its subnet.
        #[schemars(with = "String")]
        subnet: Ipv4Network,
        /// The underlay address that it had.
        public_ip: Ipv4Addr,
    },
    /// Many leases at once, besides those that are told one by one.
    PeersChanged {
        /// Peers that are new.
        added: usize,
        /// Peers with another address or MAC.
        changed: usize,
        /// Peers that went.
        removed: usize,
    },
    /// Something that somebody else had changed or removed was put right.
    Repaired {
        /// What.
        what: Repair,
        /// How many of them.
        times: u64,
    },
    /// Programs were attached.
    HooksAttached {
        /// `<interface>/<program>`; the first few.
        hooks: Vec<String>,
        /// How many more.
        more: usize,
        /// How many of all were there before, and had been removed by somebody else.
        restored: u64,
    },
    /// Programs were detached: their devices went, or are not served any more.
    HooksDetached {
        /// `<interface>/<program>`; the first few.
        hooks: Vec<String>,
        /// How many more.
        more: usize,
    },
    /// Another data path carries the packets.
    Datapath {
        /// Which.
        mode: DatapathKind,
        /// Why, if it was not asked for.
        reason: Option<String>,
    },
    /// The fast path leaves this to the kernel from now on.
    FastPathOff {
        /// What.
        way: KeptWay,
        /// Why.
        why: String,
    },
    /// Nothing keeps this off the fast path any more.
    FastPathOn {
        /// What.
        way: KeptWay,
    },
    /// Something is not well.
    ConditionBegan {
        /// What it is about.
        subject: Subject,
        /// The same in words, and which of them.
        what: String,
        /// Why.
        reason: String,
    },
    /// It is still not well, for another reason.
    ConditionDiffers {
        /// What it is about.
        subject: Subject,
        /// The same in words, and which of them.
        what: String,
        /// Why now.
        reason: String,
    },
    /// It is well again.
    ConditionEnded {
        /// What it was about.
        subject: Subject,
        /// The same in words, and which of them.
        what: String,
    },
    /// The agent was told to stop, and what it set up goes on.
    Stopping,
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Started { version } => write!(f, "agent {version} began"),
            Self::LeaseAcquired { subnet, public_ip } => {
                write!(f, "lease {subnet} at {public_ip} acquired")
            }
            Self::LeaseRenewed { subnet, public_ip } => {
                write!(f, "lease {subnet} at {public_ip} written again")
            }
            Self::LeaseLost { subnet, why } => write!(f, "lease {subnet} lost: {why}"),
            Self::LeaseClaimed { subnet } => write!(f, "lease {subnet} is ours again"),
            Self::Ready { subnet, peers } => write!(f, "ready with {subnet}, peers: {peers}"),
            Self::PeerAdded { subnet, public_ip } => {
                write!(f, "peer {subnet} at {public_ip}: its lease came")
            }
            Self::PeerChanged { subnet, public_ip, former } if public_ip == former => {
                write!(f, "peer {subnet} at {public_ip}: its lease names another MAC")
            }
            Self::PeerChanged { subnet, public_ip, former } => {
                write!(f, "peer {subnet} at {public_ip}: its lease named {former} before")
            }
            Self::PeerRemoved { subnet, public_ip } => {
                write!(f, "peer {subnet} at {public_ip}: its lease went")
            }
            Self::PeersChanged { added, changed, removed } => {
                write!(
                    f,
                    "more peers by their leases: {added} came, {changed} changed, {removed} went"
                )
            }
            Self::Repaired { what, times } => {
                let often = if *times == 1 { String::new() } else { format!(" {times} times") };
                write!(f, "{} put right{often}: somebody else changed it", what.text())
            }
            Self::HooksAttached { hooks, more, restored } => {
                write!(f, "attached {}", list(hooks, *more))?;
                match restored {
                    0 => Ok(()),
                    restored => write!(f, "; somebody else had removed {restored}"),
                }
            }
            Self::HooksDetached { hooks, more } => {
                write!(f, "detached {}: not there or not served any more", list(hooks, *more))
            }
            Self::Datapath { mode, reason } => {
                write!(f, "data path {}", mode.text())?;
                reason.as_ref().map_or(Ok(()), |reason| write!(f, ": {reason}"))
            }
            Self::FastPathOff { way, why } => write!(f, "the kernel carries {way}: {why}"),
            Self::FastPathOn { way } => write!(f, "nothing keeps {way} with the kernel any more"),
            Self::ConditionBegan { what, reason, .. } => write!(f, "not well: {what}: {reason}"),
            Self::ConditionDiffers { what, reason, .. } => {
                write!(f, "still not well: {what}: {reason}")
            }
            Self::ConditionEnded { what, .. } => write!(f, "well again: {what}"),
            Self::Stopping => f.write_str("the agent was told to stop"),
        }
    }
}

fn list(hooks: &[String], more: usize) -> String {
    match more {
        0 => hooks.join(", "),
        more => format!("{} and {more} more", hooks.join(", ")),
    }
}
