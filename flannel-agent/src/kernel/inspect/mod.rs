//! What stands on devices and would act on packets: traffic control, programs
//! in pods, routing rules, IPsec policies. Read, never changed.

mod detours;
mod ipsec;
mod pods;
mod tc;

use std::collections::{BTreeMap, BTreeSet};

use flannel_core::detours::{Here, Tables};
use flannel_core::envelope::{IpsecPolicy, PodEnd, Stacked, TrafficControl};
use flannel_core::limits::{Asked, LimitedRoute, Limits};
use ipnetwork::Ipv4Network;
use rtnetlink::sys::protocols::NETLINK_XFRM;

use super::KernelError;
use super::limits;
use super::links::{IFINFO_LEN, RTM_GETLINK, ifinfo};
use super::raw::{self, Raw};
use super::socket::{Refused, RouteSocket, explain};

const RTM_GETRULE: u16 = 34;
/// Length of `struct fib_rule_hdr`.
const RULE_LEN: usize = 12;
const FRA_FWMARK: u16 = 10;
const FRA_FWMASK: u16 = 16;
const IFLA_STATS64: u16 = 23;

/// The questions that a look at the node's devices asks. Synchronous: the kernel
/// answers before a call returns.
pub trait Inspect: Send {
    /// Traffic control on these devices; those that have gone are left out.
    ///
    /// # Errors
    /// Netlink's.
    fn traffic_control(
        &mut self,
        devices: &BTreeSet<u32>,
    ) -> Result<BTreeMap<u32, TrafficControl>, KernelError>;

    /// Whether an XDP program runs on this end of a veth; `None` if it has gone.
    ///
    /// # Errors
    /// Netlink's.
    fn xdp_in_pod(&mut self, end: PodEnd) -> Result<Option<bool>, KernelError>;

    /// Whether an XDP program runs on a device; `None` if it has gone.
    ///
    /// # Errors
    /// Netlink's.
    fn xdp_on(&mut self, ifindex: u32) -> Result<Option<bool>, KernelError>;

    /// Whether an IPv4 routing rule looks at firewall marks.
    ///
    /// # Errors
    /// Netlink's.
    fn rules_look_at_marks(&mut self) -> Result<bool, KernelError>;

    /// IPsec policies on what the node sends.
    ///
    /// # Errors
    /// Netlink's.
    fn ipsec_policies(&mut self) -> Result<Vec<IpsecPolicy>, KernelError>;

    /// Routes with an MTU or a hop limit of their own, of all tables.
    ///
    /// # Errors
    /// Netlink's.
    fn limited_routes(&mut self) -> Result<Vec<LimitedRoute>, KernelError>;

    /// What the route of a packet says.
    ///
    /// # Errors
    /// Netlink's; or there is none.
    fn limits_of(&mut self, asked: &Asked) -> Result<Limits, KernelError>;

    /// Routing rules, and routes that may lead elsewhere what pods send to peers.
    ///
    /// # Errors
    /// Netlink's.
    fn detours(&mut self, here: &Here) -> Result<Tables, KernelError>;

    /// Packets that a device has received; `None` if it has gone.
    ///
    /// # Errors
    /// Netlink's.
    fn received(&mut self, ifindex: u32) -> Result<Option<u64>, KernelError>;

    /// The other network namespaces that this one has an id for.
    ///
    /// # Errors
    /// Netlink's.
    fn namespaces(&mut self) -> Result<BTreeSet<i32>, KernelError>;

    /// Devices in that namespace that stand on one of ours without a veth, with
    /// an address of `network`.
    ///
    /// # Errors
    /// Netlink's.
    fn stacked(&mut self, netns: i32, network: Ipv4Network) -> Result<Vec<Stacked>, KernelError>;
}

/// [`Inspect`] through a socket of its own, so that nobody's dump is waited for.
pub(super) struct Inspector {
    /// `None` until it could be opened.
    socket: Option<RouteSocket>,
    /// The same for IPsec.
    ipsec: Option<RouteSocket>,
}

impl Inspector {
    /// Opens the socket in the calling thread's network namespace; tries again
    /// at the first question if that fails.
    pub(super) fn open() -> Self {
        let ipsec = RouteSocket::open_for(NETLINK_XFRM).ok();
        Self { socket: RouteSocket::open().ok(), ipsec }
    }

    fn socket(&mut self) -> Result<&mut RouteSocket, KernelError> {
        let socket = match self.socket.take() {
            Some(socket) => socket,
            None => RouteSocket::open()
                .map_err(|source| KernelError::new("socket", "NETLINK_ROUTE", source))?,
        };
        Ok(self.socket.insert(socket))
    }

    /// One question about an object; `None` if the object has gone.
    fn get(
        &mut self,
        kind: u16,
        call: &'static str,
        object: &str,
        body: &[u8],
    ) -> Result<Option<Raw>, KernelError> {
        match self.socket()?.get_raw(kind, body) {
            Ok(answers) => Ok(answers.into_iter().next()),
            Err(refused) if is_gone(&refused) => Ok(None),
            Err(refused) => Err(explain(call, object.to_owned(), refused)),
        }
    }

