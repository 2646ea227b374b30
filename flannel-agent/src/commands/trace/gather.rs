//! Asks the node about both ends of a packet, and what lies between them.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use flannel_core::check::facts::{Known, Unknown};
use flannel_core::firewall::packet_rules::fate::Fate;
use flannel_core::firewall::packet_rules::matches::{
    Matches, Names, mark, protocol, socket, state,
};
use flannel_core::firewall::packet_rules::ranges::{Addresses, Ports};
use flannel_core::firewall::packet_rules::ruleset::{NetfilterHook, RuleSet};
use flannel_core::firewall::packet_rules::walk::{self, Overlay};
use flannel_core::flows::FlowFilter;
use flannel_core::link::{Link, RouteTo};
use flannel_core::status::{FlowProto, FlowStatus};
use flannel_core::trace;
use flannel_core::trace::facts::{
    FarNode, Pod, Protocol, Question, TraceFacts, TracedDevice, TracedRoute,
};

use crate::bpf::{PinnedFlows, features, lookup};
use crate::cli::TraceArgs;
use crate::commands::check::node::DeviceRoles;
use crate::commands::check::rules::{in_all, tunnel};
use crate::commands::flows;
use crate::commands::known::{self, Daemon};
use crate::firewall::packet_rules::read::rule_sets;
use crate::kernel::Kernel as _;
use crate::kernel::netlink::RealKernel;

/// All facts, and where the pins are.
pub(super) async fn facts(args: &TraceArgs) -> Known<(TraceFacts, PathBuf)> {
    let daemon = Daemon::ask(&args.reader.state.dir);
    let kernel = RealKernel::open().map_err(Unknown::because)?;
    let node = DeviceRoles::look(&kernel, &daemon).await?;
    let peers = match daemon.pid {
        Some(_) => daemon.peers.clone(),
        None => known::leases(&daemon, &args.etcd).await.unwrap_or_default(),
    };
    let subnet = daemon.network.as_ref().map(|network| network.subnet).ok_or_else(|| {
        Unknown::because(
            "our subnet is not known: no daemon has a lease, and there is no state file",
        )
    })?;
    let pins = daemon.left.as_ref().and_then(|left| left.pin_dir.clone());
    let pin_dir = pins.unwrap_or_else(|| args.pins.dir.clone());
    let look = Look { kernel: &kernel, node: &node, pin_dir: &pin_dir };
    let source = look.end(subnet.contains(args.source), args.source).await;
    let destination = look.end(subnet.contains(args.destination), args.destination).await;
    let far = if source.is_some() { args.destination } else { args.source };
    let peer = match peers.iter().find(|peer| peer.subnet.contains(far)) {
        Some(peer) => Some(look.peer(far, *peer).await),
        None => None,
    };
    let sets = rule_sets().await.map_err(Unknown::because);
    let packets = both_ways(args, &source, &destination, &node);
    let report = daemon.report.clone().unwrap_or_default();
    let [there, back] = &packets;
    let (from, to) = (source.as_ref(), destination.as_ref());
    let kept = [
        kept(trace::kept(&report, from, to), &daemon, &sets, &node, there),
        kept(trace::kept(&report, to, from), &daemon, &sets, &node, back),
    ];
    let fate = |hooks: &[NetfilterHook], packets: &Matches| -> Known<Fate> {
        sets.as_ref().map(|sets| in_all(sets, hooks, packets)).map_err(Clone::clone)
    };
    let [tunnel_in, tunnel_out] = match tunnel(&node, &daemon) {
        Some([inwards, outwards]) => [fate(&inwards.1, &inwards.2), fate(&outwards.1, &outwards.2)],
        None => [Ok(Fate::Passes), Ok(Fate::Passes)],
    };
    let forward = [NetfilterHook::Prerouting, NetfilterHook::Forward, NetfilterHook::Postrouting];
    let fates = packets.map(|packets| fate(&forward, &packets));
    let unforwarded = node.unforwarded(&kernel, &daemon).await;
    let facts = TraceFacts {
        question: Question {
            source: args.source,
            destination: args.destination,
            protocol: args.protocol.into(),
        },
        datapath: daemon.datapath(),
        kept,
        unforwarded,
        fates,
        tunnel: [tunnel_out, tunnel_in],
        flows: flows_of(&pin_dir, args),
        overlay: node.overlay.as_ref().map(device),
        underlay: node.underlay.as_ref().map(device),
        source,
        destination,
        peer,
    };
    Ok((facts, pin_dir))
}

/// What the flow table says of the packet, and of its answer.
fn flows_of(pin_dir: &Path, args: &TraceArgs) -> [Known<Vec<FlowStatus>>; 2] {
    let proto = match Protocol::from(args.protocol) {
        Protocol::Tcp => FlowProto::Tcp,
        Protocol::Udp => FlowProto::Udp,
        Protocol::Icmp => return [Ok(Vec::new()), Ok(Vec::new())],
    };
    let filter = FlowFilter {
        pod: Some(args.source.into()),
        port: args.port,
        proto: Some(proto),
        ..FlowFilter::default()
    };
    let found = PinnedFlows::open(pin_dir).and_then(|pinned| flows::read(&pinned, &filter));
    let found = found.map_err(Unknown::because);
    [(args.source, args.destination), (args.destination, args.source)].map(|ends| {
        let mut flows = found.clone()?;
        flows.retain(|flow| (*flow.source.ip(), *flow.destination.ip()) == ends);
        Ok(flows)
    })
}

