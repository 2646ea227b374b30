//! What somebody takes away comes back within a second.

use std::time::{Duration, Instant};

use flannel_ebpf::abi::Outcome;
use flannel_tests::agent::Options;
use flannel_tests::load::SPACED;
use flannel_tests::pair::Pair;
use flannel_tests::wait;

/// A second, and what looking from outside costs on a busy machine.
const LIMIT: Duration = Duration::from_millis(1700);

/// Everything of `left`'s tunnel that has to be as it was.
fn tunnel(pair: &Pair) -> [String; 4] {
    let netns = &pair.left.netns;
    let sorted = |text: String| {
        let mut lines: Vec<_> = text.lines().map(str::trim_end).collect();
        lines.sort_unstable();
        lines.join("\n")
    };
    [
        pair.left.vtep_mac(),
        sorted(netns.ip("-4 route show dev flannel.1")),
        sorted(netns.ip("-4 neigh show dev flannel.1 nud permanent")),
        sorted(netns.sh("bridge fdb show dev flannel.1")),
    ]
}

#[track_caller]
fn repairs(options: &Options, damage: &[&str]) {
    let pair = Pair::agents(options);
    for what in damage {
        let peer = pair.right.subnet();
        let peer_mac = pair.right.vtep_mac();
        let line = what
            .replace("PEER_SUBNET", &peer.to_string())
            .replace("PEER_NETWORK", &peer.network().to_string())
            .replace("PEER_MAC", &peer_mac);
        let before = tunnel(&pair);
        pair.traffic(SPACED, "--seconds 0.3");
        let start = Instant::now();
        pair.left.netns.sh(&line);
        let looks = || {
            let there = pair.left.netns.try_sh("ip link show flannel.1");
            there && tunnel(&pair) == before
        };
        wait::holds(&format!("repair of `{line}`"), LIMIT, looks);
        let repaired = start.elapsed();
        wait::holds("traffic again", LIMIT, || {
            pair.client.netns.ping(pair.server.address, "-c 1 -W 1").0
        });
        println!("{line}: {repaired:?}");
        let fast_again = || {
            let outcomes = pair.left.outcomes();
            wait::holds("the fast path again", LIMIT, || {
                pair.traffic(SPACED, "--seconds 0.2");
                let since = pair.left.outcomes().since(&outcomes);
                since.get(Outcome::FastEncap) > 100 && since.get(Outcome::FastDecap) > 100
            });
        };
        // A clsact qdisc that is put on a device that is up takes the device's
        // queues away for a moment (qdisc_graft calls dev_deactivate): what is
        // sent then is lost, whoever puts it there.
        if options.attach == Some("clsact") {
            fast_again();
        }
        assert_eq!(pair.traffic(SPACED, "--seconds 0.5").lost, 0, "after {line}");
        if options.datapath == Some("ebpf") {
            fast_again();
        }
    }
}

const DAMAGE: &[&str] = &[
    "ip link delete flannel.1",
    "ip route flush dev flannel.1",
    "ip route delete PEER_SUBNET",
    "ip route replace PEER_SUBNET dev eth0",
    "ip route replace blackhole PEER_SUBNET",
    "ip route prepend PEER_SUBNET dev eth0",
    "ip route prepend unreachable PEER_SUBNET",
    "ip neigh delete PEER_NETWORK dev flannel.1",
    "bridge fdb delete PEER_MAC dev flannel.1 self",
    "ip link set flannel.1 address 02:00:5e:00:53:01",
    "ip link set flannel.1 down",
    "ip link set flannel.1 mtu 1300",
];

#[test]
fn kernel_path() {
    repairs(&Options::kernel(), DAMAGE);
}

#[test]
fn ebpf_path() {
    repairs(&Options::ebpf(), DAMAGE);
}

#[test]
fn clsact_filters() {
    let clsact = Options { attach: Some("clsact"), ..Options::ebpf() };
    repairs(
        &clsact,
        &[
            "tc qdisc delete dev eth0 clsact",
            "tc qdisc delete dev flannel.1 clsact",
            "tc qdisc delete dev veth2 clsact",
            "tc filter delete dev veth2 ingress",
            "tc filter delete dev eth0 ingress",
            "ip link delete flannel.1",
        ],
    );
}

