//! The agent starts where flanneld ran: the node keeps what it had, and traffic
//! does not notice.

use std::fs;
use std::thread;
use std::time::Duration;

use flannel_tests::agent::Options;
use flannel_tests::etcd::PREFIX;
use flannel_tests::hooks;
use flannel_tests::lab::Lab;
use flannel_tests::netns::Netns;
use flannel_tests::node::Node;
use flannel_tests::pair::{Kind, Pair};

const SECOND: Duration = Duration::from_secs(1);
pub(super) const CHAINS: &str = r#"*filter
:FLANNEL-FWD - [0:0]
-A FORWARD -m comment --comment "flanneld forward" -j FLANNEL-FWD
-A FLANNEL-FWD -s 10.244.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT
-A FLANNEL-FWD -d 10.244.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT
COMMIT
*nat
:FLANNEL-POSTRTG - [0:0]
-A POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG
-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 10.244.201.0/24 -d 10.244.0.0/16 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 10.244.0.0/16 -d 10.244.201.0/24 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG ! -s 10.244.0.0/16 -d 10.244.201.0/24 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 10.244.0.0/16 ! -d 224.0.0.0/4 -m comment --comment "flanneld masq" -j MASQUERADE --random-fully
-A FLANNEL-POSTRTG ! -s 10.244.0.0/16 -d 10.244.0.0/16 -m comment --comment "flanneld masq" -j MASQUERADE --random-fully
COMMIT
"#;
/// With `EnableNFTables`; the table of IPv6 is made without an IPv6 network, too.
pub(super) const TABLES: &str = r#"table ip flannel-ipv4 {
  comment "rules for flannel-ipv4"
  chain forward {
    comment "chain to accept flannel traffic"
    type filter hook forward priority filter; policy accept;
    ip saddr 10.244.0.0/16 accept
    ip daddr 10.244.0.0/16 accept
  }
  chain postrtg {
    comment "chain to manage traffic masquerading by flannel"
    type nat hook postrouting priority srcnat; policy accept;
    meta mark 0x4000 return
    ip saddr 10.244.201.0/24 ip daddr 10.244.0.0/16 return
    ip saddr 10.244.0.0/16 ip daddr 10.244.201.0/24 return
    ip saddr != 10.244.201.0/24 ip daddr 10.244.0.0/16 return
    ip saddr 10.244.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random
    ip saddr != 10.244.0.0/16 ip daddr 10.244.0.0/16 masquerade fully-random
  }
}
table ip6 flannel-ipv6 {
  comment "rules for flannel-ipv6"
}
table ip others {
  chain postrtg {
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr 10.99.0.0/24 return
  }
}
"#;
const STRAIGHT: &str = "*filter
-A FORWARD -s 10.244.0.0/16 -j ACCEPT
-A FORWARD -d 10.244.0.0/16 -j ACCEPT
COMMIT
*nat
-A POSTROUTING -s 10.244.0.0/16 -d 10.244.0.0/16 -j RETURN
-A POSTROUTING -s 10.244.0.0/16 ! -d 224.0.0.0/4 -j MASQUERADE
-A POSTROUTING ! -s 10.244.0.0/16 -d 10.244.201.0/24 -j RETURN
-A POSTROUTING ! -s 10.244.0.0/16 -d 10.244.0.0/16 -j MASQUERADE
COMMIT
";