    /// A dump; empty if its object has gone.
    fn dump(
        &mut self,
        kind: u16,
        call: &'static str,
        object: &str,
        body: &[u8],
    ) -> Result<Vec<Raw>, KernelError> {
        match self.socket()?.dump_raw(kind, body) {
            Ok(answers) => Ok(answers),
            Err(refused) if is_gone(&refused) => Ok(Vec::new()),
            Err(refused) => Err(explain(call, object.to_owned(), refused)),
        }
    }

    fn link(&mut self, ifindex: u32) -> Result<Option<Raw>, KernelError> {
        let object = format!("interface {ifindex}");
        self.get(RTM_GETLINK, "RTM_GETLINK", &object, &ifinfo(ifindex))
    }
}

impl Inspect for Inspector {
    fn traffic_control(
        &mut self,
        devices: &BTreeSet<u32>,
    ) -> Result<BTreeMap<u32, TrafficControl>, KernelError> {
        self.read_traffic_control(devices)
    }

    fn xdp_in_pod(&mut self, end: PodEnd) -> Result<Option<bool>, KernelError> {
        self.read_xdp(end)
    }

    fn xdp_on(&mut self, ifindex: u32) -> Result<Option<bool>, KernelError> {
        Ok(self.link(ifindex)?.map(|link| pods::has_xdp(&link)))
    }

    fn rules_look_at_marks(&mut self) -> Result<bool, KernelError> {
        let mut ask = [0; RULE_LEN];
        ask[0] = libc::AF_INET as u8;
        let rules = self.dump(RTM_GETRULE, "RTM_GETRULE", "all", &ask)?;
        Ok(rules.iter().any(looks_at_marks))
    }

    fn ipsec_policies(&mut self) -> Result<Vec<IpsecPolicy>, KernelError> {
        self.read_ipsec_policies()
    }

    fn limited_routes(&mut self) -> Result<Vec<LimitedRoute>, KernelError> {
        let pick = |route: Raw| limits::limited(&route.body);
        let found = self.socket()?.pick_raw(limits::RTM_GETROUTE, &limits::all(), pick);
        found.map_err(|refused| explain("RTM_GETROUTE", "all".to_owned(), refused))
    }

    fn limits_of(&mut self, asked: &Asked) -> Result<Limits, KernelError> {
        let object = || asked.destination.to_string();
        let found = self.socket()?.get_raw(limits::RTM_GETROUTE, &limits::question(asked));
        let found = found.map_err(|refused| explain("RTM_GETROUTE", object(), refused))?;
        Ok(found.first().map(|route| limits::of(&route.body)).unwrap_or_default())
    }

    fn detours(&mut self, here: &Here) -> Result<Tables, KernelError> {
        self.read_detours(here)
    }

    fn received(&mut self, ifindex: u32) -> Result<Option<u64>, KernelError> {
        let Some(link) = self.link(ifindex)? else { return Ok(None) };
        let counters = behind(&link, IFINFO_LEN)
            .and_then(|attributes| raw::attribute(attributes, IFLA_STATS64));
        // `struct rtnl_link_stats64` begins with rx_packets.
        let packets = counters.and_then(|counters| counters.get(..8)?.try_into().ok());
        Ok(packets.map(u64::from_ne_bytes))
    }

    fn namespaces(&mut self) -> Result<BTreeSet<i32>, KernelError> {
        self.read_namespaces()
    }

    fn stacked(&mut self, netns: i32, network: Ipv4Network) -> Result<Vec<Stacked>, KernelError> {
        self.read_stacked(netns, network)
    }
}

/// The kernel leaves out both where a rule takes any mark.
fn looks_at_marks(rule: &Raw) -> bool {
    let attributes = rule.body.get(RULE_LEN..).unwrap_or_default();
    [FRA_FWMARK, FRA_FWMASK].iter().any(|kind| raw::attribute(attributes, *kind).is_some())
}

fn is_gone(refused: &Refused) -> bool {
    matches!(refused.errno(), libc::ENODEV | libc::ENOENT)
}

/// A message that is too short for its header says nothing.
fn behind(message: &Raw, header: usize) -> Option<&[u8]> {
    message.body.get(header..)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_by_mark_are_known_by_mark_or_mask() {
        let rule = |kinds: &[u16]| {
            let mut body = vec![0; RULE_LEN];
            kinds.iter().for_each(|kind| raw::put(&mut body, *kind, &[0; 4]));
            Raw { kind: 32, body }
        };
        assert!(!looks_at_marks(&rule(&[1, 15])));
        assert!(looks_at_marks(&rule(&[15, FRA_FWMARK])));
        assert!(looks_at_marks(&rule(&[FRA_FWMASK])), "a mark of 0 under a mask");
        assert!(!looks_at_marks(&Raw { kind: 32, body: vec![2] }));
    }
}