#[test]
fn tcx_links() {
    let pair = Pair::agents(&Options { attach: Some("tcx"), ..Options::ebpf() });
    let links = flannel_tests::hooks::pinned_links(pair.left.pin_dir());
    assert!(links.len() >= 5, "five hooks are pinned: {links:?}");
    for link in &links {
        // Detached, as an administrator would: the pin stays, the hook is gone.
        flannel_tests::process::run(
            std::process::Command::new("bpftool").args(["link", "detach", "pinned"]).arg(link),
        );
        let before = pair.left.outcomes();
        wait::holds(&format!("{} again", link.display()), LIMIT + LIMIT, || {
            pair.traffic(SPACED, "--seconds 0.2");
            let since = pair.left.outcomes().since(&before);
            since.get(Outcome::FastEncap) > 100 && since.get(Outcome::FastDecap) > 100
        });
        assert_eq!(pair.traffic(SPACED, "--seconds 0.5").lost, 0, "{}", link.display());
    }
}

#[test]
fn what_no_event_tells_of() {
    let pair = Pair::agents(&Options::ebpf());
    let pins = pair.left.pin_dir();
    let peer = pair.right.subnet().network().octets().map(|octet| octet.to_string());
    let entries = || flannel_tests::hooks::dump(pins, "fl_subnets4").len();
    assert_eq!(entries(), 1);
    let map = flannel_tests::hooks::pins(pins).into_iter().find(|pin| pin.ends_with("fl_subnets4"));
    let mut delete = std::process::Command::new("bpftool");
    delete.args(["map", "delete", "pinned"]).arg(map.expect("a pinned map"));
    flannel_tests::process::run(delete.args(["key", "24", "0", "0", "0"]).args(peer));
    wait::holds("the entry again", LIMIT, || entries() == 1);

    let pinned = || flannel_tests::hooks::pins(pins).len();
    let before = pinned();
    std::fs::remove_dir_all(pins).expect("remove the pins");
    wait::holds("the pins again", LIMIT + LIMIT, || pinned() == before);
    pair.client.ping(pair.server.address, "-c 2 -i 0.2 -W 2");
    assert_eq!(pair.left.not_well(), []);

    let file = pair.left.subnet_file();
    let text = std::fs::read_to_string(&file).expect("subnet.env");
    std::fs::remove_file(&file).expect("remove subnet.env");
    wait::holds("the file again", LIMIT, || {
        std::fs::read_to_string(&file).is_ok_and(|now| now == text)
    });
    // As mk-docker-opts.sh does it when it is given this very file.
    let docker = "DOCKER_NETWORK_OPTIONS=\" --bip=10.244.1.1/24 --mtu=1450\"\n";
    std::fs::write(&file, docker).expect("overwrite subnet.env");
    wait::holds("both", LIMIT, || {
        std::fs::read_to_string(&file).is_ok_and(|now| now == format!("{text}{docker}"))
    });
    pair.left.netns.ip("link set eth0 mtu 1400");
    wait::holds("another MTU", LIMIT, || {
        let now = std::fs::read_to_string(&file).unwrap_or_default();
        now.contains("FLANNEL_MTU=1350") && now.ends_with(docker)
    });
}

#[test]
fn changes_of_others_are_left_alone() {
    let pair = Pair::agents(&Options::ebpf());
    let netns = &pair.left.netns;
    netns.ip("route add 10.99.0.0/24 via 192.0.2.1");
    netns.nft("table ip foreign { chain c { type filter hook forward priority 5; }; }");
    netns.ip("link add vxlan9 type vxlan id 9 local 192.0.2.11 dev eth0 dstport 4789 nolearning");
    netns.sh("bridge fdb append 02:00:5e:00:53:09 dev vxlan9 dst 192.0.2.99 self");
    netns.ip("link delete flannel.1");
    wait::holds("the device", LIMIT, || netns.try_sh("ip link show flannel.1"));
    pair.client.ping(pair.server.address, "-c 2 -i 0.2 -W 2");
    assert!(netns.ip("route show").contains("10.99.0.0/24"));
    assert!(netns.sh("nft list tables").contains("table ip foreign"));
    assert!(netns.sh("bridge fdb show dev vxlan9").contains("192.0.2.99"));
}
