//! What stands on devices and in pods, as read.

/// Priority of our clsact filters: the same for all, so that they are found
/// again, and not one that people choose.
pub const CLSACT_PRIORITY: u16 = 0xf1a0;

/// The end of a veth that is in a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PodEnd {
    /// Id of its network namespace in ours (IFLA_LINK_NETNSID).
    pub netns: i32,
    /// Its interface index there (IFLA_LINK).
    pub ifindex: u32,
}

/// A device in a pod that stands on one of ours.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stacked {
    /// `ipvlan`, `macvlan`...
    pub kind: String,
    /// Interface index of ours.
    pub lower: u32,
}

/// What traffic control does on a device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrafficControl {
    /// Kind of the root qdisc.
    pub root: String,
    /// Filters on what comes in, as they run.
    pub ingress: Vec<Filter>,
    /// Filters on what goes out, as they run.
    pub egress: Vec<Filter>,
}

/// A filter that IPv4 packets meet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Filter {
    /// Its chain; filters run those of chain 0, and others where one says so.
    pub chain: u32,
    /// Priority: a lower one runs earlier.
    pub priority: u16,
    /// Kind (`u32`, `bpf`, `flower`...).
    pub kind: String,
    /// One of this agent's programs.
    pub ours: bool,
}
