//! The kernel's network state through rtnetlink and /proc/sys. Only this
//! module speaks netlink.

mod answer;
mod blackhole;
pub mod clsact;
mod device;
pub mod events;
pub mod fake;
mod inspect;
mod limits;
mod links;
mod local;
mod message;
mod neighbour;
mod netconf;
pub mod netlink;
pub mod nftables;
mod offload;
mod order;
mod outputs;
mod own;
mod raw;
mod socket;
pub mod sysctl;
mod underlay;
pub mod unix_sockets;
mod vxlan;

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::future::Future;
use std::net::Ipv4Addr;

use flannel_core::forwarding::SwitchedOff;
use flannel_core::link::{Link, RouteTo};
use flannel_core::observed::{DirectRoute, Observed, ObservedRoute};
use flannel_core::op::Op;
use ipnetwork::Ipv4Network;

pub use self::inspect::Inspect;
pub use self::own::Own;
pub use self::underlay::routes_for;
use flannel_core::blackhole::Blackhole;

/// Protocol number (rtm_protocol) of our direct routes: by it they are known
/// after a restart. Free in iproute2's `rt_protos`.
pub const PROTOCOL: u8 = 241;

/// Protocol number of routes that nobody marked (RTPROT_BOOT), flannel's too.
pub const UNMARKED: u8 = 3;

/// What changed in the kernel, as far as we care.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KernelEvent {
    /// A link came, went or changed.
    Link {
        /// Interface index.
        ifindex: u32,
    },
    /// An IPv4 address came or went.
    Address {
        /// Interface index.
        ifindex: u32,
    },
    /// An IPv4 route came or went; 0 if it has no single output interface, or has
    /// taken the place of another one within the overlay network.
    Route {
        /// Output interface index.
        ifindex: u32,
    },
    /// A route of the main table was put before others to the same destination, within the
    /// overlay network.
    RouteBefore,
    /// A route through a VXLAN device was taken away by somebody.
    RouteLost {
        /// Interface index of the device.
        ifindex: u32,
        /// As it was.
        route: ObservedRoute,
    },
    /// A permanent neighbour or FDB entry of a VXLAN device changed or went.
    Neighbour {
        /// Interface index.
        ifindex: u32,
    },
    /// A qdisc or a filter came or went.
    Tc {
        /// Interface index; 0 if it is a filter block that devices share.
        ifindex: u32,
    },
    /// An IPv4 routing rule came or went.
    Rule,
    /// An IPsec policy came or went.
    IpsecPolicy,
    /// A device forwards, or checks the way back, otherwise than before.
    Switch,
    /// Something changed by which the kernel may decide otherwise about packets
    /// than it did: a way, a MAC, a port, a switch.
    Decision,
    /// The same, by a route to some of the overlay network.
    OverlayRoute,
    /// The same, by a route with an MTU or a hop limit of its own.
    LimitedRoute,
    /// An nftables rule set changed (NFNLGRP_NFTABLES).
    Ruleset,
    /// Events were lost (ENOBUFS): look at everything again.
    Overrun,
    /// Nothing comes from this source at present.
    Deaf(EventSource),
    /// Events come again; what changed meanwhile nobody told.
    Hears(EventSource),
}

/// Where events come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum EventSource {
    /// rtnetlink.
    Routing,
    /// nfnetlink.
    Netfilter,
    /// NETLINK_XFRM.
    Ipsec,
}

