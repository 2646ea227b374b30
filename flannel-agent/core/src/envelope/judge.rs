//! What may be bypassed.

use std::collections::{BTreeMap, BTreeSet};

use flannel_ebpf::abi::MAX_VETHS;

use super::devices::{Filter, Stacked, TrafficControl};
use super::ipsec::IpsecPolicy;
use super::programs::{Inward, Keep, PodVeth, Tcx, TcxProgram, VethEntry};
use super::reason::{Obstacle, Reason, Side};
use super::report::{EnvelopeReport, Kept, KeptWay, NotServed, Outward, VethReport};
use super::scene::{Scene, Veth};
use crate::checksum::TunnelChecksum;
use crate::firewall::packet_rules::outer::OuterRule;

/// What stands on the devices.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// By interface index.
    pub devices: BTreeMap<u32, DeviceFacts>,
    /// Whether an XDP program runs on the pod's side, or why that cannot be
    /// told; by the veth's interface index.
    pub xdp: BTreeMap<u32, Result<bool, String>>,
    /// Whether an XDP program runs on what pods' veths are ports of, or stand below, or
    /// why that cannot be told; by interface index.
    pub xdp_above: BTreeMap<u32, Result<bool, String>>,
    /// A routing rule looks at firewall marks.
    pub mark_rules: bool,
    /// Chains of nftables' netdev family.
    pub chains: Vec<NetdevChain>,
    /// Rules about the tunnel's packets that go out.
    pub outer_rules: Vec<OuterRule>,
    /// IPsec policies about tunnel packets to peers.
    pub ipsec: Vec<IpsecPolicy>,
    /// Pods' devices that stand on ours without a veth, by network namespace.
    pub stacked: BTreeMap<i32, Vec<Stacked>>,
    /// Peers that did not fit into the programs' tables.
    pub peers_left_out: usize,
    /// Who has to make the checksums of what goes into the tunnel.
    pub checksum: TunnelChecksum,
}

/// What stands on one device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceFacts {
    /// Qdiscs and filters, or why they cannot be read.
    pub traffic: Result<TrafficControl, String>,
    /// Programs, or why they cannot be read.
    pub tcx: Result<Tcx, String>,
}

/// A chain of nftables' netdev family. On what comes in it runs behind all of
/// traffic control, on what goes out before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetdevChain {
    /// Name of the device.
    pub device: String,
    /// Which side of it.
    pub side: Side,
    /// Table and chain.
    pub chain: String,
}

/// What follows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Judgement {
    /// The pods' veths with what the programs are told of them.
    pub veths: Vec<PodVeth>,
    /// Ways that are the kernel's for the whole node.
    pub keep: Keep,
    /// Why, for status.
    pub report: EnvelopeReport,
}

impl Judgement {
    /// Veths that the programs know.
    pub fn served(&self) -> BTreeSet<u32> {
        let served = self.veths.iter().filter(|veth| veth.entry.is_some());
        served.map(|veth| veth.ifindex).collect()
    }
}

/// Judges. Of too many veths those that are `served` already keep their place; one that
/// was not looked at yet has none.
pub fn judge(scene: &Scene, seen: &Seen, served: &BTreeSet<u32>) -> Judgement {
    let look = Look { scene, seen };
    let seen_once = |veth: &&Veth| seen.devices.contains_key(&veth.ifindex);
    let mut order: Vec<&Veth> = scene.veths.iter().filter(seen_once).collect();
    order.sort_by_key(|veth| (!served.contains(&veth.ifindex), veth.ifindex));
    let mut judgement = Judgement::default();
    for (place, veth) in order.into_iter().enumerate() {
        let report = match place < MAX_VETHS as usize {
            true => look.veth(veth),
            false => too_many(veth),
        };
        let entry = (place < MAX_VETHS as usize).then_some(VethEntry {
            inward: report.inward,
            keep_out: report.outward == Outward::Kept,
        });
        let Veth { ifindex, name, mtu, .. } = veth;
        judgement.veths.push(PodVeth { ifindex: *ifindex, name: name.clone(), mtu: *mtu, entry });
        judgement.report.veths.push(report);
    }
    judgement.veths.sort_by_key(|veth| veth.ifindex);
    judgement.report.veths.sort_by_key(|veth| veth.ifindex);
    judgement.report.kept = look.kept();
    for kept in &judgement.report.kept {
        match kept.way {
            KeptWay::KeepOut => judgement.keep.out = true,
            KeptWay::KeepIn => judgement.keep.inward = true,
            KeptWay::KeepTunnel => judgement.keep.tunnel = true,
            KeptWay::MarkedRoutes => judgement.keep.marked_routes = true,
            KeptWay::MorePeers => judgement.keep.more_peers = true,
        }
    }
    judgement.report.not_served = look.not_served();
    judgement
}

