//! The udp backend: a config without `Backend`, a TUN device, packets in UDP.

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::time::Duration;

use etherparse::PacketBuilder;
use flannel_core::backend::BackendKind;
use flannel_core::status::{Counters, DatapathKind, UdpCounters, UdpOutcome};
use flannel_tests::agent::Options;
use flannel_tests::etcd::Etcd;
use flannel_tests::lab::Lab;
use flannel_tests::load::{BULK, ECHOES, MESSAGES, REQUESTS, assert_whole};
use flannel_tests::node::Node;
use flannel_tests::pair::Pair;
use flannel_tests::pod::Pod;
use flannel_tests::process::Process;
use flannel_tests::udp::PORT;
use flannel_tests::wait;

const CONFIG: &str = r#"{"Network":"10.2.0.0/16"}"#;
const NETWORK: &str = "10.2.0.0/16";
const SOON: Duration = Duration::from_secs(1);

fn two(options: &Options) -> Pair {
    let lab = Lab::new();
    let etcd = lab.empty_etcd();
    etcd.put_config(CONFIG);
    let (mut left, mut right) = (lab.node(1), lab.node(2));
    left.start(&etcd, options);
    right.start(&etcd, options);
    Pair::with_pods(lab, etcd, left, right)
}

/// A node with the agent and one with the simple proxy; the agent's pod
/// serves.
struct Mixed {
    client: Pod,
    server: Pod,
    proxy: Process,
    key: String,
    simple: Node,
    ours: Node,
    etcd: Etcd,
    lab: Lab,
}

fn mixed(options: &Options) -> Mixed {
    let lab = Lab::new();
    let etcd = lab.empty_etcd();
    etcd.put_config(CONFIG);
    let (mut ours, mut simple) = (lab.node(1), lab.node(2));
    let key = simple.publish_udp(&etcd, "10.2.202.0/24");
    ours.start(&etcd, options);
    let proxy = simple.start_simple(NETWORK, &[(ours.subnet(), ours.address)]);
    let client = simple.pod(2);
    let mut server = ours.pod(2);
    server.serve();
    reaches(&client, server.address);
    Mixed { client, server, proxy, key, simple, ours, etcd, lab }
}

#[track_caller]
fn reaches(from: &Pod, to: Ipv4Addr) {
    wait::holds(&format!("ping {to}"), Duration::from_secs(10), || {
        from.netns.ping(to, "-c 1 -W 1").0
    });
}

/// What the proxy counted of a peer.
#[track_caller]
fn by_proxy(node: &Node, of: &Node) -> UdpCounters {
    match node.peer(of).counters {
        Counters::Udp(counters) => counters,
        other @ (Counters::Programs(_) | Counters::Shared {}) => panic!("{other:?}"),
    }
}

/// Everything that the device needs is there.
fn complete(node: &Node) -> bool {
    let first = node.subnet().network();
    node.netns.try_sh("ip link show flannel0")
        && node.netns.ip("address show dev flannel0").contains(&format!("{first}/32"))
        && node.netns.ip("link show flannel0").contains("mtu 1472")
        && node.netns.ip("route show").contains(&format!("{NETWORK} dev flannel0"))
}

