//! The compiled programs under BPF_PROG_TEST_RUN: loaded by this kernel's
//! verifier, fed with packets, judged by verdict, bytes and counters.
//!
//! The decisions themselves are tested in `flannel-ebpf`; here it is shown that
//! the object that ships makes the same ones.

use aya::maps::lpm_trie::Key;
use aya::maps::{Array, HashMap, LpmTrie, PerCpuArray};
use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader};
use flannel_agent::bpf::unless_interrupted;
use flannel_ebpf::abi::{
    self, Attendance, Config, Flow, FlowKey, Handover, Outcome, Peer, Subnet, Ticket,
    TicketNumbers, Treatment, Tuple4, Veth, action, flag, map, program, ticket_flag,
};
use flannel_ebpf::path::NextHop;
use flannel_ebpf::wire::{self, ENCAP_LEN, ETH_LEN, Outer};
use zerocopy::FromBytes as _;

const PASS: i32 = -1;
const DROP: i32 = 2;
const REDIRECT: i32 = 7;
const XDP_PASS: i32 = 2;
const LOCAL: [u8; 4] = [192, 0, 2, 2];
const PEER: [u8; 4] = [192, 0, 2, 1];
const OTHER_PEER: [u8; 4] = [192, 0, 2, 3];
const VTEP: [u8; 6] = [2, 0, 0, 0, 0, 2];
const PORT: [u8; 2] = 8472u16.to_be_bytes();
/// Loopback stands for every interface: its MAC is all zero.
const IFINDEX: u32 = 1;
const INNER: usize = ETH_LEN + ENCAP_LEN;
/// Room for as many CPUs as the machine may have.
const TICKETS: TicketNumbers = TicketNumbers { slots_log2: 4, index_log2: 10 };

struct Programs(Ebpf);

impl Programs {
    fn load() -> Self {
        let object = flannel_agent::bpf::object().unwrap();
        let mut ebpf = EbpfLoader::new()
            .map_max_entries(map::TICKETS, 1 << TICKETS.index_log2)
            .load(&object)
            .unwrap();
        for name in program::ALL {
            let program: &mut SchedClassifier = ebpf.program_mut(name).unwrap().try_into().unwrap();
            unless_interrupted(|| program.load()).unwrap();
        }
        let xdp: &mut Xdp = ebpf.program_mut(program::FROM_WIRE).unwrap().try_into().unwrap();
        unless_interrupted(|| xdp.load()).unwrap();
        let mut this = Self(ebpf);
        this.configure(flag::FAST_PATH | flag::TCP | flag::VERIFY_DROP);
        this.attend(Attendance { time_ns: u64::MAX / 2, ..Attendance::default() });
        let mut subnets: LpmTrie<_, [u8; 4], Subnet> = this.map(map::SUBNETS4);
        for (third, public_ip, peer_id) in [(1, PEER, 0), (3, OTHER_PEER, 1)] {
            let subnet = Subnet { vtep_mac: [2, 0, 0, 0, 0, third], flags: 0, public_ip, peer_id };
            subnets.insert(&Key::new(24, [10, 5, third, 0]), subnet, 0).unwrap();
        }
        let mut peers: HashMap<_, [u8; 4], Peer> = this.map(map::PEERS4);
        peers.insert(PEER, Peer { peer_id: 0 }, 0).unwrap();
        peers.insert(OTHER_PEER, Peer { peer_id: 1 }, 0).unwrap();
        let mut veths: HashMap<_, u32, Veth> = this.map(map::VETHS);
        veths
            .insert(IFINDEX, Veth { action: action::PEER, mtu: 1450, ..Veth::default() }, 0)
            .unwrap();
        this
    }

    fn configure(&mut self, flags: u32) {
        let config = Config {
            abi_version: abi::ABI_VERSION,
            generation: 1,
            window_ns: 5_000_000_000,
            udp_window_ns: 5_000_000_000,
            flags,
            vni: 1,
            underlay_ifindex: IFINDEX,
            overlay_ifindex: IFINDEX,
            local_ip: LOCAL,
            network: [10, 5, 0, 0],
            netmask: [255, 255, 0, 0],
            subnet: [10, 5, 2, 0],
            subnet_mask: [255, 255, 255, 0],
            port: PORT,
            mtu: 1450,
            vtep_mac: VTEP,
            sport_min: 32_768,
            sport_max: 60_999,
            direct_mtu: 1500,
            exemptions: 0,
            underlay_vrf: 0,
            tickets: TICKETS,
            reserved: 0,
            ttl_above_64: 0,
        };
        let mut cfg: Array<_, Config> = self.map(map::CFG);
        cfg.set(0, config, 0).unwrap();
    }

