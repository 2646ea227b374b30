//! `flannel-agent cleanup` removes what is ours, and nothing else.

use flannel_tests::agent::Options;
use flannel_tests::hooks;
use flannel_tests::pair::Pair;
use flannel_tests::process::run;

fn removes_everything(options: &Options) {
    let options = Options { ip_masq: true, ..options.clone() };
    let mut pair = Pair::agents(&options);
    let netns = &pair.left.netns;
    netns.ip("route add 10.99.0.0/24 via 192.0.2.1");
    netns.nft("table ip foreign { chain c { type filter hook forward priority 5; }; }");
    netns.sh("tc qdisc add dev cni0 clsact");
    run(netns.command("tc").args(["filter", "add", "dev", "cni0", "ingress", "prio", "7"]).args([
        "bpf",
        "bytecode",
        "1,6 0 0 0",
    ]));
    assert!(netns.sh("nft list ruleset").contains("flannel"), "masquerading was asked for");

    let running = pair.left.cleanup();
    if !running.status.success() {
        // Refusing while the agent runs is right too, with a word about it.
        let text = String::from_utf8_lossy(&running.stderr).into_owned();
        assert!(text.contains("stop the agent first"), "{text}");
    }
    pair.left.stop_agent();
    // Stopping leaves the data plane.
    pair.client.ping(pair.server.address, "-c 2 -i 0.1 -W 2");
    let output = pair.left.cleanup();
    assert!(output.status.success(), "{output:?}");
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(told.contains("removed the firewall rules"), "{told}");

    let netns = &pair.left.netns;
    assert!(!netns.try_sh("ip link show flannel.1"));
    assert!(!netns.sh("nft list ruleset").contains("flannel"), "rules of ours");
    assert_eq!(hooks::pins(pair.left.pin_dir()), Vec::<std::path::PathBuf>::new());
    for interface in ["eth0", "veth2"] {
        assert_eq!(hooks::on(netns, interface), Vec::<String>::new(), "{interface}");
    }
    let qdiscs = netns.sh("tc qdisc show");
    let clsact: Vec<_> = qdiscs.lines().filter(|line| line.contains("clsact")).collect();
    assert!(clsact.iter().all(|line| line.contains("cni0")), "{clsact:?}");
    let liberal = netns.sh("sysctl -n net.netfilter.nf_conntrack_tcp_be_liberal");
    assert_eq!(liberal.trim(), "0", "nf_conntrack_tcp_be_liberal as it was");
    assert!(!netns.ip("route show").contains("flannel"));
    assert!(!pair.left.subnet_file().exists(), "subnet.env");

    assert!(netns.ip("route show").contains("10.99.0.0/24"));
    assert!(netns.sh("nft list tables").contains("table ip foreign"));
    assert!(netns.sh("tc filter show dev cni0 ingress").contains("pref 7 bpf"));

    // Twice is as good as once, and a start after it is a first start.
    let again = pair.left.cleanup();
    assert!(again.status.success(), "{again:?}");
    let told = String::from_utf8_lossy(&again.stdout).into_owned();
    assert!(told.contains("nothing of ours was there"), "{told}");
    pair.left.start(&pair.etcd, &options);
    pair.right.wait_routes(&[&pair.left]);
}

#[test]
fn tcx() {
    removes_everything(&Options { attach: Some("tcx"), ..Options::ebpf() });
}

#[test]
fn clsact() {
    removes_everything(&Options { attach: Some("clsact"), ..Options::ebpf() });
}

#[test]
fn kernel_path() {
    removes_everything(&Options::kernel());
}

#[test]
fn after_kill_9() {
    let mut pair = Pair::agents(&Options::ebpf());
    pair.left.kill_agent();
    let output = pair.left.cleanup();
    assert!(output.status.success(), "{output:?}");
    assert!(!pair.left.netns.try_sh("ip link show flannel.1"));
    assert!(hooks::on(&pair.left.netns, "eth0").is_empty());
}

#[test]
fn on_a_node_that_never_had_an_agent() {
    let lab = flannel_tests::lab::Lab::new();
    let node = lab.node(1);
    let output = node.cleanup();
    assert!(output.status.success(), "{output:?}");
    // The kernel has no table of routes before the first route.
    node.netns.ip("link delete eth0");
    let output = node.cleanup();
    assert!(output.status.success(), "{output:?}");
}