/// The verbs that reconciling needs. `netlink::RealKernel` is the
/// real one, `fake::FakeKernel` keeps its state in memory.
pub trait Kernel: Send + Sync + 'static {
    /// Reads back the device of this name with all that hangs on it
    /// (without direct routes, `Observed::behind` and `Observed::maps`).
    fn observe(&self, device: &str) -> impl Future<Output = Result<Observed, KernelError>> + Send;

    /// Carries out `ops` on the device of this name, in order, in batches;
    /// one result each. A failure does not stop the others. Map operations
    /// are not for this trait and are errors.
    fn apply(
        &self,
        device: &str,
        ops: &[Op],
    ) -> impl Future<Output = Vec<Result<(), KernelError>>> + Send;

    /// Unicast routes of the main table with a gateway, metric 0 and this
    /// protocol number, through any interface.
    fn direct_routes(
        &self,
        protocol: u8,
    ) -> impl Future<Output = Result<BTreeSet<DirectRoute>, KernelError>> + Send;

    /// Destinations within `network` for which the first route of the main table with
    /// metric 0 and for all packets neither leads out of the device with index `overlay`
    /// nor has [`PROTOCOL`].
    fn behind(
        &self,
        network: Ipv4Network,
        overlay: Option<u32>,
    ) -> impl Future<Output = Result<BTreeSet<Ipv4Network>, KernelError>> + Send;

    /// What a look at the node's devices needs, on a connection of its own.
    fn inspector(&self) -> Box<dyn Inspect>;

    /// All links with their IPv4 addresses.
    fn links(&self) -> impl Future<Output = Result<Vec<Link>, KernelError>> + Send;

    /// The default routes of the main table, the best first.
    fn default_routes(&self) -> impl Future<Output = Result<Vec<RouteTo>, KernelError>> + Send;

    /// Output interface and source address for a destination, as the routing
    /// tables decide (`ip route get`).
    fn route_to(
        &self,
        destination: Ipv4Addr,
    ) -> impl Future<Output = Result<Option<RouteTo>, KernelError>> + Send;

    /// Which of these interfaces a route of the main table leads out of, to
    /// anywhere outside `network`.
    fn uplinks(
        &self,
        candidates: &BTreeSet<u32>,
        network: Ipv4Network,
    ) -> impl Future<Output = Result<BTreeSet<u32>, KernelError>> + Send;

    /// The switches of forwarding that are off.
    fn switched_off(&self) -> impl Future<Output = Result<SwitchedOff, KernelError>> + Send;

    /// All IPv4 blackhole routes of the main table.
    fn blackholes(&self) -> impl Future<Output = Result<Vec<Blackhole>, KernelError>> + Send;

    /// Adds a blackhole route; one that is there already is no error.
    fn add_blackhole(
        &self,
        route: Blackhole,
    ) -> impl Future<Output = Result<(), KernelError>> + Send;

    /// Removes a blackhole route; one that is gone is no error.
    fn remove_blackhole(
        &self,
        route: Blackhole,
    ) -> impl Future<Output = Result<(), KernelError>> + Send;
}

/// A netlink or sysctl call that failed.
#[derive(Debug, thiserror::Error)]
#[error("{call} {object}: {source}{}{}", with(": ", detail.as_deref(), ""), with(" (", hint.as_deref(), ")"))]
pub struct KernelError {
    /// Netlink message or file operation.
    pub call: &'static str,
    /// What it was about, as `ip` would print it.
    pub object: String,
    /// The kernel's answer.
    pub source: std::io::Error,
    /// The kernel's text beside it (extended acknowledgement), if any.
    pub detail: Option<String>,
    /// What usually causes it.
    pub hint: Option<Cow<'static, str>>,
}

impl KernelError {
    /// An error without the kernel's text and without a hint.
    pub fn new(call: &'static str, object: impl Into<String>, source: std::io::Error) -> Self {
        Self { call, object: object.into(), source, detail: None, hint: None }
    }

    /// The same, for the next operation that it keeps from being done.
    fn again(&self) -> Self {
        let source = match self.source.raw_os_error() {
            Some(errno) => std::io::Error::from_raw_os_error(errno),
            None => std::io::Error::new(self.source.kind(), self.source.to_string()),
        };
        let (detail, hint) = (self.detail.clone(), self.hint.clone());
        Self { call: self.call, object: self.object.clone(), source, detail, hint }
    }
}

fn with(before: &str, text: Option<&str>, after: &str) -> String {
    text.map(|text| format!("{before}{text}{after}")).unwrap_or_default()
}