    fn attend(&mut self, sign: Attendance) {
        let mut attended: Array<_, Attendance> = self.map(map::ATTENDED);
        attended.set(0, sign, 0).unwrap();
    }

    fn map<'a, T>(&'a mut self, name: &str) -> T
    where
        T: TryFrom<&'a mut aya::maps::Map>,
        T::Error: std::fmt::Debug,
    {
        T::try_from(self.0.map_mut(name).unwrap()).unwrap()
    }

    /// Runs a program; its verdict and the packet as it left it.
    fn run(&self, name: &str, packet: &[u8]) -> (i32, Vec<u8>) {
        let mut out = vec![0; packet.len() + 128];
        let options = TestRunOptions {
            data_in: Some(packet),
            data_out: Some(&mut out),
            ..TestRunOptions::default()
        };
        let program = self.0.program(name).unwrap();
        let result = if name == program::FROM_WIRE {
            <&Xdp>::try_from(program).unwrap().test_run(options).unwrap()
        } else {
            <&SchedClassifier>::try_from(program).unwrap().test_run(options).unwrap()
        };
        let length = result.data_size_out as usize;
        out.truncate(length);
        (result.return_value as i32, out)
    }

    /// The only ticket that was given out, of whatever CPU.
    fn ticket(&mut self) -> Ticket {
        let tickets: Array<_, Ticket> = self.map(map::TICKETS);
        let used = (0..1 << TICKETS.index_log2)
            .filter(|index| index & (TICKETS.slots() - 1) != 0)
            .map(|index| tickets.get(&index, 0).unwrap())
            .filter(|ticket| ticket.sequence != 0);
        let used: Vec<Ticket> = used.collect();
        assert_eq!(used.len(), 1);
        used[0]
    }

    /// Confirms a flow as an exit hook does: a test run carries no ticket.
    fn confirm(&mut self, key: FlowKey, flow: Flow) {
        let mut flows: HashMap<_, FlowKey, Flow> = self.map(map::FLOWS4);
        let confirmed = Flow {
            state: abi::state::CONFIRMED,
            time_ns: u64::MAX,
            generation: 1,
            entry_ifindex: IFINDEX,
            out_ifindex: IFINDEX,
            peer_ip: PEER,
            max_len: 1450,
            ..flow
        };
        flows.insert(key, confirmed, 0).unwrap();
    }

    fn counted(&mut self, outcome: Outcome) -> u64 {
        let stats: PerCpuArray<_, u64> = self.map(map::STATS);
        stats.get(&(outcome as u32), 0).unwrap().iter().sum()
    }
}

fn with_checksum(mut packet: Vec<u8>, l3: usize) -> Vec<u8> {
    packet[l3 + 10..l3 + 12].fill(0);
    let header: [u8; 20] = packet[l3..l3 + 20].try_into().unwrap();
    let check = wire::ipv4_checksum(&wire::ipv4(header));
    packet[l3 + 10..l3 + 12].copy_from_slice(&check);
    packet
}

/// An IPv4 packet with a UDP header and payload.
fn udp(source: [u8; 4], destination: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let length = (28 + payload.len()) as u16;
    let mut ip = vec![0x45, 0];
    ip.extend(length.to_be_bytes());
    ip.extend([0, 9, 0, 0, 64, 17, 0, 0]);
    ip.extend(source);
    ip.extend(destination);
    ip.extend([0x0f, 0xa0, 0x13, 0x88]);
    ip.extend((length - 20).to_be_bytes());
    ip.extend([0, 0]);
    ip.extend(payload);
    with_checksum(ip, 0)
}

fn frame(ip: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 6];
    // A bridge takes no frame that comes from nobody.
    bytes.extend([2, 0, 0, 0, 7, 7, 8, 0]);
    bytes.extend(ip);
    bytes
}

