//! The firewall's rules in a real kernel, with real packets. Needs root.

mod takeover;

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt as _;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use self::takeover::{CHAINS, SOMEONES, restore};
use crate::netns::{Namespace, in_netns, run, try_run};
use flannel_agent::firewall::Mode;
use flannel_agent::firewall::chosen::{self, Chosen};
use flannel_agent::firewall::nft::Nft;
use flannel_core::firewall::Rules;
use flannel_core::firewall::names::Mine;

const SHORT: Duration = Duration::from_millis(800);

fn rules() -> Rules {
    Rules {
        network: "10.5.0.0/16".parse().unwrap(),
        subnet: "10.5.1.0/24".parse().unwrap(),
        masquerade: true,
        forward: true,
        fully_random: true,
        vxlan_port: 8472,
    }
}

fn ruleset() -> String {
    run("nft -a list ruleset")
}

/// A node (the calling thread's namespace) between a pod (10.5.1.2) and the
/// outside (192.0.2.2), which stands for 10.5.2.2 of another node, too.
struct Node {
    pod: Namespace,
    outside: Namespace,
}

impl Node {
    fn new() -> Self {
        let node = Self { pod: Namespace::new(), outside: Namespace::new() };
        run("ip link add pod type veth peer name peer");
        run(&format!("ip link set peer netns {}", node.pod.id()));
        run("ip link add eth0 type veth peer name peer");
        run(&format!("ip link set peer netns {}", node.outside.id()));
        run("ip address add 10.5.1.1/24 dev pod");
        run("ip address add 192.0.2.1/24 dev eth0");
        run("ip link set pod up");
        run("ip link set eth0 up");
        run("ip route add 10.5.2.0/24 via 192.0.2.2");
        run("sysctl -qw net.ipv4.ip_forward=1");
        node.pod.sh("ip link set peer up");
        node.pod.sh("ip address add 10.5.1.2/24 dev peer");
        node.pod.sh("ip route add default via 10.5.1.1");
        node.outside.sh("ip link set peer up");
        node.outside.sh("ip address add 192.0.2.2/24 dev peer");
        node.outside.sh("ip address add 10.5.2.2/32 dev peer");
        node.outside.sh("ip route add 10.5.1.0/24 via 192.0.2.1");
        // A link that is up may get its queues only with the next round of the
        // kernel's linkwatch, a second later; ARP asks again after another.
        let way = (0..10).find_map(|_| node.udp(3999, [192, 0, 2, 2]));
        assert!(way.is_some(), "the pod does not reach the outside");
        node
    }

    /// The source that `to` sees of a datagram from the pod, after an answer
    /// went back; `None` if either got lost.
    fn udp(&self, from_port: u16, to: [u8; 4]) -> Option<SocketAddr> {
        // Each call is a connection of its own.
        static PORT: AtomicU16 = AtomicU16::new(10_000);
        let to = SocketAddr::from((to, PORT.fetch_add(1, Ordering::Relaxed)));
        let server = self.outside.run(move || bind(to));
        let client = self.pod.run(move || bind(SocketAddr::from(([10, 5, 1, 2], from_port))));
        server.set_read_timeout(Some(SHORT)).unwrap();
        client.set_read_timeout(Some(SHORT)).unwrap();
        client.send_to(b"ask", to).unwrap();
        let mut buffer = [0; 16];
        let (_, source) = server.recv_from(&mut buffer).ok()?;
        server.send_to(b"answer", source).unwrap();
        let (length, _) = client.recv_from(&mut buffer).ok()?;
        assert_eq!(&buffer[..length], b"answer");
        Some(source)
    }

    /// The source that the outside sees of a TCP connection from the pod.
    fn tcp(&self) -> SocketAddr {
        let server = self.outside.run(|| TcpListener::bind("192.0.2.2:80").unwrap());
        let mut client = self
            .pod
            .run(|| TcpStream::connect_timeout(&"192.0.2.2:80".parse().unwrap(), SHORT * 4))
            .unwrap();
        let (mut stream, source) = server.accept().unwrap();
        client.write_all(b"ask").unwrap();
        let mut buffer = [0; 3];
        stream.read_exact(&mut buffer).unwrap();
        assert_eq!(&buffer, b"ask");
        source
    }
}

