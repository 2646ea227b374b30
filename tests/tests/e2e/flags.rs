//! Flags of flanneld, with the real agent on nodes.

use std::os::unix::fs::symlink;
use std::process::Command;
use std::time::Duration;

use flannel_core::health::Subject;
use flannel_tests::agent::{Options, program};
use flannel_tests::etcd::Etcd;
use flannel_tests::lab::Lab;
use flannel_tests::node::Node;
use flannel_tests::pair::{Kind, Pair};
use flannel_tests::process::{Process, output};
use flannel_tests::wait;

/// An agent without the harness's `--iface`: an empty value takes it back.
fn without_iface(flags: &[&str]) -> Options {
    let extra = std::iter::once("--iface=").chain(flags.iter().copied()).map(str::to_owned);
    Options { extra: extra.collect(), ..Options::kernel() }
}

/// A node with a second underlay interface `wan7` with two addresses, behind
/// which 198.51.100.0/24 is.
fn two_homed(lab: &Lab) -> Node {
    let node = lab.node(1);
    lab.underlay().ip(&format!("link add w1 type veth peer name wan7 netns {}", node.netns.name()));
    lab.underlay().ip_batch(&["address add 203.0.113.1/24 dev w1".into(), "link set w1 up".into()]);
    node.netns.ip_batch(&[
        "address add 203.0.113.7/24 dev wan7".into(),
        "address add 203.0.113.8/24 dev wan7".into(),
        "link set wan7 up".into(),
        "route add 198.51.100.0/24 via 203.0.113.1 src 203.0.113.8".into(),
    ]);
    node
}

/// Starts the node with these flags and gives the device's words and the
/// published address.
#[track_caller]
fn underlay(node: &mut Node, etcd: &Etcd, flags: &[&str]) -> (String, String) {
    node.start(etcd, &without_iface(flags));
    let device = node.netns.ip("-d link show flannel.1");
    let words = device.split_once("local ").expect("a local address").1;
    let words: Vec<&str> = words.split_whitespace().take(3).collect();
    let published = node.lease().public_ip.to_string();
    node.stop_agent();
    (words.join(" "), published)
}

#[test]
fn the_underlay_is_chosen_by_pattern_route_or_address() {
    let lab = Lab::new();
    let etcd = lab.etcd();
    let mut node = two_homed(&lab);
    let second = |address: &str| (format!("{address} dev wan7"), address.to_owned());
    let first = ("192.0.2.11 dev eth0".to_owned(), "192.0.2.11".to_owned());
    let mut check = |flags: &[&str], expected: &(String, String)| {
        assert_eq!(underlay(&mut node, &etcd, flags), *expected, "{flags:?}");
    };
    check(&["-iface-regex", "^203[.]0[.]113[.]"], &second("203.0.113.7"));
    check(&["-iface-regex=113[.]8$"], &second("203.0.113.8"));
    check(&["--iface-regex=^wlan", "--iface-regex=^wan"], &second("203.0.113.7"));
    check(&["-iface=eth0", "-iface-regex=^wan"], &first);
    check(&["-iface=eth9", "-iface-regex=^wan"], &second("203.0.113.7"));
    check(&["-iface-can-reach=198.51.100.9"], &second("203.0.113.8"));
    check(&["-iface-regex=^wlan", "-iface-can-reach", "192.0.2.1"], &first);
    check(&["-public-ip=203.0.113.8"], &second("203.0.113.8"));
    // No local address: published, while the tunnel begins at the default
    // route's interface.
    let published = (first.0.clone(), "198.51.100.77".to_owned());
    check(&["-public-ip=198.51.100.77"], &published);
    check(&[], &first);
}

#[test]
fn the_underlay_stays_when_its_interface_is_away() {
    let lab = Lab::new();
    let etcd = lab.etcd();
    let mut node = two_homed(&lab);
    // Without wan7 the way there is by eth0.
    node.start(&etcd, &without_iface(&["-iface-can-reach=198.51.100.9"]));
    node.netns.ip("link set wan7 down");
    wait::holds("a complaint", Duration::from_secs(10), || {
        node.complains(Subject::Underlay, "wan7 is down")
    });
    node.netns.ip("link set wan7 up");
    wait::holds("no complaint", Duration::from_secs(10), || {
        node.complaint(Subject::Underlay).is_none()
    });
    assert!(node.netns.ip("-d link show flannel.1").contains("local 203.0.113.8 dev wan7"));
    assert_eq!(node.lease().public_ip.to_string(), "203.0.113.8");
}

