//! [`FakeKernel`]: a kernel in memory, for tests of what drives one.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use flannel_core::detours::{Here, LOCAL, MAIN, RoutingRule, Tables};
use flannel_core::envelope::{IpsecPolicy, PodEnd, Stacked, TrafficControl};
use flannel_core::forwarding::SwitchedOff;
use flannel_core::limits::{Asked, LimitedRoute, Limits};
use flannel_core::link::{Link, LinkAddress, RouteTo};
use flannel_core::model;
use flannel_core::observed::{DirectRoute, Observed};
use flannel_core::op::Op;
use ipnetwork::Ipv4Network;

use super::{Inspect, Kernel, KernelError, PROTOCOL};
use flannel_core::blackhole::Blackhole;

/// State of a [`FakeKernel`], open to tests.
#[derive(Debug, Default)]
pub struct State {
    /// What [`Kernel::observe`] gives for each device.
    pub devices: HashMap<String, Observed>,
    /// Direct routes of ours.
    pub direct: BTreeSet<DirectRoute>,
    /// Direct routes that somebody else made.
    pub unmarked: BTreeSet<DirectRoute>,
    /// What [`Kernel::behind`] gives.
    pub behind: BTreeSet<Ipv4Network>,
    /// How often that was asked for.
    pub order_looks: u32,
    /// What [`Inspect::limited_routes`] gives.
    pub limited: Vec<LimitedRoute>,
    /// What [`Inspect::limits_of`] gives.
    pub limits: BTreeMap<Ipv4Addr, Limits>,
    /// What it was asked.
    pub asked: Vec<Asked>,
    /// What [`Kernel::links`] gives.
    pub links: Vec<Link>,
    /// What [`Kernel::default_routes`] gives.
    pub defaults: Vec<RouteTo>,
    /// What [`Kernel::route_to`] gives.
    pub routes: HashMap<Ipv4Addr, RouteTo>,
    /// Of which candidates [`Kernel::uplinks`] gives these.
    pub uplinks: BTreeSet<u32>,
    /// What [`Kernel::switched_off`] gives.
    pub switched_off: SwitchedOff,
    /// What [`Kernel::blackholes`] gives.
    pub blackholes: Vec<Blackhole>,
    /// Every operation that was carried out, in order.
    pub applied: Vec<Op>,
    /// Operations that fail, with this errno.
    pub failing: Vec<(Op, i32)>,
    /// How often a device was looked at.
    pub looks: u32,
    /// What [`Inspect::traffic_control`] gives; nothing on a link that is not here.
    pub traffic: BTreeMap<u32, TrafficControl>,
    /// How often traffic control was read, by device.
    pub traffic_looks: BTreeMap<u32, u32>,
    /// Traffic control cannot be read.
    pub traffic_fails: bool,
    /// Ends of veths with an XDP program.
    pub xdp_in_pods: BTreeSet<PodEnd>,
    /// Devices on which an XDP program runs.
    pub xdp: BTreeSet<u32>,
    /// What [`Inspect::ipsec_policies`] gives.
    pub ipsec: Vec<IpsecPolicy>,
    /// What [`Inspect::rules_look_at_marks`] gives.
    pub mark_rules: bool,
    /// What [`Inspect::detours`] gives; without rules, those of every node.
    pub detours: Tables,
    /// How often that was asked for.
    pub detour_looks: u32,
    /// What [`Inspect::received`] gives.
    pub received: HashMap<u32, u64>,
    /// What [`Inspect::stacked`] gives, by namespace.
    pub stacked: BTreeMap<i32, Vec<Stacked>>,
    /// Errno of the next call that reads, once.
    pub fail_next_read: Option<i32>,
}

/// Interface index that a created device gets.
const IFINDEX: u32 = 3;

/// A link that is up, with these addresses.
pub fn link(ifindex: u32, name: &str, kind: &str, addresses: &[Ipv4Network]) -> Link {
    let permanent = |network: &Ipv4Network| LinkAddress {
        network: *network,
        permanent: true,
        deprecated: false,
        global: true,
    };
    Link {
        ifindex,
        name: name.to_owned(),
        mtu: 1500,
        up: true,
        carrier: true,
        ethernet: true,
        kind: kind.to_owned(),
        lower_netns: (kind == "veth").then_some(0),
        qdisc: "noqueue".to_owned(),
        addresses: addresses.iter().map(permanent).collect(),
        ..Link::default()
    }
}

