//! Rules that judge each packet, and not the connection, see each packet.

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::thread;
use std::time::Duration;

use flannel_tests::agent::Options;
use flannel_tests::beside::{Carried, Way, pairs};
use flannel_tests::endpoint::Answers;
use flannel_tests::ftp;
use flannel_tests::load::{REQUESTS, SPACED, assert_whole};
use flannel_tests::netns::Netns;
use flannel_tests::node::Node;
use flannel_tests::packet::Wire;
use flannel_tests::pair::Pair;
use flannel_tests::wait;

/// Within which a rule holds that no event tells of.
fn window() -> Options {
    Options { window: Some("500ms"), ..Options::default() }
}

/// The window, and what a busy machine needs.
const SETTLED: Duration = Duration::from_millis(800);

/// Waits until the rules are followed on our path: no event tells of the tables of
/// legacy iptables.
fn noticed(node: &Node, way: Way) {
    thread::sleep(SETTLED);
    if way == Way::Ebpf {
        wait::holds("the rules are known", Duration::from_secs(10), || {
            node.status().packet_rules.is_some_and(|known| !known.rules.is_empty())
        });
        // What was confirmed before.
        thread::sleep(SETTLED);
    }
}

/// A table of nftables with this rule for what is forwarded.
fn nft(netns: &Netns, rule: &str) {
    netns.nft(&format!(
        "table ip packets {{ chain forward {{ type filter hook forward priority 0;
            {rule}
        }}; }}"
    ));
}

/// How many of a thousand datagrams in a second get through.
fn passed(pair: &Pair) -> u64 {
    let spaced = pair.traffic(SPACED, "--seconds 1");
    spaced.sent - spaced.lost
}

/// As many packets pass a rule on our path as on the kernel's, which has let
/// only some pass.
fn passes_as_many(rule: impl Fn(&Netns)) {
    passes_as_many_once(|_, _| thread::sleep(SETTLED), rule);
}

/// The same, once the node is ready for it.
fn passes_as_many_once(ready: impl Fn(&Node, Way), rule: impl Fn(&Netns)) {
    let [kernel, ours] = pairs(&window(), |pair, way| {
        assert_eq!(passed(pair), 1000);
        rule(&pair.left.netns);
        ready(&pair.left, way);
        passed(pair)
    });
    assert!((50..500).contains(&kernel), "{kernel} of 1000 by the kernel");
    let near = kernel / 2..kernel + kernel / 2 + 10;
    assert!(near.contains(&ours), "{ours} of 1000, the kernel {kernel}");
}

/// As many packets pass a limit of nftables in this place.
fn limited_as_much(family: &str, hook: &str, packets: &str) {
    passes_as_many(|netns| {
        netns.nft(&format!(
            "table {family} packets {{ chain limited {{ type filter hook {hook} priority 0;
                {packets} limit rate over 100/second drop
            }}; }}"
        ));
    });
}

#[test]
fn a_limit_of_nftables() {
    passes_as_many(|netns| nft(netns, "udp dport 7000 limit rate over 100/second drop"));
}

#[test]
fn a_limit_of_nftables_that_is_not_in_its_own_rule() {
    passes_as_many(|netns| {
        netns.nft(
            "table ip packets {
                limit slow { rate over 100/second; }
                chain counted { limit name slow drop; }
                chain forward {
                    type filter hook forward priority 0;
                    udp dport 7000 jump counted
                }
            }",
        );
    });
}

#[test]
fn a_hash_limit_of_iptables() {
    passes_as_many(|netns| {
        netns.sh(
            "iptables-nft -A FORWARD -p udp --dport 7000 -m hashlimit --hashlimit-above 100/sec \
             --hashlimit-name slow -j DROP",
        );
    });
}

#[test]
fn a_hash_limit_of_legacy_iptables() {
    passes_as_many_once(noticed, |netns| {
        netns.sh("iptables-legacy -A FORWARD -p udp --dport 7000 -m hashlimit \
             --hashlimit-above 100/sec --hashlimit-name slow -j DROP");
    });
}

#[test]
fn a_limit_on_the_bridge_ports() {
    limited_as_much("bridge", "prerouting", "iifname \"veth2\" udp dport 7000");
}

#[test]
fn a_limit_where_the_pods_packets_come_in() {
    limited_as_much("netdev", "ingress device veth2", "udp dport 7000");
}

#[test]
fn a_limit_where_tunnel_packets_leave() {
    limited_as_much("netdev", "egress device eth0", "udp dport 8472");
}

#[test]
fn a_chain_where_tunnel_packets_leave_marks_all_of_them() {
    let [kernel, ours] = pairs(&window(), |pair, _| {
        pair.left.netns.nft(
            "table netdev marks { chain out { type filter hook egress device eth0 priority 0;
                udp dport 8472 ip dscp set cs5 counter
            }; }",
        );
        thread::sleep(SETTLED);
        assert_eq!(passed(pair), 1000);
        let rules = pair.left.netns.sh("nft -j list chain netdev marks out");
        let rules: serde_json::Value = serde_json::from_str(&rules).expect("JSON of nft");
        let counter = rules["nftables"].as_array().expect("a list").iter().find_map(|entry| {
            entry["rule"]["expr"]
                .as_array()?
                .iter()
                .find_map(|part| part["counter"]["packets"].as_u64())
        });
        counter.expect("a counter")
    });
    assert!(kernel >= 1000 && ours >= 1000, "{kernel} by the kernel, {ours} by ours");
}

