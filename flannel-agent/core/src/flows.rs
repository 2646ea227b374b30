//! What an entry of the programs' flow table says. The programs decide by the same
//! fields (`flannel-ebpf/src/path/flow.rs`).

use std::collections::HashMap;
use std::net::SocketAddrV4;

use flannel_ebpf::abi::{
    Attendance, Config, Flow, FlowKey, Tuple4, Veth, action, closing, direction, flag, state,
};
use ipnetwork::Ipv4Network;

use crate::status::{Ends, FlowDirection, FlowPath, FlowProto, FlowStatus, NotFast};

const TCP: u8 = 6;
const UDP: u8 = 17;

/// What entries are judged by.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// The programs' clock in nanoseconds.
    pub now: u64,
    /// Their settings.
    pub config: Config,
    /// The agent's sign of life.
    pub attendance: Attendance,
    /// The pods' veths by interface index.
    pub veths: HashMap<u32, Veth>,
    /// The peers' subnets by id.
    pub peers: HashMap<u32, Ipv4Network>,
}

/// Which flows are wanted. What is `None` does not matter.
#[derive(Clone, Copy, Debug, Default)]
pub struct FlowFilter {
    /// An address that it comes from or goes to lies in here.
    pub pod: Option<Ipv4Network>,
    /// The peer's subnet or underlay address lies in here, or this in the subnet.
    pub peer: Option<Ipv4Network>,
    /// One of its ports.
    pub port: Option<u16>,
    /// Its protocol.
    pub proto: Option<FlowProto>,
}

impl FlowFilter {
    /// Whether the flow is wanted.
    pub fn takes(&self, flow: &FlowStatus) -> bool {
        let ends = flow.translated.iter().flat_map(|ends| [ends.source, ends.destination]);
        let ends: Vec<SocketAddrV4> =
            [flow.source, flow.destination].into_iter().chain(ends).collect();
        self.pod.is_none_or(|pod| ends.iter().any(|end| pod.contains(*end.ip())))
            && self.port.is_none_or(|port| ends.iter().any(|end| end.port() == port))
            && self.proto.is_none_or(|proto| proto == flow.proto)
            && self.peer.is_none_or(|peer| {
                let overlaps = |subnet: Ipv4Network| {
                    subnet.contains(peer.network()) || peer.contains(subnet.network())
                };
                flow.peer.is_some_and(overlaps) || flow.peer_ip.is_some_and(|ip| peer.contains(ip))
            })
    }
}

/// The entry in words; `None` for what is no flow of a pod: tunnels, and pairs of
/// `--fast-path=eager`.
pub fn describe(key: &FlowKey, flow: &Flow, view: &View) -> Option<FlowStatus> {
    let direction = match key.direction {
        direction::OUT => FlowDirection::Out,
        direction::IN => FlowDirection::In,
        _ => return None,
    };
    let proto = match key.proto {
        TCP => FlowProto::Tcp,
        UDP => FlowProto::Udp,
        _ => return None,
    };
    let confirmed = flow.state == state::CONFIRMED;
    let why = why(direction, proto, flow, view);
    let Ends { source, destination } = ends(&key.tuple);
    Some(FlowStatus {
        direction,
        proto,
        source,
        destination,
        translated: (confirmed && flow.treatment.translated != 0)
            .then(|| ends(&flow.treatment.tuple)),
        peer: confirmed.then(|| view.peers.get(&flow.peer_id).copied()).flatten(),
        peer_ip: Some(flow.peer_ip).filter(|ip| *ip != [0; 4]).map(Into::into),
        device: flow.entry_ifindex,
        path: if why.is_some() { FlowPath::Kernel } else { FlowPath::Fast },
        why,
        confirmed_ms_ago: confirmed.then(|| age_ms(proto, flow, view)).flatten(),
    })
}