fn take_over(load: impl FnOnce(&Netns), mtu: u32, old_value: bool) {
    let mut pair = Pair::new(&Kind::Plain, &Kind::Agent(Options::ebpf()));
    pair.etcd.put_config(r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#);
    let mac = pair.left.vtep_mac();
    if old_value {
        let key = format!("{PREFIX}/subnets/10.244.201.0-24");
        let value = format!(
            r#"{{"PublicIP":"{}","BackendType":"vxlan","BackendData":{{"VtepMAC":"{mac}"}}}}"#,
            pair.left.address
        );
        pair.etcd.ctl(&["put", "--ignore-lease", &key, &value]);
    }
    let netns = &pair.left.netns;
    load(netns);
    assert!(netns.sh("nft list ruleset").contains("10.244.201.0/24"));
    netns.ip(&format!("link set flannel.1 mtu {mtu}"));
    // A peer that left, and what is somebody else's.
    pair.left.plain_peer(
        "10.244.77.0/24".parse().expect("a subnet"),
        "02:00:5e:00:53:77",
        "192.0.2.77".parse().expect("an address"),
    );
    netns.ip("route add 10.99.0.0/24 via 192.0.2.1");
    netns.sh("bridge fdb add 02:00:5e:00:53:99 dev eth0 self permanent");
    fs::write(
        pair.left.subnet_file(),
        format!(
            "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.201.1/24\nFLANNEL_MTU={mtu}\nFLANNEL_IPMASQ=true\n"
        ),
    )
    .expect("subnet.env");
    entries_of_others(netns);
    let index_of = |pair: &Pair| pair.left.netns.ip("-o link show flannel.1");
    let before = index_of(&pair);

    let running = pair.start_spaced(5 * SECOND);
    thread::sleep(SECOND);
    pair.left.start(&pair.etcd, &Options { ip_masq: true, ..Options::ebpf() });
    let spaced = running.finish();
    assert_eq!(spaced["lost"], 0, "{spaced}");

    assert_eq!(pair.left.environment("FLANNEL_SUBNET").as_deref(), Some("10.244.201.1/24"));
    assert_eq!(pair.left.vtep_mac(), mac);
    let number = |line: &str| line.split(':').next().map(str::to_owned);
    let after = index_of(&pair);
    assert_eq!(number(&after), number(&before), "the device is kept");
    assert!(after.contains("mtu 1450"), "{after}");
    let netns = &pair.left.netns;
    let routes = netns.ip("route show");
    assert!(!routes.contains("10.244.77.0"), "{routes}");
    assert!(routes.contains("10.99.0.0/24"), "{routes}");
    entries_of_others_are_right(netns);
    let entries = netns.sh("bridge fdb show");
    assert!(!entries.contains("53:77"), "{entries}");
    assert!(entries.contains("53:99"), "{entries}");
    assert!(!netns.ip("neighbour show").contains("10.244.77.0"));
    let saved = netns.sh("iptables-save");
    assert!(!saved.contains("FLANNEL") && !saved.contains("10.244."), "{saved}");
    let ours = netns.sh("nft list table ip flannel-ipv4");
    // Comments of chains are flannel's, of rules ours.
    assert!(!ours.contains("chain to"), "{ours}");
    let rules = ours.lines().filter(|line| line.contains("10.244.") || line.contains("mark"));
    let known = |rule: &str| rule.contains("comment \"flanneld ");
    assert!(rules.clone().count() == 10 && rules.clone().all(known), "{ours}");
    let tables = netns.sh("nft list tables");
    assert!(!tables.contains("flannel-ipv6"), "{tables}");
    let counters = pair.left.outcomes();
    pair.traffic("spaced", "--seconds 1");
    let fast = pair.left.outcomes().since(&counters).fast();
    assert!(fast > 900, "{fast}");

    // And back: what flanneld takes up again is there after the end.
    let running = pair.start_spaced(3 * SECOND);
    thread::sleep(SECOND);
    assert!(pair.left.stop_agent().success());
    let spaced = running.finish();
    assert_eq!(spaced["lost"], 0, "{spaced}");
    assert_eq!(pair.left.vtep_mac(), mac);
    assert!(pair.left.subnet_file().exists());
    let leases = pair.etcd.subnets();
    assert!(leases.iter().any(|(key, value)| key == "10.244.201.0-24" && value.contains(&mac)));
    make_way(&pair);
}

/// An administrator's tunnel through flannel.1 beside the overlay network, and
/// two FDB entries without anything else.
fn entries_of_others(netns: &Netns) {
    for fdb in [
        "02:00:5e:00:53:55 dst 192.0.2.55",
        "02:00:5e:00:53:88 dst 192.0.2.88 port 9999",
        "02:00:5e:00:53:44 dst 192.0.2.44",
    ] {
        netns.sh(&format!("bridge fdb append dev flannel.1 self permanent {fdb}"));
    }
    netns.ip_batch(&[
        "neighbour add 10.99.1.0 lladdr 02:00:5e:00:53:55 dev flannel.1 nud permanent".into(),
        "route add 10.99.1.0/24 via 10.99.1.0 dev flannel.1 onlink".into(),
    ]);
}

/// The tunnel stays whole. An entry for a MAC that nobody uses may be that of a
/// peer that left; one with a port of its own cannot.
fn entries_of_others_are_right(netns: &Netns) {
    let fdb = netns.sh("bridge fdb show dev flannel.1");
    assert!(fdb.contains("53:55 dst 192.0.2.55") && fdb.contains("53:88 dst"), "{fdb}");
    assert!(!fdb.contains("53:44"), "{fdb}");
    let neighbours = netns.ip("neighbour show dev flannel.1");
    assert!(neighbours.contains("10.99.1.0 lladdr 02:00:5e:00:53:55 PERMANENT"), "{neighbours}");
    let routes = netns.ip("route show dev flannel.1");
    assert!(routes.contains("10.99.1.0/24 via 10.99.1.0 onlink"), "{routes}");
}

/// The programs and rules go, what flanneld goes on with stays.
fn make_way(pair: &Pair) {
    let netns = &pair.left.netns;
    let tunnel = || {
        let link = netns.ip("-o link show flannel.1");
        let routes = netns.ip("route show dev flannel.1");
        let neighbours = netns.ip("neighbour show dev flannel.1");
        [link, routes, neighbours, netns.sh("bridge fdb show dev flannel.1")]
    };
    let before = tunnel();
    let file = fs::read(pair.left.subnet_file()).expect("subnet.env");
    assert!(!hooks::on(netns, "eth0").is_empty(), "there is something to remove");
    assert!(netns.sh("nft list tables").contains("flannel"), "there is something to remove");

    let running = pair.start_spaced(3 * SECOND);
    thread::sleep(SECOND);
    let output = pair.left.cleanup_with(&["--keep-device"]);
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("nf_conntrack_tcp_be_liberal, which was 0 before"), "{said}");
    let spaced = running.finish();
    assert_eq!(spaced["lost"], 0, "{spaced}");

    assert_eq!(tunnel(), before);
    assert_eq!(fs::read(pair.left.subnet_file()).expect("subnet.env"), file);
    assert!(hooks::on(netns, "eth0").is_empty());
    assert_eq!(hooks::pins(pair.left.pin_dir()), Vec::<std::path::PathBuf>::new());
    assert!(!netns.sh("nft list tables").contains("flannel"));
}