/// A tunnel packet to us.
fn tunnel(outer_source: [u8; 4], ip: &[u8]) -> Vec<u8> {
    let mut bytes = frame(&[]);
    bytes.extend(wire::encap_headers(&Outer {
        source: outer_source,
        destination: LOCAL,
        source_port: 40_000,
        port: PORT,
        vni: 1,
        id: 1,
        ttl: wire::OUTER_TTL,
        inner_tos: 0,
        inner_len: ip.len() as u16,
        vtep_dst: VTEP,
        vtep_src: [2, 0, 0, 0, 0, 1],
        gbp: 0,
    }));
    bytes.extend(ip);
    bytes
}

fn good() -> Vec<u8> {
    tunnel(PEER, &udp([10, 5, 1, 2], [10, 5, 2, 2], b"payload"))
}

fn key(saddr: [u8; 4], daddr: [u8; 4], direction: u8) -> FlowKey {
    let tuple = Tuple4 { saddr, daddr, sport: [0x0f, 0xa0], dport: [0x13, 0x88] };
    FlowKey { tuple, proto: wire::UDP, direction, reserved: [0; 2] }
}

/// The flow of [`good`], delivered to a pod; `treatment` besides its tuple.
fn inwards(tuple: Tuple4, treatment: Treatment) -> Flow {
    Flow {
        action: action::PEER,
        dst_mac: [2, 0, 0, 0, 1, 2],
        src_mac: [2, 0, 0, 0, 1, 1],
        treatment: Treatment { tuple, ..treatment },
        ..Flow::default()
    }
}

#[test]
fn a_packet_that_enters_gets_a_ticket() {
    let mut programs = Programs::load();
    let packet = good();
    assert_eq!(programs.run(program::FROM_UNDERLAY, &packet), (PASS, packet.clone()));
    let ticket = programs.ticket();
    assert_eq!(ticket.key, key([10, 5, 1, 2], [10, 5, 2, 2], abi::direction::IN));
    assert_eq!((ticket.ttl, ticket.id, ticket.total_len), (64, [0, 9], 35));
    assert_eq!((ticket.peer_ip, ticket.entry_ifindex), (PEER, IFINDEX));
    assert_eq!((ticket.flags, ticket.generation), (ticket_flag::FLOW, 1));
    assert_eq!(ticket.transport[..2], 15_u16.to_be_bytes());
}

#[test]
fn a_confirmed_flow_is_decapsulated_and_translated() {
    let mut programs = Programs::load();
    let packet = good();
    let key = key([10, 5, 1, 2], [10, 5, 2, 2], abi::direction::IN);
    programs.confirm(key, inwards(key.tuple, Treatment::default()));
    let mut delivered = frame(&packet[INNER..]);
    delivered[..6].copy_from_slice(&[2, 0, 0, 0, 1, 2]);
    delivered[6..12].copy_from_slice(&[2, 0, 0, 0, 1, 1]);
    delivered[ETH_LEN + 8] -= 1;
    let delivered = with_checksum(delivered, ETH_LEN);
    assert_eq!(programs.run(program::FROM_UNDERLAY, &packet), (REDIRECT, delivered.clone()));
    // The same from a service's address, with another DSCP.
    let tuple = Tuple4 { saddr: [10, 96, 0, 7], sport: [0, 80], ..key.tuple };
    let treatment = Treatment {
        translated: 1,
        address_sum: wire::sum_of_change([[10, 5, 1, 2]], [[10, 96, 0, 7]]),
        port_sum: wire::sum_of_change([[0x0f, 0xa0, 0, 0]], [[0, 80, 0, 0]]),
        dscp: 0xb8,
        ..Treatment::default()
    };
    programs.confirm(key, inwards(tuple, treatment));
    let mut translated = delivered;
    translated[ETH_LEN + 1] = 0xb8;
    translated[ETH_LEN + 12..ETH_LEN + 16].copy_from_slice(&[10, 96, 0, 7]);
    translated[ETH_LEN + 20..ETH_LEN + 22].copy_from_slice(&[0, 80]);
    let translated = with_checksum(translated, ETH_LEN);
    assert_eq!(programs.run(program::FROM_UNDERLAY, &packet), (REDIRECT, translated));
    assert_eq!(programs.counted(Outcome::FastDecap), 2);
}