/// A child between fork and exec may hold the last call's socket for a moment.
fn bind(to: SocketAddr) -> UdpSocket {
    let soon = || {
        std::thread::sleep(Duration::from_millis(10));
        UdpSocket::bind(to).ok()
    };
    UdpSocket::bind(to).ok().or_else(|| (0..100).find_map(|_| soon())).expect("a free port")
}

#[test]
fn rules_are_written_once_and_repaired() {
    in_netns(async {
        let nft = Nft::default();
        run("nft add table ip someone");
        assert!(nft.ensure(&rules()).await.unwrap());
        let written = ruleset();
        assert!(written.contains("table ip flannel-ipv4"), "{written}");
        assert!(!nft.ensure(&rules()).await.unwrap());
        assert_eq!(ruleset(), written, "nothing is written when nothing differs");

        for damage in [
            "nft flush chain ip flannel-ipv4 postrtg",
            "nft insert rule ip flannel-ipv4 postrtg return",
            "nft delete chain ip flannel-ipv4 forward",
            "nft delete table ip flannel-ipv4",
        ] {
            let _ = try_run("nft flush chain ip flannel-ipv4 forward");
            run(damage);
            nft.ensure(&rules()).await.unwrap();
            let text = run("nft list table ip flannel-ipv4");
            assert_eq!(text.matches("flanneld masq").count(), 8, "{damage}: {text}");
            assert_eq!(text.matches("flanneld forward").count(), 2, "{damage}: {text}");
        }
        run("nft add table ip flannel-ipv4 { flags dormant ; }");
        assert!(nft.ensure(&rules()).await.unwrap());
        let text = run("nft list table ip flannel-ipv4");
        assert!(!text.contains("dormant") && text.contains("flanneld masq"), "{text}");
        assert!(!nft.ensure(&rules()).await.unwrap());

        let other = Rules { subnet: "10.5.9.0/24".parse().unwrap(), ..rules() };
        nft.ensure(&other).await.unwrap();
        let text = run("nft list table ip flannel-ipv4");
        assert!(text.contains("10.5.9.0/24") && !text.contains("10.5.1.0/24"), "{text}");

        nft.remove().await.unwrap();
        nft.remove().await.unwrap();
        assert_eq!(run("nft list tables").trim(), "table ip someone");
    });
}

#[test]
fn without_masquerade_there_are_only_forward_rules() {
    in_netns(async {
        let nft = Nft::default();
        nft.ensure(&rules()).await.unwrap();
        nft.ensure(&Rules { masquerade: false, ..rules() }).await.unwrap();
        let text = run("nft list table ip flannel-ipv4");
        assert!(!text.contains("masq") && text.contains("chain forward"), "{text}");
    });
}

#[test]
fn a_missing_program_names_its_package() {
    in_netns(async {
        let error = Nft::with_program("no-such-nft").ensure(&rules()).await.unwrap_err();
        assert!(error.to_string().contains("install the package nftables"), "{error}");
    });
}

/// The kernel itself says what there is to list: a start waits for each run.
#[test]
fn a_first_start_runs_the_program_once() {
    in_netns(async {
        let dir = tempfile::tempdir().unwrap();
        let (program, calls) = (dir.path().join("nft"), dir.path().join("calls"));
        let script = format!("#!/bin/sh\necho \"$*\" >> {}\nexec nft \"$@\"\n", calls.display());
        fs::write(&program, script).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let nft = Nft::with_program(program.display().to_string());
        assert!(nft.ensure(&rules()).await.unwrap());
        assert_eq!(fs::read_to_string(&calls).unwrap(), "-f -\n");
        assert!(ruleset().contains("flannel-ipv4"));
        assert!(!nft.ensure(&rules()).await.unwrap());
        assert_eq!(fs::read_to_string(&calls).unwrap().lines().count(), 2, "and a list");
    });
}

#[test]
fn a_missing_capability_is_named() {
    in_netns(async {
        // root's children get the bounding set back.
        for set in [caps::CapSet::Bounding, caps::CapSet::Effective] {
            caps::drop(None, set, caps::Capability::CAP_NET_ADMIN).unwrap();
        }
        let error = Nft::default().ensure(&rules()).await.unwrap_err();
        assert!(error.to_string().contains("CAP_NET_ADMIN"), "{error}");
    });
}

