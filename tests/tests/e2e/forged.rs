//! Packets that nobody should have sent.

use std::net::Ipv4Addr;
use std::time::Duration;

use flannel_ebpf::abi::Outcome;
use flannel_tests::agent::Options;
use flannel_tests::forge::{OUTER, Tunnelled};
use flannel_tests::forger::{MARK, honest, link_mac};
use flannel_tests::load::SPACED;
use flannel_tests::netns::Netns;
use flannel_tests::packet::Wire;
use flannel_tests::pair::Pair;
use flannel_tests::plain::key;
use flannel_tests::told::Outcomes;

const STRANGER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 250);

fn verify(mode: &'static str) -> Options {
    Options { verify_source: Some(mode), ..Options::ebpf() }
}

/// The underlay of a pair, seen by a forger.
struct Forger {
    pair: Pair,
    stranger: Netns,
    pod_wire: Wire,
    /// What `right` would send to `client` for `server`.
    honest: Tunnelled,
}

impl Forger {
    fn new(options: &Options) -> Self {
        let pair = Pair::agents(options);
        let stranger = pair.lab.stranger(STRANGER);
        let honest = honest(&pair);
        let pod_wire = Wire::open(&pair.client.netns, "eth0");
        Self { pair, stranger, pod_wire, honest }
    }

    /// Whether a marked packet comes to the pod.
    fn delivered(&self) -> bool {
        let marked = |frame: &[u8]| frame.windows(MARK.len()).any(|bytes| bytes == MARK);
        !self.pod_wire.frames(Duration::from_millis(400), 1, marked).is_empty()
    }

    /// Sends a frame from a namespace's `eth0`: whether the pod got it, and
    /// what was counted.
    fn send(&self, from: &Netns, frame: &[u8]) -> (bool, Outcomes) {
        let before = self.pair.left.outcomes();
        Wire::open(from, "eth0").send(frame);
        let delivered = self.delivered();
        (delivered, self.pair.left.outcomes().since(&before))
    }

    fn right_sends(&self, packet: &Tunnelled) -> (bool, Outcomes) {
        self.send(&self.pair.right.netns, &packet.frame())
    }

    fn stranger_sends(&self) -> (bool, Outcomes) {
        let mut packet = self.honest.clone();
        packet.outer_mac.0 = link_mac(&self.stranger, "eth0");
        packet.outer.0 = STRANGER;
        self.send(&self.stranger, &packet.frame())
    }
}

#[test]
fn an_honest_packet_arrives() {
    let forger = Forger::new(&Options::ebpf());
    let (delivered, counted) = forger.right_sends(&forger.honest);
    assert!(delivered, "{counted:?}");
    assert_eq!(
        counted.get(Outcome::ForgedOuterSource) + counted.get(Outcome::ForgedInnerSource),
        0
    );
}

#[test]
fn sources_are_verified() {
    let forger = Forger::new(&Options::ebpf());

    let (delivered, counted) = forger.stranger_sends();
    assert_eq!((delivered, counted.get(Outcome::ForgedOuterSource)), (false, 1), "{counted:?}");

    // A third node's subnet, and the receiver's own.
    let other = "10.244.203.0/24".parse().expect("a subnet");
    forger.pair.etcd.put_subnet(
        &key(other),
        r#"{"PublicIP":"192.0.2.77","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:5e:00:53:77"}}"#,
    );
    flannel_tests::wait::holds("the third peer", Duration::from_secs(5), || {
        forger.pair.left.peers().len() == 2
    });
    let own = forger.pair.left.subnet().nth(99).expect("an address");
    for source in [Ipv4Addr::new(10, 244, 203, 5), own] {
        let mut packet = forger.honest.clone();
        packet.inner.0 = source;
        let (delivered, counted) = forger.right_sends(&packet);
        let expected = (false, 1);
        assert_eq!(
            (delivered, counted.get(Outcome::ForgedInnerSource)),
            expected,
            "{source} {counted:?}"
        );
    }

    // Routed traffic from beyond a known peer is legitimate.
    let mut packet = forger.honest.clone();
    packet.inner.0 = Ipv4Addr::new(203, 0, 113, 5);
    let (delivered, counted) = forger.right_sends(&packet);
    assert!(delivered, "{counted:?}");
    assert_eq!(counted.get(Outcome::ForgedInnerSource), 0, "{counted:?}");

    // The flow that the forger imitates is not hurt.
    forger.pair.client.ping(forger.pair.server.address, "-c 2 -i 0.1 -W 2");
}

#[test]
fn verifying_can_only_count() {
    let forger = Forger::new(&verify("count"));
    let (delivered, counted) = forger.stranger_sends();
    assert_eq!((delivered, counted.get(Outcome::ForgedOuterSource)), (true, 1), "{counted:?}");
}