fn ends(tuple: &Tuple4) -> Ends {
    let end = |address: [u8; 4], port| SocketAddrV4::new(address.into(), u16::from_be_bytes(port));
    Ends { source: end(tuple.saddr, tuple.sport), destination: end(tuple.daddr, tuple.dport) }
}

/// A confirmation ends one window after its packet came.
fn age_ms(proto: FlowProto, flow: &Flow, view: &View) -> Option<u64> {
    let window = match proto {
        FlowProto::Tcp => view.config.window_ns,
        FlowProto::Udp => view.config.udp_window_ns,
    };
    let began = flow.time_ns.checked_sub(window)?;
    Some(view.now.saturating_sub(began) / 1_000_000)
}

/// The most lasting reason first.
fn why(direction: FlowDirection, proto: FlowProto, flow: &Flow, view: &View) -> Option<NotFast> {
    let set = |bit| view.config.flags & bit != 0;
    let out = direction == FlowDirection::Out;
    let keep = if out { flag::KEEP_OUT } else { flag::KEEP_IN };
    let pod = if out { flow.entry_ifindex } else { flow.out_ifindex };
    let veth_keeps = view.veths.get(&pod).is_some_and(|veth| match out {
        true => veth.keep_out != 0,
        false => veth.action == action::KERNEL,
    });
    let reasons = [
        (!set(flag::FAST_PATH), NotFast::FastPathOff),
        (proto == FlowProto::Tcp && !set(flag::TCP), NotFast::TcpOff),
        (flow.state == state::KEPT, NotFast::Exempt),
        (set(keep), NotFast::WayKept),
        (flow.state == state::SEEN, NotFast::SeenOnce),
        (veth_keeps, NotFast::VethKept),
        (out && !view.attendance.lasts(view.now), NotFast::AgentSilent),
        (flow.state != state::CONFIRMED || flow.action == action::KERNEL, NotFast::NoWay),
        (flow.generation != view.config.generation, NotFast::Changed),
        (matches!(flow.closing, closing::LAST | closing::DONE), NotFast::Closing),
        (flow.time_ns <= view.now, NotFast::Expired),
        (flow.sticky_ns > view.now, NotFast::Aggregates),
    ];
    reasons.into_iter().find(|(holds, _)| *holds).map(|(_, why)| why)
}

#[cfg(test)]
mod tests {
    use flannel_ebpf::abi::Treatment;

    use super::*;

    const NOW: u64 = 100_000_000_000;

    fn key(direction: u8, proto: u8) -> FlowKey {
        let tuple = Tuple4 {
            saddr: [10, 5, 1, 2],
            daddr: [10, 96, 0, 1],
            sport: 4000_u16.to_be_bytes(),
            dport: 80_u16.to_be_bytes(),
        };
        FlowKey { tuple, proto, direction, reserved: [0; 2] }
    }

    fn flow() -> Flow {
        let tuple =
            Tuple4 { daddr: [10, 5, 2, 7], dport: 8080_u16.to_be_bytes(), ..key(1, TCP).tuple };
        Flow {
            time_ns: NOW + 3_000_000_000,
            generation: 7,
            entry_ifindex: 11,
            out_ifindex: 12,
            peer_id: 3,
            peer_ip: [192, 0, 2, 2],
            treatment: Treatment { tuple, translated: 1, ..Treatment::default() },
            state: state::CONFIRMED,
            action: action::ENCAP,
            ..Flow::default()
        }
    }

    fn view() -> View {
        let config = Config {
            generation: 7,
            window_ns: 5_000_000_000,
            udp_window_ns: 4_000_000_000,
            flags: flag::FAST_PATH | flag::TCP,
            ..Config::default()
        };
        View {
            now: NOW,
            config,
            attendance: Attendance { time_ns: NOW - 1, ..Attendance::default() },
            veths: [(11, Veth::default())].into(),
            peers: [(3, "10.5.2.0/24".parse().unwrap())].into(),
        }
    }