#[test]
fn pods_are_masqueraded_to_the_outside_only() {
    in_netns(async {
        let node = Node::new();
        assert_eq!(node.udp(4000, [192, 0, 2, 2]).unwrap().to_string(), "10.5.1.2:4000");
        let nft = Nft::default();
        nft.ensure(&rules()).await.unwrap();

        let node_address = Ipv4Addr::new(192, 0, 2, 1);
        assert_eq!(node.tcp().ip(), node_address);
        // To another node's pod the source stays.
        assert_eq!(node.udp(4001, [10, 5, 2, 2]).unwrap().to_string(), "10.5.1.2:4001");
        // The tunnel's port is never taken, even where the pod itself has it.
        for port in [8472, 53, 4002, 60000] {
            let source = node.udp(port, [192, 0, 2, 2]).unwrap();
            assert_eq!(source.ip(), node_address);
            assert!(source.port() > 8472, "{source}");
        }
        // Marked packets are somebody else's.
        run("nft add table ip marks");
        run("nft add chain ip marks pre { type filter hook prerouting priority mangle ; }");
        run("nft add rule ip marks pre udp sport 4003 meta mark set 0x4000");
        assert_eq!(node.udp(4003, [192, 0, 2, 2]).unwrap().to_string(), "10.5.1.2:4003");

        nft.remove().await.unwrap();
        assert_eq!(node.udp(4004, [192, 0, 2, 2]).unwrap().to_string(), "10.5.1.2:4004");
    });
}

/// With this iptables' FORWARD policy of DROP, forwarding works while our
/// rules are there, and not before or after.
async fn forwards_in_spite_of_drop(iptables: &str) {
    let node = Node::new();
    let outside = [192, 0, 2, 2];
    assert!(node.udp(5000, outside).is_some());
    run(&format!("{iptables} -P FORWARD DROP"));
    run(&format!("{iptables} -A FORWARD -m conntrack --ctstate INVALID -j DROP"));
    assert_eq!(node.udp(5001, outside), None);

    let nft = Nft::default();
    nft.ensure(&rules()).await.unwrap();
    assert!(node.udp(5002, outside).is_some());
    let list = || run(&format!("{iptables} -S FORWARD"));
    let written = list();
    assert_eq!(written.matches("flanneld forward").count(), 2, "{written}");
    nft.ensure(&rules()).await.unwrap();
    assert_eq!(list(), written);

    run(&format!("{iptables} -F FORWARD"));
    run(&format!("{iptables} -A FORWARD -s 203.0.113.0/24 -j ACCEPT"));
    assert_eq!(node.udp(5003, outside), None);
    nft.ensure(&rules()).await.unwrap();
    assert!(node.udp(5004, outside).is_some());

    let other = Rules { network: "10.6.0.0/16".parse().unwrap(), ..rules() };
    nft.ensure(&other).await.unwrap();
    assert!(!list().contains("10.5.0.0/16") && list().contains("10.6.0.0/16"), "{}", list());
    nft.ensure(&rules()).await.unwrap();

    nft.remove().await.unwrap();
    assert_eq!(node.udp(5005, outside), None);
    let left = list();
    assert_eq!(left.trim(), "-P FORWARD DROP\n-A FORWARD -s 203.0.113.0/24 -j ACCEPT");

    // A policy that became ACCEPT needs no rules.
    nft.ensure(&rules()).await.unwrap();
    run(&format!("{iptables} -P FORWARD ACCEPT"));
    nft.ensure(&rules()).await.unwrap();
    assert!(!list().contains("flanneld"), "{}", list());
}

#[test]
fn forwarding_works_in_spite_of_iptables_nft_dropping() {
    in_netns(forwards_in_spite_of_drop("iptables-nft"));
}

#[test]
fn forwarding_works_in_spite_of_legacy_iptables_dropping() {
    in_netns(forwards_in_spite_of_drop("iptables-legacy"));
}