#[test]
fn a_limit_of_the_nodes_own_tunnel_packets() {
    passes_as_many(|netns| {
        netns.sh("iptables -A OUTPUT -p udp --dport 8472 -m hashlimit --hashlimit-above 100/sec \
             --hashlimit-name slow -j DROP");
    });
}

#[test]
fn a_rule_behind_routing_marks_all_tunnel_packets() {
    let [kernel, ours] = pairs(&window(), |pair, _| {
        pair.left.netns.sh(
            "iptables -t mangle -A POSTROUTING -p udp --dport 8472 -j DSCP --set-dscp-class ef",
        );
        thread::sleep(SETTLED);
        assert_eq!(passed(pair), 1000);
        let lines = pair.left.netns.sh("iptables -t mangle -nvxL POSTROUTING");
        let line = lines.lines().find(|line| line.contains("DSCP")).expect("the rule");
        let count = line.split_whitespace().next().and_then(|count| count.parse::<u64>().ok());
        count.expect("packets")
    });
    assert!(kernel >= 1000 && ours >= 1000, "{kernel} by the kernel, {ours} by ours");
}

#[test]
fn a_policy_against_tunnel_packets() {
    let [kernel, ours] = pairs(&window(), |pair, _| {
        // Etcd stays within reach.
        pair.left.netns.iptables("*filter\n:OUTPUT DROP\n-A OUTPUT -p tcp -j ACCEPT\nCOMMIT\n");
        // No counter shows that the policy is known, and nft is slow on a busy machine.
        thread::sleep(3 * SETTLED);
        passed(pair)
    });
    assert_eq!((kernel, ours), (0, 0));
}

#[test]
fn an_ipsec_policy_against_tunnel_packets() {
    let [kernel, ours] = pairs(&window(), |pair, way| {
        pair.left.netns.ip(&format!(
            "xfrm policy add src 0.0.0.0/0 dst {} proto udp dport 8472 dir out action block",
            pair.right.address
        ));
        // An event tells of it.
        thread::sleep(Duration::from_millis(200));
        let passed = passed(pair);
        pair.left.netns.ip("xfrm policy flush");
        if way == Way::Ebpf {
            wait::holds("nothing is kept any more", Duration::from_secs(2), || {
                pair.left.status().datapath.envelope.kept.is_empty()
            });
        }
        passed
    });
    assert_eq!((kernel, ours), (0, 0));
}

#[test]
fn rules_about_other_packets_of_the_node_keep_nothing() {
    pairs(&window(), |pair, way| {
        // Kubelet's, and what many have.
        for rule in [
            "-A OUTPUT -m mark --mark 0x8000/0x8000 -j DROP",
            "-A OUTPUT -d 169.254.169.254 -j REJECT",
            "-A OUTPUT -o lo -j ACCEPT",
            "-A OUTPUT -m owner --uid-owner 1234 -j DROP",
            "-t mangle -A OUTPUT -p udp -j CONNMARK --save-mark",
        ] {
            pair.left.netns.sh(&format!("iptables {rule}"));
        }
        thread::sleep(SETTLED);
        let before = Carried::of(&pair.left);
        assert_eq!(passed(pair), 1000);
        let share = Carried::of(&pair.left).share_since(&before);
        assert!(way == Way::Kernel || share > 0.9, "a share of {share} on the fast path");
    });
}

#[test]
fn a_quota() {
    // 64 bytes of data are 92 bytes of a packet.
    passes_as_many(|netns| nft(netns, "udp dport 7000 quota over 18 kbytes drop"));
}

#[test]
fn a_limit_of_a_connections_packets() {
    passes_as_many(|netns| {
        netns.sysctl("net.netfilter.nf_conntrack_acct=1");
        netns.sh("iptables -A FORWARD -p udp --dport 7000 -m connbytes --connbytes 200: \
             --connbytes-dir original --connbytes-mode packets -j DROP");
    });
}

#[test]
fn a_part_of_the_packets_at_random() {
    passes_as_many(|netns| nft(netns, "udp dport 7000 numgen random mod 4 < 3 drop"));
}

/// Of one flow's packets, small and large ones in turns, how many are
/// answered.
fn by_size(pair: &Pair) -> [u32; 2] {
    let answers = Answers::open(&pair.server.netns, 7001);
    let to = SocketAddrV4::new(pair.server.address, 7001);
    let seen = pair.client.netns.inside(|| {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a socket");
        socket.connect(to).expect("an address");
        let (mut seen, mut buffer) = ([0, 0], [0; 2048]);
        for number in 0..100 {
            let large = number % 4 == 3;
            // A small one is waited for on a busy machine, too.
            let patience = Duration::from_millis(if large { 20 } else { 1000 });
            socket.set_read_timeout(Some(patience)).expect("a timeout");
            // An error of the packet before may be told here.
            let _ = socket.send(&[b'x'; 1000][..if large { 1000 } else { 50 }]);
            if let Ok(length) = socket.recv(&mut buffer) {
                seen[usize::from(length == 1000)] += 1;
            }
        }
        seen
    });
    assert!(answers.count() >= 75, "{} of 100 came", answers.count());
    seen
}