    #[test]
    fn a_confirmed_flow_is_told_with_what_it_becomes() {
        let told = describe(&key(direction::OUT, TCP), &flow(), &view()).unwrap();
        assert_eq!((told.path, told.why), (FlowPath::Fast, None));
        assert_eq!(told.source.to_string(), "10.5.1.2:4000");
        assert_eq!(told.destination.to_string(), "10.96.0.1:80");
        assert_eq!(told.translated.unwrap().destination.to_string(), "10.5.2.7:8080");
        assert_eq!(told.peer.unwrap().to_string(), "10.5.2.0/24");
        assert_eq!(told.confirmed_ms_ago, Some(2_000));
        for other in [direction::TUNNEL, direction::PAIR_OUT, direction::PAIR_IN] {
            assert_eq!(describe(&key(other, TCP), &flow(), &view()), None);
        }
    }

    #[test]
    fn why_it_is_not_fast() {
        let why = |change: &dyn Fn(&mut Flow, &mut View)| {
            let (mut flow, mut view) = (flow(), view());
            change(&mut flow, &mut view);
            describe(&key(direction::OUT, TCP), &flow, &view).unwrap().why
        };
        assert_eq!(why(&|_, view| view.config.flags = flag::TCP), Some(NotFast::FastPathOff));
        assert_eq!(why(&|_, view| view.config.flags = flag::FAST_PATH), Some(NotFast::TcpOff));
        assert_eq!(why(&|flow, _| flow.state = state::KEPT), Some(NotFast::Exempt));
        assert_eq!(why(&|flow, _| flow.state = state::SEEN), Some(NotFast::SeenOnce));
        assert_eq!(why(&|_, view| view.config.flags |= flag::KEEP_OUT), Some(NotFast::WayKept));
        assert_eq!(why(&|_, view| view.config.flags |= flag::KEEP_IN), None);
        let kept = Veth { keep_out: 1, ..Veth::default() };
        assert_eq!(why(&|_, view| view.veths = [(11, kept)].into()), Some(NotFast::VethKept));
        assert_eq!(why(&|_, view| view.attendance.time_ns = 0), Some(NotFast::AgentSilent));
        assert_eq!(why(&|flow, _| flow.action = action::KERNEL), Some(NotFast::NoWay));
        assert_eq!(why(&|_, view| view.config.generation += 1), Some(NotFast::Changed));
        assert_eq!(why(&|flow, _| flow.closing = closing::LAST), Some(NotFast::Closing));
        assert_eq!(why(&|flow, _| flow.time_ns = NOW), Some(NotFast::Expired));
        assert_eq!(why(&|flow, _| flow.sticky_ns = NOW + 1), Some(NotFast::Aggregates));
    }

    #[test]
    fn filters_look_at_both_sides_of_a_translation() {
        let told = describe(&key(direction::OUT, TCP), &flow(), &view()).unwrap();
        let net = |text: &str| Some(text.parse().unwrap());
        let takes = |filter: FlowFilter| filter.takes(&told);
        assert!(takes(FlowFilter::default()));
        assert!(takes(FlowFilter {
            pod: net("10.5.2.7"),
            port: Some(8080),
            ..FlowFilter::default()
        }));
        assert!(takes(FlowFilter {
            pod: net("10.5.1.0/24"),
            port: Some(80),
            ..FlowFilter::default()
        }));
        assert!(!takes(FlowFilter { pod: net("10.5.3.0/24"), ..FlowFilter::default() }));
        assert!(!takes(FlowFilter { port: Some(81), ..FlowFilter::default() }));
        for peer in ["10.5.2.9", "10.5.0.0/16", "192.0.2.2"] {
            assert!(takes(FlowFilter { peer: net(peer), ..FlowFilter::default() }), "{peer}");
        }
        assert!(!takes(FlowFilter { peer: net("192.0.2.3"), ..FlowFilter::default() }));
        assert!(!takes(FlowFilter { proto: Some(FlowProto::Udp), ..FlowFilter::default() }));
    }
}