#[test]
fn an_interface_that_is_not_there_ends_with_1_and_says_what_there_is() {
    let lab = Lab::new();
    let etcd = lab.etcd();
    let mut node = two_homed(&lab);
    for (flags, text) in [
        (&["-iface=eth9"][..], "--iface=eth9: there is no interface eth9"),
        (&["-iface-regex=^wlan"], "--iface-regex=^wlan: matches no interface"),
        (&["-iface-can-reach=192.0.2.11"], "lo is a loopback interface"),
        (&["-iface-can-reach=10.244.9.9"], "in the overlay network"),
    ] {
        node.launch(&etcd, &without_iface(flags));
        let status = node.wait_end(Duration::from_secs(10));
        assert_eq!(status.code(), Some(1), "{flags:?}");
        let log = node.agent_log();
        assert!(log.contains(text) && log.contains("wan7 (203.0.113.7 203.0.113.8)"), "{log}");
    }
    assert!(etcd.subnets().is_empty(), "no lease was taken");
}

/// Nobody else listens in a node's namespace.
const PORT: u16 = 10_250;

fn get(node: &Node, path: &str) -> Option<(u16, String)> {
    node.get(PORT, path)
}

#[test]
fn health_is_told_from_the_start() {
    let lab = Lab::new();
    let mut etcd = lab.stopped_etcd();
    let mut node = lab.node(1);
    let extra = vec!["-healthz-ip=127.0.0.1".to_owned(), format!("-healthz-port={PORT}")];
    node.launch(&etcd, &Options { extra, ..Options::kernel() });
    wait::holds("an answer", Duration::from_secs(10), || get(&node, "/healthz").is_some());
    assert_eq!(get(&node, "/healthz"), Some((200, "flanneld is running".to_owned())));
    wait::holds("a reason", Duration::from_secs(10), || {
        get(&node, "/readyz").is_some_and(|(_, text)| text.contains("store: waiting for"))
    });
    let (code, text) = get(&node, "/readyz").expect("an answer");
    assert_eq!((code, text.lines().next()), (503, Some("flanneld is not ready yet")), "{text}");
    assert_eq!(get(&node, "/metric").map(|(code, _)| code), Some(404));
    let (code, text) = get(&node, "/metrics").expect("an answer");
    assert!(code == 200 && text.contains("\nflannel_ready 0\n"), "{text}");

    etcd.restart();
    etcd.put_config(r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#);
    node.wait_ready(Duration::from_secs(20));
    assert_eq!(get(&node, "/readyz"), Some((200, "flanneld is ready".to_owned())));
    etcd.kill();
    wait::holds("the store's complaint", Duration::from_secs(20), || {
        get(&node, "/readyz").is_some_and(|(_, text)| text.contains("\nstore: "))
    });
    let (code, text) = get(&node, "/readyz").expect("an answer");
    assert_eq!((code, text.lines().next()), (200, Some("flanneld is ready")), "{text}");
}

#[test]
fn no_health_server_unless_asked_for_and_a_taken_port_ends_with_1() {
    let lab = Lab::new();
    let etcd = lab.etcd();
    let mut node = lab.node(1);
    node.start(&etcd, &Options::kernel());
    assert!(!node.netns.sh("ss -ltnH").contains(":"), "nobody listens");
    node.stop_agent();
    let _taken =
        node.netns.inside(|| std::net::TcpListener::bind(("0.0.0.0", PORT)).expect("a port"));
    let extra = vec![format!("-healthz-port={PORT}")];
    node.launch(&etcd, &Options { extra, ..Options::kernel() });
    let status = node.wait_end(Duration::from_secs(10));
    assert_eq!(status.code(), Some(1));
    assert!(node.agent_log().contains("--healthz-port"), "{}", node.agent_log());
}

/// Blackhole routes of the node, as `ip` prints them.
fn blackholes(node: &Node) -> String {
    node.netns.ip("route show type blackhole").trim().to_owned()
}

#[test]
fn the_blackhole_route_leaves_the_pods_alone() {
    let with = Options { extra: vec!["-ip-blackhole-route".to_owned()], ..Options::ebpf() };
    let mut pair = Pair::new(&Kind::Agent(with.clone()), &Kind::Agent(with.clone()));
    let subnet = pair.left.subnet();
    let expected = format!("blackhole {subnet} metric {}", u32::MAX);
    assert_eq!(blackholes(&pair.left), expected);
    assert!(pair.left.netns.ip("route show").contains(&format!("{subnet} dev cni0")));
    pair.client.ping(pair.server.address, "-c 3 -i 0.1 -W 2");
    pair.server.ping(pair.client.address, "-c 3 -i 0.1 -W 2");

    // Somebody removes it; it comes back.
    pair.left.netns.ip(&format!("route del blackhole {subnet} metric {}", u32::MAX));
    wait::holds("the route", Duration::from_secs(5), || blackholes(&pair.left) == expected);

    // Without the bridge nothing of the subnet leaves by the default route.
    let nowhere = subnet.nth(77).expect("an address");
    assert!(pair.left.netns.try_sh(&format!("ip route get {nowhere}")));
    pair.left.netns.ip("link set cni0 down");
    assert!(!pair.left.netns.try_sh(&format!("ip route get {nowhere}")));
    pair.left.netns.ip("link set cni0 up");

    // flanneld's own, of metric 0, would hide a bridge that comes after it.
    pair.left.stop_agent();
    pair.left.netns.ip(&format!("route del {subnet} dev cni0"));
    pair.left.netns.ip(&format!("route add blackhole {subnet}"));
    pair.left.start(&pair.etcd, &with);
    assert_eq!(blackholes(&pair.left), expected);
    let gateway = subnet.nth(1).expect("an address");
    pair.left.netns.ip(&format!("route add {subnet} dev cni0 src {gateway}"));
    pair.client.ping(pair.server.address, "-c 3 -i 0.1 -W 2");

    // It goes with the flag, and with everything else.
    pair.left.stop_agent();
    assert_eq!(blackholes(&pair.left), expected, "stopping changes nothing");
    pair.left.start(&pair.etcd, &Options::ebpf());
    assert_eq!(blackholes(&pair.left), "");
    pair.left.stop_agent();
    pair.right.stop_agent();
    let cleaned = pair.right.cleanup();
    assert!(cleaned.status.success(), "{cleaned:?}");
    assert_eq!(blackholes(&pair.right), "");
}

#[test]
fn a_link_named_flanneld_is_the_daemon() {
    let lab = Lab::new();
    let flanneld = lab.dir().join("flanneld");
    symlink(program(), &flanneld).expect("a symlink");
    let version = output(Command::new(&flanneld).arg("-version"));
    assert!(version.status.success() && version.stdout.is_empty(), "{version:?}");
    assert!(version.stderr.starts_with(b"v0."), "{version:?}");
    for (flag, code) in [("-h", 0), ("-help", 0), ("-no-such-flag", 2), ("-kube-subnet-mgr", 2)] {
        let output = output(Command::new(&flanneld).arg(flag));
        assert_eq!(output.status.code(), Some(code), "{flag}: {output:?}");
    }
    // The command line of a unit of old.
    let etcd = lab.etcd();
    let node = lab.node(1);
    let file = lab.dir().join("subnet.env");
    let mut command = node.netns.command(&flanneld);
    command
        .args(["-logtostderr", "-v=2", "-ip-masq=true", "-iptables-resync=30", "-iface", "eth0"])
        .arg(format!("-etcd-endpoints={}", etcd.endpoint()))
        .env("FLANNELD_SUBNET_FILE", &file)
        .env("FLANNELD_STATE_DIR", node.state_dir())
        .env("FLANNELD_PIN_DIR", node.pin_dir())
        .env("FLANNELD_DATAPATH", "kernel");
    let mut daemon = Process::start("flanneld", &mut command, &lab.dir().join("flanneld.log"));
    wait::holds("subnet.env", Duration::from_secs(20), || file.exists());
    daemon.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(daemon.wait(Duration::from_secs(10)).code(), Some(0));
    let log = daemon.log();
    assert!(log.contains("--iptables-resync") && log.contains("-logtostderr"), "{log}");
}