#[test]
fn a_confirmed_packet_is_stripped_before_it_has_an_skb() {
    let mut programs = Programs::load();
    let packet = good();
    let key = key([10, 5, 1, 2], [10, 5, 2, 2], abi::direction::IN);
    let flow = inwards(key.tuple, Treatment { priority: 6, ..Treatment::default() });
    programs.confirm(key, flow);
    assert_eq!(programs.run(program::FROM_WIRE, &packet), (XDP_PASS, packet.clone()), "off");
    programs.configure(flag::FAST_PATH | flag::TCP | flag::VERIFY_DROP | flag::XDP);
    let (verdict, stripped) = programs.run(program::FROM_WIRE, &packet);
    // Metadata come first.
    let (handover, stripped) = stripped.split_at(size_of::<Handover>());
    assert_eq!((verdict, stripped), (XDP_PASS, &packet[ENCAP_LEN..]));
    let expected = Handover {
        magic: abi::HANDOVER,
        generation: 1,
        out_ifindex: IFINDEX,
        peer_id: 0,
        action: u32::from(action::PEER) | 6 << 8,
        dst_mac: [2, 0, 0, 0, 1, 2],
        src_mac: [2, 0, 0, 0, 1, 1],
    };
    assert_eq!(Handover::read_from_bytes(handover).unwrap(), expected);
    for length in ETH_LEN..packet.len() {
        let cut = &packet[..length];
        assert_eq!(programs.run(program::FROM_WIRE, cut), (XDP_PASS, cut.to_vec()), "{length}");
    }
}

#[test]
fn a_confirmed_flow_is_encapsulated() {
    let mut programs = Programs::load();
    let packet = frame(&udp([10, 5, 2, 2], [10, 5, 1, 2], b"payload"));
    assert_eq!(programs.run(program::FROM_POD, &packet), (PASS, packet.clone()));
    let key = key([10, 5, 2, 2], [10, 5, 1, 2], abi::direction::OUT);
    assert_eq!(programs.ticket().key, key);
    let flow = Flow {
        action: action::ENCAP,
        next_hop: NextHop::ipv4(PEER).address,
        next_hop_family: NextHop::IPV4,
        dst_mac: [2, 0, 0, 0, 0, 1],
        treatment: Treatment { tuple: key.tuple, ..Treatment::default() },
        ..Flow::default()
    };
    programs.confirm(key, flow);
    let (verdict, sent) = programs.run(program::FROM_POD, &packet);
    assert_eq!(verdict, REDIRECT);
    assert_eq!(sent.len(), packet.len() + ENCAP_LEN);
    let outer = wire::ipv4(sent[ETH_LEN..ETH_LEN + 20].try_into().unwrap());
    assert_eq!((outer.src_addr, outer.dst_addr, outer.ttl), (LOCAL, PEER, wire::OUTER_TTL));
    assert_eq!(outer.frags, [0, 0], "no DF");
    let inner = wire::ipv4(sent[INNER..INNER + 20].try_into().unwrap());
    assert_eq!(inner.ttl, 63);
    assert_eq!(sent[INNER + 20..], packet[ETH_LEN + 20..]);
    assert_eq!(programs.counted(Outcome::FastEncap), 1);
}

#[test]
fn an_agent_that_left_or_is_silent_refuses_nobody() {
    let mut programs = Programs::load();
    let stranger = tunnel([192, 0, 2, 77], &udp([10, 5, 77, 2], [10, 5, 2, 2], b"x"));
    let run = |programs: &Programs| programs.run(program::FROM_UNDERLAY, &stranger).0;
    assert_eq!(run(&programs), DROP);
    let now = std::time::Duration::from(
        nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).unwrap(),
    );
    let now = now.as_nanos() as u64;
    let seconds = |seconds: u64| now - seconds * 1_000_000_000;
    for (time_ns, left, verdict) in
        [(seconds(50), 0, DROP), (seconds(61), 0, PASS), (seconds(1), 1, PASS), (0, 0, PASS)]
    {
        programs.attend(Attendance { time_ns, left, reserved: 0 });
        assert_eq!(run(&programs), verdict, "{time_ns} {left}");
    }
    assert_eq!(programs.counted(Outcome::Unattended), 3);
}