#[test]
fn verifying_can_be_off() {
    let forger = Forger::new(&verify("off"));
    let (delivered, counted) = forger.stranger_sends();
    assert_eq!((delivered, counted.get(Outcome::ForgedOuterSource)), (true, 0), "{counted:?}");
}

#[test]
fn a_stranger_cannot_use_a_confirmed_flow() {
    let forger = Forger::new(&Options::ebpf());
    let (target, left) = (forger.pair.server.target(), &forger.pair.left);
    let running = forger.pair.client.start_traffic(SPACED, target, "--seconds 3");
    std::thread::sleep(Duration::from_secs(1));
    let before = left.outcomes();
    // Every tuple that could be confirmed: the client's port is among them.
    let mut packet = forger.honest.clone();
    packet.outer_mac.0 = link_mac(&forger.stranger, "eth0");
    packet.outer.0 = STRANGER;
    let wire = Wire::open(&forger.stranger, "eth0");
    let mut sent = 0;
    for port in (32_768..61_000).step_by(7) {
        packet.ports = (target.port(), port);
        wire.send(&packet.frame());
        sent += 1;
    }
    assert!(!forger.delivered());
    assert_eq!(left.outcomes().since(&before).get(Outcome::ForgedOuterSource), sent);
    assert_eq!(running.finish().lost, 0);
}

#[test]
fn foreign_tunnels_are_left_to_the_kernel() {
    let forger = Forger::new(&Options::ebpf());
    let change = |change: fn(&mut Tunnelled)| {
        let mut packet = forger.honest.clone();
        change(&mut packet);
        forger.right_sends(&packet)
    };
    let (delivered, counted) = change(|packet| packet.vni = 2);
    assert_eq!((delivered, counted.get(Outcome::KernelForeignVni)), (false, 1), "{counted:?}");
    let (delivered, counted) = change(|packet| packet.flags = 0);
    assert_eq!((delivered, counted.get(Outcome::KernelForeignVni)), (false, 1), "{counted:?}");
    let (delivered, counted) = change(|packet| packet.inner_mac.1 = [2, 0, 0, 0, 0, 9]);
    assert_eq!((delivered, counted.get(Outcome::KernelForeignMac)), (false, 1), "{counted:?}");
    let (delivered, counted) = change(|packet| packet.port = 4789);
    assert_eq!((delivered, counted.get(Outcome::FastDecap)), (false, 0), "{counted:?}");
}

#[test]
fn truncated_at_every_byte() {
    let mut forger = Forger::new(&Options::ebpf());
    let whole = forger.honest.frame();
    assert!(whole.len() > OUTER + 42);
    let wire = Wire::open(&forger.pair.right.netns, "eth0");
    for length in 14..whole.len() {
        wire.send(&whole[..length]);
    }
    // Cut by lengths that the headers tell: the outer IP packet is whole, what
    // it carries is not.
    for cut in 1..whole.len() - OUTER + 8 {
        let mut frame = whole[..whole.len() - cut].to_vec();
        let total = u16::try_from(frame.len() - 14).expect("a short frame");
        frame[16..18].copy_from_slice(&total.to_be_bytes());
        frame[38..40].copy_from_slice(&(total - 20).to_be_bytes());
        frame[40..42].fill(0);
        let header: [u8; 20] = frame[14..34].try_into().expect("20 bytes");
        let mut parsed = etherparse::Ipv4Header::from_slice(&header).expect("a header").0;
        parsed.header_checksum = parsed.calc_header_checksum();
        frame[24..26].copy_from_slice(&parsed.header_checksum.to_be_bytes());
        wire.send(&frame);
    }
    assert!(!forger.delivered());
    assert!(forger.pair.left.agent_ended().is_none());
    let (delivered, counted) = forger.right_sends(&forger.honest);
    assert!(delivered, "{counted:?}");
    assert_eq!(forger.pair.traffic(SPACED, "--seconds 0.5").lost, 0);
}

#[test]
fn a_pod_cannot_send_tunnel_packets() {
    let forger = Forger::new(&Options::ebpf());
    let pair = &forger.pair;
    // From server (on right) to the node left: masqueraded, it would come from
    // a known peer.
    let before = pair.right.outcomes();
    let mut packet = forger.honest.clone();
    let bridge = link_mac(&pair.right.netns, "cni0");
    packet.outer_mac = (link_mac(&pair.server.netns, "eth0"), bridge);
    packet.outer = (pair.server.address, pair.left.address);
    Wire::open(&pair.server.netns, "eth0").send(&packet.frame());
    assert!(!forger.delivered());
    let counted = pair.right.outcomes().since(&before);
    assert_eq!(counted.get(Outcome::ForgedByPod), 1, "{counted:?}");
}