#[test]
fn pods_speak_both_ways_and_counters_tell() {
    let two = two(&Options::default());
    let Pair { client, server, left, right, etcd, .. } = &two;
    assert_eq!(left.environment("FLANNEL_MTU").as_deref(), Some("1472"));
    assert_eq!(left.environment("FLANNEL_NETWORK").as_deref(), Some(NETWORK));
    for (subnet, value) in etcd.subnets() {
        let node = if subnet == flannel_tests::plain::key(left.subnet()) { left } else { right };
        assert_eq!(value, format!(r#"{{"PublicIP":"{}","PublicIPv6":null}}"#, node.address));
    }
    assert!(complete(left) && complete(right));

    // Each proxy counts a hop, as flanneld's do, and each node one.
    let text = client.ping(server.address, "-c 3 -i 0.2 -W 2");
    assert!(text.contains("ttl=60"), "{text}");
    server.ping(client.address, "-c 3 -i 0.2 -W 2");
    // The largest packet, and one that has to be cut.
    client.ping(server.address, "-c 2 -i 0.2 -W 2 -M do -s 1444");
    client.ping(server.address, "-c 2 -i 0.2 -W 2 -s 4000");
    let (answered, text) = client.netns.ping(server.address, "-c 1 -W 1 -M do -s 1445");
    assert!(!answered && text.contains("mtu"), "{text}");

    let to = server.target();
    assert_whole(&client.traffic(MESSAGES, to, "--from 1 --upto 1450"));
    assert_whole(&client.traffic(ECHOES, to, "--from 1 --upto 1450"));
    assert_whole(&client.traffic(BULK, to, "--megabytes 32"));
    assert_whole(&client.traffic(ECHOES, to, "--from 20000 --upto 20009 --segment 1000"));

    let status = left.status();
    assert_eq!(status.datapath.mode, Some(DatapathKind::UdpProxy), "{status:?}");
    assert_eq!(status.backend, Some(BackendKind::Udp), "{status:?}");
    assert_eq!(status.health, [], "{status:?}");
    let counted = by_proxy(left, right);
    assert!(counted.tx_udp_packets > 100, "{counted:?}");
    assert!(counted.rx_udp_bytes > 1_000_000, "{counted:?}");
    let outcomes = left.outcomes();
    assert!(
        outcomes.get(UdpOutcome::Encapsulated) > 100
            && outcomes.get(UdpOutcome::Decapsulated) > 100,
        "{outcomes:?}"
    );
    for name in [
        UdpOutcome::Malformed,
        UdpOutcome::ForgedSource,
        UdpOutcome::ForeignSender,
        UdpOutcome::DeliveryFailed,
    ] {
        assert_eq!(outcomes.get(name), 0, "{name:?}: {outcomes:?}");
    }
}

#[test]
fn nodes_that_carry_one_packet_at_a_time_are_peers() {
    let two = mixed(&Options::default());
    let Mixed { client, server, ours, simple, .. } = &two;
    let text = client.ping(server.address, "-c 3 -i 0.2 -W 2");
    assert!(text.contains("ttl=60"), "{text}");
    server.ping(client.address, "-c 3 -i 0.2 -W 2");
    let to = server.target();
    assert_whole(&client.traffic(MESSAGES, to, "--from 1 --upto 1450"));
    assert_whole(&client.traffic(ECHOES, to, "--from 1 --upto 1450"));
    assert_whole(&client.traffic(BULK, to, "--megabytes 8"));
    assert!(by_proxy(ours, simple).rx_udp_packets > 100);
    assert!(two.lab.dir().exists() && !two.proxy.log().contains("Error"));
}

/// A socket in a pod that others send to.
struct Target {
    socket: UdpSocket,
    address: SocketAddrV4,
}

impl Target {
    fn new(pod: &Pod) -> Self {
        let socket = pod.netns.inside(|| UdpSocket::bind("0.0.0.0:0").unwrap());
        socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        let port = socket.local_addr().unwrap().port();
        Self { socket, address: SocketAddrV4::new(pod.address, port) }
    }

    /// A packet to it that says it comes from `source`.
    fn packet(&self, source: [u8; 4]) -> Vec<u8> {
        let builder = PacketBuilder::ipv4(source, self.address.ip().octets(), 60)
            .udp(4000, self.address.port());
        let mut bytes = Vec::new();
        builder.write(&mut bytes, b"forged").unwrap();
        bytes
    }

    /// How many packets have arrived.
    fn arrived(&self) -> usize {
        let mut buffer = [0; 100];
        std::iter::from_fn(|| self.socket.recv(&mut buffer).ok()).count()
    }
}

fn send(from: &flannel_tests::netns::Netns, to: Ipv4Addr, packets: &[Vec<u8>]) {
    from.inside(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        for packet in packets {
            socket.send_to(packet, SocketAddrV4::new(to, PORT)).unwrap();
        }
    });
}

#[test]
fn forged_datagrams_are_dropped_and_counted() {
    let mixed = mixed(&Options::default());
    let Mixed { server, ours, simple, lab, .. } = &mixed;
    let stranger = lab.stranger(Ipv4Addr::new(192, 0, 2, 99));
    let target = Target::new(server);
    let before = ours.outcomes();
    // From a host that is no node, whatever it says.
    let packets = [target.packet([10, 2, 202, 9]), target.packet([8; 4])];
    send(&stranger, ours.address, &packets);
    assert_eq!(target.arrived(), 0);
    // From a node, with sources that are not its own.
    let packets = [
        target.packet([10, 2, 203, 9]),
        target.packet(ours.subnet().nth(9).unwrap().octets()),
        vec![],
        vec![0x45; 7],
        vec![0x65; 100],
    ];
    send(&simple.netns, ours.address, &packets);
    assert_eq!(target.arrived(), 0);
    let since = ours.outcomes().since(&before);
    assert_eq!(since.get(UdpOutcome::ForeignSender), 2, "{since:?}");
    assert_eq!(since.get(UdpOutcome::ForgedSource), 2, "{since:?}");
    assert_eq!(since.get(UdpOutcome::Malformed), 3, "{since:?}");
    // And with its own.
    send(&simple.netns, ours.address, &[target.packet([10, 2, 202, 9])]);
    assert_eq!(target.arrived(), 1);
}

#[test]
fn the_source_check_can_only_count() {
    let options = Options { verify_source: Some("count"), ..Options::default() };
    let mixed = mixed(&options);
    let Mixed { server, ours, simple, .. } = &mixed;
    let target = Target::new(server);
    let before = ours.outcomes();
    // Its way back is nobody's, so a strict reverse path filter must be off.
    send(&simple.netns, ours.address, &[target.packet([10, 2, 203, 9])]);
    assert_eq!(target.arrived(), 1);
    assert_eq!(ours.outcomes().since(&before).get(UdpOutcome::ForgedSource), 1);
}

#[test]
fn senders_are_told_what_cannot_be_reached() {
    let two = two(&Options::default());
    let nobody = Ipv4Addr::new(10, 2, 254, 254);
    let (answered, text) = two.client.netns.ping(nobody, "-c 1 -W 2");
    assert!(!answered && text.contains("Destination Net Unreachable"), "{text}");
    // The first hop is the node, the second its proxy, the third the other's.
    for hops in [2, 3] {
        let (answered, text) =
            two.client.netns.ping(two.server.address, &format!("-c 1 -W 2 -t {hops}"));
        assert!(!answered && text.contains("Time to live exceeded"), "{hops}: {text}");
    }
    let outcomes = two.left.outcomes();
    assert_eq!(outcomes.get(UdpOutcome::NoPeer), 1, "{outcomes:?}");
    assert_eq!(outcomes.get(UdpOutcome::IcmpSent), 2, "{outcomes:?}");
}

#[test]
fn what_is_removed_comes_back_within_a_second() {
    let two = two(&Options::default());
    let Pair { left, client, server, .. } = &two;
    let first = left.subnet().network();
    for damage in [
        format!("route del {NETWORK} dev flannel0"),
        format!("address del {first}/32 dev flannel0"),
        "link set flannel0 mtu 1300".to_owned(),
        "link set flannel0 down".to_owned(),
        "link del flannel0".to_owned(),
    ] {
        left.netns.ip(&damage);
        wait::holds(&damage, SOON, || complete(left));
        reaches(client, server.address);
    }
    left.netns.ip("address add 10.2.77.1/32 dev flannel0");
    wait::holds("a foreign address goes", SOON, || {
        !left.netns.ip("address show dev flannel0").contains("10.2.77.1")
    });
    assert_eq!(left.not_well(), []);
}

#[test]
fn a_killed_agent_leaves_device_address_and_route() {
    let mut two = two(&Options::default());
    let stream = two.client.start_traffic(
        REQUESTS,
        two.server.target(),
        "--seconds 4 --pause-us 1000 --patience 10",
    );
    two.left.kill_agent();
    assert!(complete(&two.left));
    two.left.start(&two.etcd, &Options::default());
    assert!(two.client.netns.ping(two.server.address, "-c 1 -W 1").0, "at once");
    // The connection has waited.
    assert!(stream.finish().rate > 10.0);
    two.left.stop_agent();
    assert!(complete(&two.left));
    two.left.start(&two.etcd, &Options::default());
    reaches(&two.client, two.server.address);
}

#[test]
fn peers_come_and_go() {
    let mut mixed = mixed(&Options::default());
    mixed.etcd.ctl(&["del", &mixed.key]);
    wait::holds("the peer has gone", SOON, || mixed.ours.peers().is_empty());
    assert!(!mixed.server.netns.ping(mixed.client.address, "-c 1 -W 1").0);
    mixed.simple.publish_udp(&mixed.etcd, "10.2.202.0/24");
    wait::holds("the peer is back", SOON, || mixed.ours.peers().len() == 1);
    reaches(&mixed.server, mixed.client.address);
    // A lease of another backend is a peer as well, as with flanneld.
    let value = r#"{"PublicIP":"192.0.2.50","BackendType":"vxlan","BackendData":{"VtepMAC":"02:00:00:00:00:07"}}"#;
    mixed.etcd.ctl(&["put", "/coreos.com/network/subnets/10.2.203.0-24", value]);
    wait::holds("any lease is a peer", SOON, || mixed.ours.peers().len() == 2);
}

#[test]
fn a_port_in_use_is_named() {
    let lab = Lab::new();
    let etcd = lab.empty_etcd();
    etcd.put_config(CONFIG);
    let mut node = lab.node(1);
    let address = node.address;
    let _other = node.netns.inside(|| UdpSocket::bind((address, PORT)).unwrap());
    node.launch(&etcd, &Options::default());
    wait::holds("the agent ends", Duration::from_secs(10), || node.agent_ended().is_some());
    let log = node.agent_log();
    assert!(log.contains(&format!("{address}:{PORT}")) && log.contains("ss -ulnp"), "{log}");
}

#[test]
fn cleanup_removes_the_device() {
    cleaned_up(&[], false);
}

#[test]
fn flannel0_makes_way_for_flannelds_own() {
    cleaned_up(&["--keep-device"], true);
}

fn cleaned_up(flags: &[&str], file_stays: bool) {
    let mut two = two(&Options::default());
    assert!(two.left.stop_agent().success());
    assert!(two.left.netns.try_sh("ip link show flannel0"));
    let output = two.left.cleanup_with(flags);
    assert!(output.status.success(), "{output:?}");
    assert!(!two.left.netns.try_sh("ip link show flannel0"));
    assert!(!two.left.netns.ip("route show").contains("10.2.0.0/16"));
    assert_eq!(two.left.subnet_file().exists(), file_stays);
}
