//! The agent has stopped and flanneld runs instead: plain Linux plays its part.
//! The pinned programs must not be in its way, and `cleanup` neither.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use flannel_ebpf::abi::Outcome;
use flannel_tests::agent::Options;
use flannel_tests::beside::wait_ping;
use flannel_tests::hooks;
use flannel_tests::lab::OUTSIDE;
use flannel_tests::netns::Netns;
use flannel_tests::node::Node;
use flannel_tests::pair::Pair;
use flannel_tests::pod::Pod;
use flannel_tests::process::run;
use flannel_tests::wait;

use super::takeover::{CHAINS, TABLES};

const TABLE: &str = "nft list table ip flannel-ipv4";
const JOINED: &str = "10.244.203.0/24";

/// A plain node joins, with a pod, and the node `left` hears of it as flanneld
/// would there.
fn join(pair: &Pair) -> (Node, Pod) {
    let mut third = pair.lab.node(3);
    third.make_plain(&pair.etcd, JOINED);
    third.sync_plain(&pair.etcd);
    let subnet = JOINED.parse().expect("a subnet");
    pair.left.plain_peer(subnet, &third.vtep_mac(), third.address);
    let pod = third.pod(2);
    (third, pod)
}

fn reached(pod: &Pod, from: &Pod) -> bool {
    from.netns.ping(pod.address, "-c 3 -i 0.1 -W 1").0
}

/// Makes the last sign of life as old as this.
fn age(pin_dir: &Path, age: Duration) {
    let path = hooks::pins(pin_dir).into_iter().find(|path| path.ends_with("fl_attended"));
    let path = path.expect("a pinned map");
    let clock = std::fs::read_to_string("/proc/uptime").expect("the time since the boot");
    let seconds: f64 = clock.split(' ').next().and_then(|text| text.parse().ok()).expect("seconds");
    let sign = Duration::from_secs_f64(seconds).saturating_sub(age);
    let sign = u64::try_from(sign.as_nanos()).expect("nanoseconds").to_ne_bytes();
    let bytes = sign.iter().chain(&[0; 8]).map(u8::to_string);
    let mut command = std::process::Command::new("bpftool");
    command.args(["map", "update", "pinned"]).arg(path).args(["key", "0", "0", "0", "0", "value"]);
    run(command.args(bytes));
}

#[test]
fn nodes_that_join_after_a_stop_are_reached_at_once() {
    let mut pair = Pair::agents(&Options::ebpf());
    assert!(pair.left.stop_agent().success());
    let before = hooks::on(&pair.left.netns, "eth0");
    assert!(!before.is_empty(), "the programs stay");
    let (_third, pod) = join(&pair);
    assert!(reached(&pod, &pair.client), "{:?}", hooks::dump(pair.left.pin_dir(), "fl_attended"));
    assert!(reached(&pair.client, &pod));
    // The next start trusts its own tables again.
    pair.left.start(&pair.etcd, &Options::ebpf());
    pair.left.wait_routes(&[&pair.right]);
    assert!(reached(&pod, &pair.client));
    assert_eq!(pair.left.outcomes().get(Outcome::ForgedOuterSource), 0);
    assert!(pair.left.outcomes().get(Outcome::Unattended) > 0);
}

#[test]
fn after_a_kill_they_are_reached_within_a_minute() {
    let mut pair = Pair::agents(&Options::ebpf());
    pair.left.kill_agent();
    let (_third, pod) = join(&pair);
    assert!(!reached(&pod, &pair.client), "the tables may be young");
    age(pair.left.pin_dir(), Duration::from_secs(62));
    assert!(reached(&pod, &pair.client));
    assert!(reached(&pair.server, &pair.client), "by the kernel path");
}

struct Ended<'a>(&'a AtomicBool);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Connections to the outside while `work` is done: one after the other, each with
/// an identity of its own. How many were made; none may fail.
fn outwards<T>(client: &Pod, work: impl FnOnce() -> T) -> (T, usize) {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let pings = scope.spawn(|| {
            let mut made = 0;
            while !done.load(Ordering::Relaxed) {
                client.ping(OUTSIDE, "-c 1 -W 1");
                made += 1;
            }
            made
        });
        // Set on failure, too.
        let ended = Ended(&done);
        let result = work();
        drop(ended);
        (result, pings.join().expect("each ping is answered"))
    })
}

/// Flanneld's rules are in what is `listed`, or they and ours.
fn clean_up_behind(flanneld: impl FnOnce(&Netns), firewall: &str, listed: &str) {
    let extra = vec![format!("--firewall={firewall}")];
    let mut pair = Pair::agents(&Options { ip_masq: true, extra, ..Options::ebpf() });
    let _outside = pair.lab.outside();
    assert!(pair.left.stop_agent().success());
    wait_ping(&pair);
    wait::holds("a way to the outside", Duration::from_secs(5), || {
        pair.client.netns.ping(OUTSIDE, "-c 1 -W 1").0
    });
    let netns = &pair.left.netns;
    let digests = || {
        let all = [netns.sh("iptables-save"), netns.sh("nft list tables")].concat();
        let table =
            if all.contains("table ip flannel-ipv4") { netns.sh(TABLE) } else { String::new() };
        [all, table].concat().matches("flanneld masq ").count()
    };
    let ((), made) = outwards(&pair.client, || {
        assert!(digests() > 0);
        flanneld(netns);
        let output = pair.left.cleanup_with(&["--keep-device"]);
        assert!(output.status.success(), "{output:?}");
    });
    assert!(made > 3, "{made}");
    let left = netns.sh(listed);
    assert_eq!(digests(), 0, "{left}");
    assert!(left.matches("10.244.").count() >= 7, "{left}");
    assert!(hooks::on(&pair.left.netns, "eth0").is_empty());
    pair.client.ping(pair.server.address, "-c 2 -i 0.1 -W 2");
    pair.client.ping(OUTSIDE, "-c 1 -W 1");
}

#[test]
fn cleanup_leaves_the_chains_of_flanneld_that_runs() {
    clean_up_behind(|netns| netns.iptables(CHAINS), "iptables", "iptables-save");
}

#[test]
fn cleanup_leaves_the_chains_of_flanneld_beside_our_table() {
    clean_up_behind(|netns| netns.iptables(CHAINS), "nftables", "iptables-save");
}

#[test]
fn cleanup_leaves_the_table_of_flanneld_that_runs() {
    // Flannel empties the chains and fills them in one step.
    let ours = "flush chain ip flannel-ipv4 forward\nflush chain ip flannel-ipv4 postrtg\n";
    let load = |netns: &Netns| netns.nft(&format!("{ours}{TABLES}"));
    clean_up_behind(load, "nftables", TABLE);
}