#[test]
fn from_flannels_chains() {
    take_over(|netns| netns.iptables(CHAINS), 1450, false);
}

#[test]
fn from_flannels_tables() {
    take_over(|netns| netns.nft(TABLES), 1450, false);
}

#[test]
fn from_flannel_0_11() {
    take_over(|netns| netns.iptables(STRAIGHT), 1400, true);
}

/// As guides for etcd's v2 API set flanneld up.
const UNIT: &str = "[Service]
Type=notify
EnvironmentFile=/etc/sysconfig/flanneld
ExecStart=/usr/bin/flanneld -etcd-endpoints=${FLANNEL_ETCD} $FLANNEL_OPTIONS
";

#[test]
fn from_flannel_0_11_in_etcd_v2() {
    let lab = Lab::new();
    let mut etcd = lab.empty_etcd();
    etcd.prefix = "/kube-centos/network".to_owned();
    let config = r#"{"Network":"10.244.0.0/16","SubnetLen":24,"Backend":{"Type":"vxlan"}}"#;
    etcd.put_v2("/kube-centos/network/config", config, None);
    let (mut left, mut right) = (lab.node(1), lab.node(2));
    left.make_old(&etcd, "10.244.201.0/24");
    right.make_old(&etcd, "10.244.202.0/24");
    left.sync_old(&etcd);
    right.sync_old(&etcd);
    let (client, mut server) = (left.pod(2), right.pod(2));
    server.serve();
    client.ping(server.address, "-c 2 -i 0.1 -W 2");
    left.netns.iptables(STRAIGHT);
    let root = left.install();
    let file = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.201.1/24\n\
                FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
    root.write("/run/flannel/subnet.env", file);
    let options = "-etcd-prefix=/kube-centos/network -iface=eth0 -ip-masq --etcd-api=auto";
    let sysconfig =
        format!("FLANNEL_ETCD=\"{}\"\nFLANNEL_OPTIONS=\"{options}\"\n", etcd.endpoint());
    root.write("/etc/sysconfig/flanneld", &sysconfig);
    let kept = |node: &Node| (node.netns.ip("-o link show flannel.1"), node.vtep_mac());
    let tunnel = |node: &Node| {
        let netns = &node.netns;
        let routes = netns.ip("route show dev flannel.1");
        let neighbours = netns.ip("neighbour show dev flannel.1");
        (kept(node), routes, neighbours, netns.sh("bridge fdb show dev flannel.1 state permanent"))
    };
    let before = tunnel(&left);

    let running = client.start_traffic(&format!("spaced {} --seconds 5", server.target()));
    thread::sleep(SECOND);
    left.start_service(UNIT);
    let spaced = running.finish();
    assert_eq!(spaced["lost"], 0, "{spaced}");

    assert_eq!(tunnel(&left), before);
    assert_eq!(root.read("/run/flannel/subnet.env").as_deref(), Some(file));
    assert_eq!(left.status().store.api.as_deref(), Some("v2 (v3 has no network config)"));
    assert_eq!(etcd.subnets(), [], "nothing is in v3");
    let leases = etcd.subnets_v2();
    assert_eq!(leases.len(), 2, "{leases:?}");
    let own = |(key, value): &(String, String)| {
        key == "10.244.201.0-24" && value.contains(&before.0.1) && value.contains("192.0.2.11")
    };
    assert!(leases.iter().any(own), "{leases:?}");
    let saved = left.netns.sh("iptables-save");
    assert!(!saved.contains("10.244."), "{saved}");
    assert!(left.outcomes().fast() > 900, "{:?}", left.outcomes());

    // And back: a node of 0.11 reads what the agent wrote.
    let running = client.start_traffic(&format!("spaced {} --seconds 4", server.target()));
    thread::sleep(SECOND);
    assert!(left.stop_agent().success());
    right.sync_old(&etcd);
    left.sync_old(&etcd);
    let spaced = running.finish();
    assert_eq!(spaced["lost"], 0, "{spaced}");
    assert_eq!(tunnel(&left), before);
}
