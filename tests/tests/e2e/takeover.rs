//! The agent starts where flanneld ran: the node keeps what it had, and traffic
//! does not notice.

use std::fs;
use std::time::Duration;

use flannel_tests::agent::Options;
use flannel_tests::etcd::PREFIX;
use flannel_tests::hooks;
use flannel_tests::lab::Lab;
use flannel_tests::load::SPACED;
use flannel_tests::netns::Netns;
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
    let before = pair.left.netns.ip("-o link show flannel.1");

    pair.nothing_lost(5 * SECOND, |pair| {
        pair.left.start(&pair.etcd, &Options { ip_masq: true, ..Options::ebpf() });
    });
    is_taken_over(&pair, &mac, &before);

    // And back: what flanneld takes up again is there after the end.
    pair.nothing_lost(3 * SECOND, |pair| assert!(pair.left.stop_agent().success()));
    assert_eq!(pair.left.vtep_mac(), mac);
    assert!(pair.left.subnet_file().exists());
    let leases = pair.etcd.subnets();
    assert!(leases.iter().any(|(key, value)| key == "10.244.201.0-24" && value.contains(&mac)));
    make_way(&mut pair);
}

/// Device, address, subnet and what is others' are as before; what flanneld made has gone.
fn is_taken_over(pair: &Pair, mac: &str, before: &str) {
    assert_eq!(pair.left.environment("FLANNEL_SUBNET").as_deref(), Some("10.244.201.1/24"));
    assert_eq!(pair.left.vtep_mac(), mac);
    let number = |line: &str| line.split(':').next().map(str::to_owned);
    let after = pair.left.netns.ip("-o link show flannel.1");
    assert_eq!(number(&after), number(before), "the device is kept");
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
    pair.traffic(SPACED, "--seconds 1");
    let fast = pair.left.outcomes().since(&counters).fast();
    assert!(fast > 900, "{fast}");
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

/// Device, routes, neighbours and FDB of the tunnel.
fn tunnel(netns: &Netns) -> [String; 4] {
    let of = |what: &str| netns.ip(&format!("{what} show dev flannel.1"));
    let fdb = netns.sh("bridge fdb show dev flannel.1");
    [of("-o link"), of("route"), of("neighbour"), fdb]
}

/// The programs and rules go, what flanneld goes on with stays.
fn make_way(pair: &mut Pair) {
    let netns = &pair.left.netns;
    let before = tunnel(netns);
    let file = fs::read(pair.left.subnet_file()).expect("subnet.env");
    assert!(!hooks::on(netns, "eth0").is_empty(), "there is something to remove");
    assert!(netns.sh("nft list tables").contains("flannel"), "there is something to remove");

    pair.nothing_lost(3 * SECOND, |pair| {
        let output = pair.left.cleanup_with(&["--keep-device"]);
        assert!(output.status.success(), "{output:?}");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(said.contains("nf_conntrack_tcp_be_liberal, which was 0 before"), "{said}");
    });

    let netns = &pair.left.netns;
    assert_eq!(tunnel(netns), before);
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
    let mut pair = Pair::with_pods(lab, etcd, left, right);
    pair.left.netns.iptables(STRAIGHT);
    let root = pair.left.install();
    let file = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.201.1/24\n\
                FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
    root.write("/run/flannel/subnet.env", file);
    let options = "-etcd-prefix=/kube-centos/network -iface=eth0 -ip-masq --etcd-api=auto";
    let sysconfig =
        format!("FLANNEL_ETCD=\"{}\"\nFLANNEL_OPTIONS=\"{options}\"\n", pair.etcd.endpoint());
    root.write("/etc/sysconfig/flanneld", &sysconfig);
    let (before, mac) = (tunnel(&pair.left.netns), pair.left.vtep_mac());
    pair.nothing_lost(5 * SECOND, |pair| pair.left.start_service(UNIT));

    let Pair { left, etcd, .. } = &pair;
    assert_eq!(tunnel(&left.netns), before);
    assert_eq!(root.read("/run/flannel/subnet.env").as_deref(), Some(file));
    assert_eq!(left.status().store.api.as_deref(), Some("v2 (v3 has no network config)"));
    assert_eq!(etcd.subnets(), [], "nothing is in v3");
    let leases = etcd.subnets_v2();
    assert_eq!(leases.len(), 2, "{leases:?}");
    let own = |(key, value): &(String, String)| {
        key == "10.244.201.0-24" && value.contains(&mac) && value.contains("192.0.2.11")
    };
    assert!(leases.iter().any(own), "{leases:?}");
    let saved = left.netns.sh("iptables-save");
    assert!(!saved.contains("10.244."), "{saved}");
    assert!(left.outcomes().fast() > 900, "{:?}", left.outcomes());

    // And back: a node of 0.11 reads what the agent wrote.
    pair.nothing_lost(4 * SECOND, |Pair { left, right, etcd, .. }| {
        assert!(left.stop_agent().success());
        right.sync_old(etcd);
        left.sync_old(etcd);
    });
    assert_eq!(tunnel(&pair.left.netns), before);
}