/// Writes the files that the agent reads below `/proc/sys`.
///
/// # Errors
/// They cannot be written.
pub fn write_sysctls(root: &Path) -> io::Result<()> {
    for (key, value) in [
        ("net/ipv4/ip_local_port_range", "32768\t60999\n"),
        ("net/ipv4/ip_default_ttl", "64\n"),
        ("net/netfilter/nf_conntrack_tcp_be_liberal", "0\n"),
    ] {
        let path = root.join(key);
        path.parent().map_or(Ok(()), std::fs::create_dir_all)?;
        std::fs::write(path, value)?;
    }
    Ok(())
}

/// A kernel whose tables follow [`model::apply`]. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct FakeKernel {
    state: Arc<Mutex<State>>,
}

impl FakeKernel {
    /// Its state, to prepare or to look at.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reading(&self, call: &'static str) -> Result<MutexGuard<'_, State>, KernelError> {
        let mut state = self.state();
        match state.fail_next_read.take() {
            Some(errno) => Err(KernelError::new(call, "all", io::Error::from_raw_os_error(errno))),
            None => Ok(state),
        }
    }
}

impl Kernel for FakeKernel {
    async fn observe(&self, device: &str) -> Result<Observed, KernelError> {
        let mut state = self.reading("observe")?;
        state.looks += 1;
        Ok(state.devices.get(device).cloned().unwrap_or_default())
    }

    async fn apply(&self, device: &str, ops: &[Op]) -> Vec<Result<(), KernelError>> {
        let mut state = self.state();
        ops.iter()
            .map(|op| {
                let failing = state.failing.iter().find(|(failing, _)| failing == op);
                let errno = match failing {
                    Some((_, errno)) => Some(*errno),
                    None if op.is_maps() => Some(libc::EINVAL),
                    None => None,
                };
                if let Some(errno) = errno {
                    let error = io::Error::from_raw_os_error(errno);
                    return Err(KernelError::new("apply", format!("{op:?}"), error));
                }
                let direct = std::mem::take(&mut state.direct);
                let observed = state.devices.entry(device.to_owned()).or_default();
                observed.direct = direct;
                model::apply(observed, op);
                let direct = std::mem::take(&mut observed.direct);
                if let Some(device) = &mut observed.device {
                    device.ifindex = device.ifindex.max(IFINDEX);
                }
                state.direct = direct;
                if let Op::PutRoute(subnet) = op {
                    state.behind.remove(subnet);
                } else if let Op::PutDirect(route) = op {
                    state.behind.remove(&route.destination);
                    state.unmarked.retain(|other| other.destination != route.destination);
                } else if let Op::RemoveDirect(route) = op {
                    state.unmarked.remove(route);
                }
                state.applied.push(op.clone());
                Ok(())
            })
            .collect()
    }

    async fn direct_routes(&self, protocol: u8) -> Result<BTreeSet<DirectRoute>, KernelError> {
        let state = self.reading("direct_routes")?;
        Ok(if protocol == PROTOCOL { state.direct.clone() } else { state.unmarked.clone() })
    }

    async fn behind(
        &self,
        _: Ipv4Network,
        _: Option<u32>,
    ) -> Result<BTreeSet<Ipv4Network>, KernelError> {
        let mut state = self.reading("behind")?;
        state.order_looks += 1;
        Ok(state.behind.clone())
    }

    fn inspector(&self) -> Box<dyn Inspect> {
        Box::new(self.clone())
    }

    async fn links(&self) -> Result<Vec<Link>, KernelError> {
        Ok(self.reading("links")?.links.clone())
    }

    async fn default_routes(&self) -> Result<Vec<RouteTo>, KernelError> {
        Ok(self.reading("default_routes")?.defaults.clone())
    }

    async fn route_to(&self, destination: Ipv4Addr) -> Result<Option<RouteTo>, KernelError> {
        let state = self.reading("route_to")?;
        let own = state.links.iter().any(|link| link.has(destination));
        let local = own.then_some(RouteTo { ifindex: 1, source: None, gateway: None });
        Ok(state.routes.get(&destination).copied().or(local))
    }

    async fn uplinks(
        &self,
        candidates: &BTreeSet<u32>,
        _: Ipv4Network,
    ) -> Result<BTreeSet<u32>, KernelError> {
        Ok(self.reading("uplinks")?.uplinks.intersection(candidates).copied().collect())
    }

    async fn switched_off(&self) -> Result<SwitchedOff, KernelError> {
        Ok(self.reading("switched_off")?.switched_off.clone())
    }

    async fn blackholes(&self) -> Result<Vec<Blackhole>, KernelError> {
        Ok(self.state().blackholes.clone())
    }

