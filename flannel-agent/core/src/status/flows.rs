//! Flows that the programs know, as `flows` shows them.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};

use ipnetwork::Ipv4Network;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One direction of a flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FlowStatus {
    /// Where it goes.
    pub direction: FlowDirection,
    /// Its protocol.
    pub proto: FlowProto,
    /// Address and port that its packets come with.
    #[schemars(with = "String")]
    pub source: SocketAddrV4,
    /// Address and port that they come for.
    #[schemars(with = "String")]
    pub destination: SocketAddrV4,
    /// What they leave with, where that is something else; `null` also where the kernel
    /// has not been seen to deliver one.
    pub translated: Option<Ends>,
    /// The peer's subnet; `null` where its lease has gone.
    #[schemars(with = "Option<String>")]
    pub peer: Option<Ipv4Network>,
    /// The peer's underlay address; `null` without a tunnel, inwards.
    pub peer_ip: Option<Ipv4Addr>,
    /// Interface index of the device that its packets come by; 0 if that is not known.
    pub device: u32,
    /// What carries its next packet.
    pub path: FlowPath,
    /// Why that is not the fast path.
    pub why: Option<NotFast>,
    /// Milliseconds since the kernel was seen to deliver a packet of it; `null` if that
    /// is not known.
    pub confirmed_ms_ago: Option<u64>,
}

/// Both ends of a packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Ends {
    /// Source.
    #[schemars(with = "String")]
    pub source: SocketAddrV4,
    /// Destination.
    #[schemars(with = "String")]
    pub destination: SocketAddrV4,
}

/// Where a flow goes.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum FlowDirection {
    /// From a pod to a peer.
    Out,
    /// From a peer to a pod.
    In,
}

impl fmt::Display for FlowDirection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Out => "out",
            Self::In => "in",
        })
    }
}

/// Protocols that the fast path carries.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
#[serde(rename_all = "snake_case")]
pub enum FlowProto {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl fmt::Display for FlowProto {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// What carries the next packet of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FlowPath {
    /// The programs.
    Fast,
    /// The kernel.
    Kernel,
}

impl fmt::Display for FlowPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fast => "fast",
            Self::Kernel => "kernel",
        })
    }
}

/// Declares [`NotFast`] with the text of each.
macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// Why the kernel carries the next packet of a flow.
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
        )]
        #[serde(rename_all = "snake_case")]
        pub enum NotFast {
            $($(#[$doc])* $name,)*
        }

        impl NotFast {
            /// Whether the next packets will not change it.
            pub fn lasts(self) -> bool {
                !matches!(
                    self,
                    Self::SeenOnce
                        | Self::Expired
                        | Self::Changed
                        | Self::Aggregates
                        | Self::Closing
                )
            }
        }

        impl fmt::Display for NotFast {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self {
                    $(Self::$name => $text,)*
                })
            }
        }
    };
}

reasons! {
    /// `--fast-path=off`, or the fast path cannot be had.
    FastPathOff = "the fast path is off",
    /// TCP is the kernel's on this node.
    TcpOff = "TCP is left to the kernel on this node",
    /// No agent has kept the tables true for a minute.
    AgentSilent = "no agent has kept the tables true for a minute",
    /// Something acts on all that leaves, or comes in.
    WayKept = "something on the way has to see all packets (status says what)",
    /// Something acts on the pod's veth or its bridge.
    VethKept = "something on the pod's veth or bridge has to see its packets",
    /// A rule judges its packets one by one.
    Exempt = "a rule of the node judges its packets one by one",
    /// A translated datagram has been seen once.
    SeenOnce = "translated, and seen once only: little tells datagrams apart",
    /// The confirmation is over.
    Expired = "its confirmation is over: the next packet proves it anew",
    /// Something changed since the confirmation.
    Changed = "routes, rules or devices changed since: the next packet proves it anew",
    /// It carries GSO aggregates.
    Aggregates = "it carries aggregates, which the kernel's device takes apart",
    /// The connection ends.
    Closing = "the connection ends, and the kernel sees that",
    /// The programs found no way of their own.
    NoWay = "the kernel's way cannot be repeated",
}