fn too_many(veth: &Veth) -> VethReport {
    VethReport {
        name: veth.name.clone(),
        ifindex: veth.ifindex,
        outward: Outward::Kept,
        inward: Inward::Kernel,
        why: vec![Reason {
            device: veth.name.clone(),
            what: Obstacle::TooManyVeths { limit: MAX_VETHS },
        }],
    }
}

#[derive(Clone, Copy)]
struct Look<'a> {
    scene: &'a Scene,
    seen: &'a Seen,
}

impl Look<'_> {
    fn veth(self, veth: &Veth) -> VethReport {
        let above = self.scene.above(veth);
        let mut outward = self.behind_ours(veth.ifindex);
        outward.extend(above.iter().filter_map(|device| self.xdp_above(*device)));
        outward.extend(above.iter().flat_map(|device| self.ingress(*device)));
        let bridged: Vec<Reason> = above.iter().flat_map(|device| self.egress(*device)).collect();
        let mut own = self.egress(veth.ifindex);
        own.extend(self.in_pod(veth));
        let inward = match (bridged.is_empty(), own.is_empty()) {
            (false, _) => Inward::Kernel,
            (true, false) => Inward::Egress,
            (true, true) => Inward::Peer,
        };
        let kept = !outward.is_empty();
        let mut why = outward;
        why.extend(bridged);
        why.extend(own);
        why.dedup();
        VethReport {
            name: veth.name.clone(),
            ifindex: veth.ifindex,
            outward: if kept { Outward::Kept } else { Outward::Carried },
            inward,
            why,
        }
    }

    fn xdp_above(self, ifindex: u32) -> Option<Reason> {
        let what = xdp(self.seen.xdp_above.get(&ifindex), Obstacle::Xdp)?;
        Some(Reason { device: self.scene.name(ifindex), what })
    }

    fn in_pod(self, veth: &Veth) -> Option<Reason> {
        let what = xdp(self.seen.xdp.get(&veth.ifindex), Obstacle::XdpInPod)?;
        Some(Reason { device: veth.name.clone(), what })
    }

    fn kept(self) -> Vec<Kept> {
        let overlay = &self.scene.overlay;
        let inlets: Vec<Reason> =
            self.scene.inlets.iter().flat_map(|inlet| self.behind_ours(inlet.ifindex)).collect();
        let mut inward: Vec<Reason> =
            overlay.iter().flat_map(|device| self.ingress(*device)).collect();
        inward.extend(inlets.iter().cloned());
        let mut outward: Vec<Reason> =
            overlay.iter().flat_map(|device| self.egress(*device)).collect();
        let leaving = self.scene.inlets.iter();
        outward.extend(leaving.flat_map(|inlet| self.chains(inlet.ifindex, Side::Egress)));
        outward.extend(self.about_tunnel(false));
        let node = |there: bool, what| there.then_some(Reason { device: String::new(), what });
        // `flannel.<VNI>` has them made, so everything has to leave by it.
        let by_kernel = self.seen.checksum == TunnelChecksum::Kernel;
        outward.extend(node(by_kernel, Obstacle::KernelChecksum));
        let mut marked = self.about_tunnel(true);
        marked.extend(node(self.seen.mark_rules, Obstacle::MarkRule));
        let left_out = self.seen.peers_left_out;
        let more = node(left_out > 0, Obstacle::TooManyPeers { left_out });
        [
            (KeptWay::KeepOut, outward),
            (KeptWay::KeepIn, inward),
            (KeptWay::KeepTunnel, inlets),
            (KeptWay::MarkedRoutes, marked),
            (KeptWay::MorePeers, more.into_iter().collect()),
        ]
        .into_iter()
        .filter(|(_, why): &(_, Vec<Reason>)| !why.is_empty())
        .map(|(way, why)| Kept { way, why })
        .collect()
    }

    /// Rules and policies about the tunnel's packets, or about the marked ones only.
    fn about_tunnel(self, marked: bool) -> Vec<Reason> {
        let rules = self.seen.outer_rules.iter().filter(|rule| rule.marked == marked);
        let rules = rules.map(|OuterRule { chain, rule, does, .. }| Obstacle::OuterRule {
            chain: chain.clone(),
            rule: rule.clone(),
            does: does.clone(),
        });
        let policies = self.seen.ipsec.iter().filter(|policy| policy.marked == marked);
        let policies = policies.map(|IpsecPolicy { text, does, .. }| Obstacle::Ipsec {
            policy: text.clone(),
            does: does.clone(),
        });
        rules.chain(policies).map(|what| Reason { device: String::new(), what }).collect()
    }

    fn not_served(self) -> Vec<NotServed> {
        let mut pods: BTreeMap<(&str, u32), usize> = BTreeMap::new();
        for stacked in self.seen.stacked.values().flatten() {
            *pods.entry((stacked.kind.as_str(), stacked.lower)).or_default() += 1;
        }
        let stacked = pods.into_iter().map(|((kind, lower), pods)| NotServed {
            kind: kind.to_owned(),
            device: self.scene.name(lower),
            pods,
        });
        self.scene.not_served.iter().cloned().chain(stacked).collect()
    }

    /// What acts on what comes in by a device where our program runs, after it.
    fn behind_ours(self, ifindex: u32) -> Vec<Reason> {
        self.acting(ifindex, Side::Ingress, |traffic, tcx| {
            let at = tcx.ingress.iter().position(|program| program.ours);
            if let Some(at) = at {
                // All of tcx runs before the filters.
                return (tcx.ingress[at + 1..].to_vec(), traffic.ingress.clone());
            }
            let ours = traffic.ingress.iter().find(|filter| filter.ours);
            match ours.map(|filter| filter.priority) {
                Some(priority) => (Vec::new(), behind(&traffic.ingress, priority)),
                // Ours does not run yet, and will be the last of tcx or a filter.
                None => (Vec::new(), traffic.ingress.clone()),
            }
        })
    }

    /// What acts on what comes in by a device that is bypassed.
    fn ingress(self, ifindex: u32) -> Vec<Reason> {
        self.acting(ifindex, Side::Ingress, |traffic, tcx| {
            (tcx.ingress.clone(), traffic.ingress.clone())
        })
    }

    /// What acts on what leaves by a device that is bypassed.
    fn egress(self, ifindex: u32) -> Vec<Reason> {
        self.acting(ifindex, Side::Egress, |traffic, tcx| {
            (tcx.egress.clone(), traffic.egress.clone())
        })
    }

    /// The reasons on one side of a device, of the programs and filters that
    /// `choose` chooses. What was not looked at may be anything.
    fn acting(
        self,
        ifindex: u32,
        side: Side,
        choose: impl Fn(&TrafficControl, &Tcx) -> (Vec<TcxProgram>, Vec<Filter>),
    ) -> Vec<Reason> {
        let device = self.scene.name(ifindex);
        let unreadable = |error: &str| {
            let what = Obstacle::Unreadable { error: error.to_owned() };
            vec![Reason { device: device.clone(), what }]
        };
        let (traffic, tcx) = match self.seen.devices.get(&ifindex) {
            None => return unreadable("not looked at yet"),
            Some(DeviceFacts { traffic: Err(error), .. } | DeviceFacts { tcx: Err(error), .. }) => {
                return unreadable(error);
            }
            Some(DeviceFacts { traffic: Ok(traffic), tcx: Ok(tcx) }) => (traffic, tcx),
        };
        let queues = side == Side::Egress && !is_without_queue(&traffic.root);
        let root = queues.then(|| Obstacle::RootQdisc { qdisc: traffic.root.clone() });
        let (programs, filters) = choose(traffic, tcx);
        let programs = programs.into_iter().filter(|program| !program.ours);
        let programs = programs.map(|program| Obstacle::Program {
            side,
            id: program.id,
            another_agents: program.another_agents,
        });
        let filters = filters.into_iter().filter(|filter| !filter.ours);
        let filters = filters.map(|filter| Obstacle::Filter {
            side,
            filter: filter.kind,
            priority: filter.priority,
        });
        root.into_iter()
            .chain(programs)
            .chain(filters)
            .map(|what| Reason { device: device.clone(), what })
            .chain(self.chains(ifindex, side))
            .collect()
    }

    /// nftables' chains on one side of a device.
    fn chains(self, ifindex: u32, side: Side) -> Vec<Reason> {
        let device = self.scene.name(ifindex);
        let on_it = |chain: &&NetdevChain| chain.device == device && chain.side == side;
        let chains = self.seen.chains.iter().filter(on_it);
        chains
            .map(|chain| Reason {
                device: device.clone(),
                what: Obstacle::Chain { side, chain: chain.chain.clone() },
            })
            .collect()
    }
}

/// What an XDP program is, if there is one or may be.
fn xdp(found: Option<&Result<bool, String>>, program: Obstacle) -> Option<Obstacle> {
    match found {
        None | Some(Ok(false)) => None,
        Some(Ok(true)) => Some(program),
        Some(Err(error)) => Some(Obstacle::Unreadable { error: error.clone() }),
    }
}

/// The filters that run after ours. Another chain runs where a filter of chain 0
/// says so.
fn behind(filters: &[Filter], ours: u16) -> Vec<Filter> {
    let late = |filter: &&Filter| filter.chain == 0 && !filter.ours && filter.priority >= ours;
    let any = filters.iter().any(|filter| late(&filter));
    filters.iter().filter(|filter| late(filter) || (any && filter.chain != 0)).cloned().collect()
}

/// Bridges, veths and VXLAN devices have no queue unless somebody gave them one.
fn is_without_queue(qdisc: &str) -> bool {
    matches!(qdisc, "" | "noqueue" | "noop")
}