    async fn add_blackhole(&self, route: Blackhole) -> Result<(), KernelError> {
        self.reading("add_blackhole")?.blackholes.push(route);
        Ok(())
    }

    async fn remove_blackhole(&self, route: Blackhole) -> Result<(), KernelError> {
        self.reading("remove_blackhole")?.blackholes.retain(|present| *present != route);
        Ok(())
    }
}

impl Inspect for FakeKernel {
    fn traffic_control(
        &mut self,
        devices: &BTreeSet<u32>,
    ) -> Result<BTreeMap<u32, TrafficControl>, KernelError> {
        let mut state = self.state();
        if state.traffic_fails {
            let error = io::Error::from_raw_os_error(libc::EPERM);
            return Err(KernelError::new("traffic_control", "all", error));
        }
        let mut found = BTreeMap::new();
        for ifindex in devices {
            *state.traffic_looks.entry(*ifindex).or_default() += 1;
            let nothing = TrafficControl { root: "noqueue".to_owned(), ..Default::default() };
            found.insert(*ifindex, state.traffic.get(ifindex).cloned().unwrap_or(nothing));
        }
        Ok(found)
    }

    fn xdp_in_pod(&mut self, end: PodEnd) -> Result<Option<bool>, KernelError> {
        Ok(Some(self.state().xdp_in_pods.contains(&end)))
    }

    fn xdp_on(&mut self, ifindex: u32) -> Result<Option<bool>, KernelError> {
        Ok(Some(self.state().xdp.contains(&ifindex)))
    }

    fn rules_look_at_marks(&mut self) -> Result<bool, KernelError> {
        Ok(self.state().mark_rules)
    }

    fn ipsec_policies(&mut self) -> Result<Vec<IpsecPolicy>, KernelError> {
        Ok(self.state().ipsec.clone())
    }

    fn limited_routes(&mut self) -> Result<Vec<LimitedRoute>, KernelError> {
        Ok(self.state().limited.clone())
    }

    fn limits_of(&mut self, asked: &Asked) -> Result<Limits, KernelError> {
        let mut state = self.state();
        state.asked.push(*asked);
        Ok(state.limits.get(&asked.destination).copied().unwrap_or_default())
    }

    fn detours(&mut self, _: &Here) -> Result<Tables, KernelError> {
        let mut state = self.state();
        state.detour_looks += 1;
        let mut found = state.detours.clone();
        if found.rules.is_empty() {
            found.rules =
                vec![RoutingRule::of_table(0, LOCAL), RoutingRule::of_table(32_766, MAIN)];
        }
        Ok(found)
    }

    fn received(&mut self, ifindex: u32) -> Result<Option<u64>, KernelError> {
        Ok(self.state().received.get(&ifindex).copied())
    }

    fn namespaces(&mut self) -> Result<BTreeSet<i32>, KernelError> {
        Ok(self.state().stacked.keys().copied().collect())
    }

    fn stacked(&mut self, netns: i32, _: Ipv4Network) -> Result<Vec<Stacked>, KernelError> {
        Ok(self.state().stacked.get(&netns).cloned().unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flannel_core::mac::MacAddr;
    use flannel_core::observed::ObservedDevice;

    #[tokio::test]
    async fn failures_are_those_asked_for_and_the_others_are_done() {
        let kernel = FakeKernel::default();
        let device = ObservedDevice {
            ifindex: 3,
            vxlan: None,
            mac: MacAddr([2; 6]),
            mtu: 1450,
            up: true,
            proto_down: false,
            bridge_port: false,
            addresses: Default::default(),
            unrouted: Default::default(),
            checksum: None,
        };
        let observed = Observed { device: Some(device), ..Observed::default() };
        kernel.state().devices.insert("flannel.1".to_owned(), observed);
        let bad = Op::PutNeighbour(Ipv4Addr::new(10, 5, 1, 0), MacAddr([2; 6]));
        let good = Op::PutFdb(MacAddr([2; 6]), Ipv4Addr::new(192, 0, 2, 1));
        kernel.state().failing.push((bad.clone(), libc::ENOBUFS));
        let results = kernel.apply("flannel.1", &[bad, good.clone()]).await;
        assert_eq!(results[0].as_ref().unwrap_err().source.raw_os_error(), Some(libc::ENOBUFS));
        assert!(results[1].is_ok());
        assert_eq!(kernel.state().applied, [good]);
        let observed = kernel.observe("flannel.1").await.unwrap();
        assert_eq!((observed.neighbours.len(), observed.fdb.len()), (0, 1));
    }
}