fn device(link: &Link) -> TracedDevice {
    TracedDevice {
        name: link.name.clone(),
        mtu: link.mtu,
        up: link.up,
        programs: features::programs_on(link.ifindex),
    }
}

struct Look<'a> {
    kernel: &'a RealKernel,
    node: &'a DeviceRoles,
    pin_dir: &'a Path,
}

impl Look<'_> {
    fn link(&self, ifindex: u32) -> Option<&Link> {
        self.node.links.iter().find(|link| link.ifindex == ifindex)
    }

    async fn route(&self, to: Ipv4Addr) -> Option<RouteTo> {
        self.kernel.route_to(to).await.ok().flatten()
    }

    fn named(&self, route: RouteTo) -> Option<TracedRoute> {
        let device = self.link(route.ifindex)?.name.clone();
        Some(TracedRoute { device, gateway: route.gateway })
    }

    async fn end(&self, ours: bool, address: Ipv4Addr) -> Option<Pod> {
        match ours {
            true => Some(self.pod(address).await),
            false => None,
        }
    }

    /// A pod of ours: behind a port of a bridge, or routed to its veth.
    async fn pod(&self, address: Ipv4Addr) -> Pod {
        let route = self.route(address).await;
        let link = route.and_then(|route| self.link(route.ifindex));
        let mac =
            route.and_then(|route| self.kernel.neighbour(route.ifindex, address).ok().flatten());
        let veth = match (link, mac) {
            (Some(bridge), Some(mac)) if bridge.kind == "bridge" => {
                let port = self.kernel.bridge_port(bridge.ifindex, mac).ok().flatten();
                port.and_then(|port| self.link(port))
            }
            (Some(link), _) if link.kind != "bridge" => Some(link),
            _ => None,
        };
        Pod { address, device: link.map(|link| link.name.clone()), mac, veth: veth.map(device) }
    }

    async fn peer(&self, far: Ipv4Addr, peer: known::KnownPeer) -> FarNode {
        let route = self.route(far).await;
        let gateway = route.and_then(|route| Some((route.ifindex, route.gateway?)));
        let neighbour = gateway
            .and_then(|(ifindex, gateway)| self.kernel.neighbour(ifindex, gateway).ok().flatten());
        let fdb = self.node.overlay.as_ref().zip(neighbour).and_then(|(overlay, mac)| {
            self.kernel.fdb_destination(overlay.ifindex, mac).ok().flatten()
        });
        let next = self.route(peer.public_ip).await;
        let next_mac = next.and_then(|next| {
            let to = next.gateway.unwrap_or(peer.public_ip);
            self.kernel.neighbour(next.ifindex, to).ok().flatten()
        });
        FarNode {
            public_ip: peer.public_ip,
            vtep_mac: peer.vtep_mac,
            route: route.and_then(|route| self.named(route)),
            neighbour,
            fdb,
            map: lookup::peer_of(self.pin_dir, far),
            next_hop: next.and_then(|next| self.named(next)),
            next_mac,
        }
    }
}

/// The packet as FORWARD sees it, and its answer.
fn both_ways(
    args: &TraceArgs,
    source: &Option<Pod>,
    destination: &Option<Pod>,
    node: &DeviceRoles,
) -> [Matches; 2] {
    let address = |address: Ipv4Addr| Addresses::prefix(address.into(), 32);
    let outer = node.overlay.as_ref().or(node.underlay.as_ref());
    let names = |pod: &Option<Pod>| match pod {
        Some(Pod { device: Some(device), .. }) => Names::of([device.as_str()]),
        Some(_) => Names::Any,
        None => outer.map_or(Names::Any, |link| Names::of([link.name.as_str()])),
    };
    let there = Matches {
        source: address(args.source),
        destination: address(args.destination),
        dport: args.port.map_or(Ports::ALL, |port| Ports::of([(port.into(), port.into())])),
        protocols: match args.protocol.into() {
            Protocol::Tcp => protocol::TCP,
            Protocol::Udp => protocol::UDP,
            Protocol::Icmp => protocol::ALL,
        },
        states: state::NEW,
        marks: mark::NONE,
        sockets: socket::NONE,
        input: names(source),
        output: names(destination),
        ..Matches::default()
    };
    let back = Matches {
        source: there.destination.clone(),
        destination: there.source.clone(),
        sport: there.dport.clone(),
        dport: Ports::ALL,
        states: state::ESTABLISHED,
        input: there.output.clone(),
        output: there.input.clone(),
        ..there.clone()
    };
    [there, back]
}

/// What the daemon leaves to the kernel, and rules that judge such packets one by one.
fn kept(
    mut kept: Vec<String>,
    daemon: &Daemon,
    sets: &Known<[RuleSet; 2]>,
    node: &DeviceRoles,
    packets: &Matches,
) -> Known<Vec<String>> {
    let sets = sets.as_ref().map_err(Clone::clone)?;
    let network = daemon.network.as_ref().and_then(|network| network.network);
    let Some(network) = network else { return Ok(kept) };
    let overlay = Overlay { network, port: node.port() };
    let any_state = Matches { states: state::ALL, ..packets.clone() };
    for finding in sets.iter().flat_map(|set| walk::findings(set, overlay).rules) {
        let fits = finding.scopes.iter().any(|scope| scope.matches.and(&any_state).is_some());
        if finding.reach.is_some() && fits {
            kept.push(format!("a rule judges each packet ({}): {}", finding.why, finding.text));
        }
    }
    Ok(kept)
}
