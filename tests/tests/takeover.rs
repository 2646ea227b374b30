//! The agent starts where flanneld ran: the node keeps what it had, and traffic
//! does not notice.

use std::fs;
use std::thread;
use std::time::Duration;

use flannel_tests::agent::Options;
use flannel_tests::etcd::PREFIX;
use flannel_tests::hooks;
use flannel_tests::pair::{Kind, Pair};

const SECOND: Duration = Duration::from_secs(1);
const CHAINS: &str = r#"*filter
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

fn take_over(rules: &str, mtu: u32, old_value: bool) {
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
    netns.iptables(rules);
    assert!(netns.sh("iptables-save").contains("10.244.201.0/24"));
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
    let entries = netns.sh("bridge fdb show");
    assert!(!entries.contains("53:77"), "{entries}");
    assert!(entries.contains("53:99"), "{entries}");
    assert!(!netns.ip("neighbour show").contains("10.244.77.0"));
    let saved = netns.sh("iptables-save");
    assert!(!saved.contains("FLANNEL") && !saved.contains("10.244."), "{saved}");
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
    take_over(CHAINS, 1450, false);
}

#[test]
fn from_flannel_0_11() {
    take_over(STRAIGHT, 1400, true);
}