#[test]
fn forged_packets_are_dropped_and_counted() {
    let mut programs = Programs::load();
    let inner = |third| udp([10, 5, third, 2], [10, 5, 2, 2], b"x");
    let cases = [
        (Outcome::ForgedOuterSource, tunnel([192, 0, 2, 77], &inner(1))),
        (Outcome::ForgedInnerSource, tunnel(PEER, &inner(3))),
        (Outcome::ForgedInnerSource, tunnel(PEER, &inner(2))),
    ];
    for (index, (outcome, packet)) in cases.iter().enumerate() {
        assert_eq!(programs.run(program::FROM_UNDERLAY, packet).0, DROP, "case {index}");
        assert!(programs.counted(*outcome) > 0, "case {index}");
    }
    programs.configure(flag::FAST_PATH | flag::VERIFY_COUNT);
    for (_, packet) in &cases {
        assert_eq!(programs.run(program::FROM_UNDERLAY, packet), (PASS, packet.clone()));
    }
    assert_eq!(programs.counted(Outcome::ForgedInnerSource), 4);
}

#[test]
fn evasions_by_options_and_fragments_are_dropped() {
    let mut programs = Programs::load();
    let forged = tunnel(PEER, &udp([10, 5, 3, 2], [10, 5, 2, 2], b"x"));
    for words in 1..=10u8 {
        let mut packet = forged.clone();
        packet.splice(ETH_LEN + 20..ETH_LEN + 20, std::iter::repeat_n(1, usize::from(words) * 4));
        packet[ETH_LEN] = 0x45 + words;
        assert_eq!(programs.run(program::FROM_UNDERLAY, &packet).0, DROP, "{words} option words");
    }
    let mut fragment = forged;
    fragment[ETH_LEN + 6] = 0x20;
    assert_eq!(programs.run(program::FROM_UNDERLAY, &fragment).0, DROP);
    fragment.truncate(ETH_LEN + 44);
    assert_eq!(programs.run(program::FROM_UNDERLAY, &fragment).0, DROP);
    assert_eq!(programs.counted(Outcome::ForgedFragment), 1);
}

#[test]
fn a_pod_speaking_to_a_tunnel_end_is_dropped() {
    let mut programs = Programs::load();
    let mut ip = udp([10, 5, 2, 2], PEER, b"forged tunnel packet");
    ip[22..24].copy_from_slice(&PORT);
    assert_eq!(programs.run(program::FROM_POD, &frame(&ip)).0, DROP);
    ip[16..20].copy_from_slice(&[203, 0, 113, 1]);
    assert_eq!(programs.run(program::FROM_POD, &frame(&with_checksum(ip, 0))).0, PASS);
    assert_eq!(programs.counted(Outcome::ForgedByPod), 1);
}

#[test]
fn other_vnis_and_flags_pass_untouched() {
    let mut programs = Programs::load();
    for (offset, value) in [(ETH_LEN + 28, 0), (ETH_LEN + 34, 9)] {
        let mut packet = good();
        packet[offset] = value;
        assert_eq!(programs.run(program::FROM_UNDERLAY, &packet), (PASS, packet.clone()));
    }
    assert_eq!(programs.counted(Outcome::KernelForeignVni), 2);
}

#[test]
fn truncation_at_every_byte_offset_passes_untouched() {
    let mut programs = Programs::load();
    // A test run has no headers of a tunnel in front of the packet.
    programs.configure(flag::FAST_PATH | flag::TCP);
    let outgoing = frame(&udp([10, 5, 2, 2], [10, 5, 1, 2], b"payload"));
    // BPF_PROG_TEST_RUN itself refuses less than an IPv4 header.
    for (name, packet) in [
        (program::FROM_UNDERLAY, good()),
        (program::FROM_POD, outgoing.clone()),
        (program::TO_OVERLAY, outgoing.clone()),
        (program::FROM_OVERLAY, outgoing.clone()),
        (program::TO_POD, outgoing),
    ] {
        for length in ETH_LEN + 20..packet.len() {
            let cut = &packet[..length];
            assert_eq!(programs.run(name, cut), (PASS, cut.to_vec()), "{name} at {length}");
        }
    }
}