#[test]
fn a_rule_about_lengths() {
    for rule in ["udp dport 7001 meta length > 500 drop", "udp length > 500 drop"] {
        pairs(&window(), |pair, _| {
            nft(&pair.left.netns, rule);
            thread::sleep(SETTLED);
            assert_eq!(by_size(pair), [75, 0], "{rule}");
        });
    }
}

#[test]
fn a_rule_about_the_data() {
    pairs(&window(), |pair, _| {
        pair.left.netns.sh(
            "iptables -A FORWARD -p udp --dport 7001 -m string --algo bm --from 500 --string xxxx \
             -j DROP",
        );
        thread::sleep(SETTLED);
        assert_eq!(by_size(pair), [75, 0]);
    });
}

#[test]
fn copies_for_a_sensor() {
    let copies = pairs(&window(), |pair, _| {
        let sensor = pair.lab.stranger(Ipv4Addr::new(192, 0, 2, 249));
        nft(&pair.left.netns, "udp dport 7000 dup to 192.0.2.249 device \"eth0\"");
        thread::sleep(SETTLED);
        let wire = Wire::open(&sensor, "eth0");
        assert_eq!(passed(pair), 1000);
        let (mut copies, to) = (0, pair.server.address.octets());
        wire.waiting(|frame| copies += u32::from(frame.get(30..34) == Some(&to)));
        copies
    });
    assert_eq!(copies, [1000, 1000]);
}

#[test]
fn flows_that_no_such_rule_can_match_are_fast() {
    pairs(&window(), |pair, way| {
        nft(
            &pair.left.netns,
            "udp dport 7000 limit rate over 100/second drop
            ip daddr 203.0.113.7 limit rate over 10/second drop
            iifname \"other0\" quota over 1 kbytes drop",
        );
        thread::sleep(SETTLED);
        let before = Carried::of(&pair.left);
        assert_whole(&pair.traffic(REQUESTS, "--seconds 1 --patience 1"));
        let share = Carried::of(&pair.left).share_since(&before);
        assert!(way == Way::Kernel || share > 0.9, "a share of {share} on the fast path");
    });
}

#[test]
fn status_names_the_rule_that_keeps_flows_off() {
    let pair = Pair::agents(&Way::Ebpf.options(&window()));
    let rules = || pair.left.status().packet_rules.expect("rules are followed").rules;
    assert_eq!(rules(), []);
    nft(&pair.left.netns, "udp dport 7000 limit rate over 100/second drop");
    thread::sleep(SETTLED);
    passed(&pair);
    let rules = rules();
    let [line] = rules.as_slice() else { panic!("{rules:?}") };
    assert!(line.rule.contains("limit rate over 100/second"), "{line:?}");
}

#[test]
fn such_rules_can_be_ignored() {
    let ignore = Options { extra: vec!["--packet-rules=ignore".into()], ..window() };
    let pair = Pair::agents(&Way::Ebpf.options(&ignore));
    nft(&pair.left.netns, "udp dport 7000 limit rate over 100/second drop");
    thread::sleep(SETTLED);
    let before = Carried::of(&pair.left);
    assert!(passed(&pair) > 900);
    let share = Carried::of(&pair.left).share_since(&before);
    assert!(share > 0.9, "a share of {share} on the fast path");
}

/// Twenty transfers in a row, whose data connections only the helper knows.
fn transfers(rules: impl Fn(&Netns)) {
    pairs(&window(), |pair, way| {
        for node in [&pair.left, &pair.right] {
            node.netns.nft(
                "table ip strict { chain forward { type filter hook forward priority 0; policy drop;
                    ct state established,related accept
                    tcp dport 21 ct state new accept
                }; }",
            );
            rules(&node.netns);
        }
        for node in [&pair.left, &pair.right] {
            noticed(node, way);
        }
        let _server = ftp::Server::start(&pair.server.netns);
        let [own, server] = [&pair.client, &pair.server].map(|pod| pod.address);
        let whole = ftp::fetch(&pair.client.netns, own, server, 20);
        assert_eq!(whole, 20, "transfers of 20");
    });
}

#[test]
fn a_helper_of_nftables_sees_all_of_the_control_connection() {
    transfers(|netns| {
        netns.nft(
            "table ip helpers {
                ct helper files { type \"ftp\" protocol tcp; }
                chain pre { type filter hook prerouting priority 0;
                    tcp dport 21 ct helper set \"files\"
                }
            }",
        );
    });
}

#[test]
fn a_helper_of_legacy_iptables_sees_all_of_the_control_connection() {
    transfers(|netns| {
        netns.sh("iptables-legacy -t raw -A PREROUTING -p tcp --dport 21 -j CT --helper ftp");
    });
}