/// Which of five kinds of packets keep their source.
fn verdicts(node: &Node) -> [bool; 5] {
    run("nft add table ip marks");
    run("nft add chain ip marks pre { type filter hook prerouting priority mangle ; }");
    run("nft flush chain ip marks pre");
    run("nft add rule ip marks pre udp sport 4103 meta mark set 0x4000");
    let from_pod = |port, to| node.udp(port, to).unwrap().ip() == Ipv4Addr::new(10, 5, 1, 2);
    let server = node.outside.run(|| UdpSocket::bind("10.5.2.2:54").unwrap());
    server.set_read_timeout(Some(SHORT)).unwrap();
    let host = UdpSocket::bind("192.0.2.1:4104").unwrap();
    host.send_to(b"ask", "10.5.2.2:54").unwrap();
    let (_, source) = server.recv_from(&mut [0; 8]).unwrap();
    let server = node.pod.run(|| UdpSocket::bind("10.5.1.2:55").unwrap());
    server.set_read_timeout(Some(SHORT)).unwrap();
    let outside = node.outside.run(|| UdpSocket::bind("192.0.2.2:4105").unwrap());
    outside.send_to(b"ask", "10.5.1.2:55").unwrap();
    let (_, inward) = server.recv_from(&mut [0; 8]).unwrap();
    let verdicts = [
        from_pod(4101, [192, 0, 2, 2]),
        from_pod(4102, [10, 5, 2, 2]),
        from_pod(4103, [192, 0, 2, 2]),
        source.port() == 4104,
        inward.to_string() == "192.0.2.2:4105",
    ];
    run("nft delete table ip marks");
    verdicts
}

async fn treats_packets_as_flannel(mode: Mode, before: Option<&str>) {
    let node = Node::new();
    if let Some(iptables) = before {
        restore(iptables, SOMEONES);
    }
    let firewall = Chosen::choose(mode, Vec::new()).await.unwrap();
    firewall.ensure(&rules()).await.unwrap();
    // Masquerading takes a random port, seldom the same one.
    assert_eq!(verdicts(&node), [false, true, true, false, true], "{:?}", firewall.describe());
    // The tunnel's port is never taken, even where the pod itself has it.
    for port in [8472, 4200, 60000] {
        let source = node.udp(port, [192, 0, 2, 2]).unwrap();
        assert!(source.port() > 8472, "{source}");
    }
}

#[test]
fn every_mode_treats_packets_as_flannel_does() {
    in_netns(async {
        let node = Node::new();
        restore("iptables-nft", CHAINS);
        assert_eq!(verdicts(&node), [false, true, true, false, true]);
    });
    in_netns(treats_packets_as_flannel(Mode::Nftables, None));
    in_netns(treats_packets_as_flannel(Mode::Iptables, None));
    in_netns(treats_packets_as_flannel(Mode::Auto, Some("iptables-legacy")));
}

#[test]
fn auto_uses_what_the_nodes_other_rules_use() {
    in_netns(async {
        let name = async || Chosen::choose(Mode::Auto, Vec::new()).await.unwrap().describe().0;
        assert_eq!(name().await, "nftables");
        restore("iptables-nft", SOMEONES);
        assert_eq!(name().await, "nftables");
        // Empty tables are nobody's.
        run("iptables-legacy -S");
        assert_eq!(name().await, "nftables");
        restore("iptables-legacy", SOMEONES);
        assert_eq!(name().await, "iptables-legacy (legacy)");
    });
}

#[test]
fn a_change_of_mode_and_cleanup_leave_nothing() {
    in_netns(async {
        let modes = [
            Mode::Nftables,
            Mode::Iptables,
            Mode::Nftables,
            Mode::None,
            Mode::Iptables,
            Mode::None,
        ];
        for mode in modes {
            let firewall = Chosen::choose(mode, Vec::new()).await.unwrap();
            firewall.ensure(&rules()).await.unwrap();
            let text = ruleset();
            assert_eq!(text.contains("flannel-ipv4"), mode == Mode::Nftables, "{text}");
            assert_eq!(text.contains("FLANNEL-FWD"), mode == Mode::Iptables, "{text}");
        }
        for mode in [Mode::Nftables, Mode::Iptables] {
            Chosen::choose(mode, Vec::new()).await.unwrap().ensure(&rules()).await.unwrap();
            chosen::remove_all(&[], &Mine::default()).await.unwrap();
            assert!(!ruleset().to_lowercase().contains("flannel"), "{}", ruleset());
        }
    });
}

#[test]
fn without_forward_rules_forward_has_none_of_ours() {
    in_netns(async {
        run("iptables-nft -P FORWARD DROP");
        for mode in [Mode::Nftables, Mode::Iptables] {
            let firewall = Chosen::choose(mode, Vec::new()).await.unwrap();
            firewall.ensure(&rules()).await.unwrap();
            let both = || ruleset() + &run("iptables-nft-save");
            assert!(both().contains("flanneld forward"));
            firewall.ensure(&Rules { forward: false, ..rules() }).await.unwrap();
            let text = both();
            assert!(!text.contains("flanneld forward") && text.contains("flanneld masq"), "{text}");
        }
    });
}
