//! Rules of a real kernel, as nft and iptables list them. Needs root.

use std::time::{Duration, Instant};

use crate::netns::{in_netns, run};
use flannel_agent::firewall::packet_rules::follow::RulesFollower;
use flannel_agent::firewall::packet_rules::read::Reader;
use flannel_agent::kernel::Kernel as _;
use flannel_agent::kernel::netlink::RealKernel;
use flannel_core::firewall::packet_rules::devices::{Devices, NodeDevices};
use flannel_core::firewall::packet_rules::exempt::{Effect, Present, Resolved, describe, resolve};
use flannel_core::firewall::packet_rules::walk::{Findings, Overlay};

const RULES: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/core/src/firewall/packet_rules/testdata/nft.rules");

/// As `--fast-path-window`.
const WINDOW: Duration = Duration::from_secs(1);

fn overlay() -> Overlay {
    Overlay { network: "10.5.0.0/16".parse().unwrap(), port: Some(8472) }
}

/// `eth0` is the underlay, `flannel.1` the tunnel, `cni0` the pods' bridge.
async fn node() -> Devices {
    run("ip link add eth0 type bridge");
    run("ip address add 192.0.2.1/24 dev eth0");
    run("ip link add flannel.1 type vxlan id 1 dev eth0 dstport 8472");
    run("ip link add cni0 type bridge");
    run("ip address add 10.5.1.1/24 dev cni0");
    let links = RealKernel::open().unwrap().links().await.unwrap();
    let index = |name: &str| links.iter().find(|link| link.name == name).unwrap().ifindex;
    Devices::of(NodeDevices {
        links: &links,
        pods: &[],
        underlay: index("eth0"),
        overlay: Some(index("flannel.1")),
        direct: false,
        subnet: "10.5.1.0/24".parse().unwrap(),
    })
}

fn resolved(found: &Findings, devices: &Devices) -> Resolved {
    resolve(found, Present { devices, overlay: overlay(), eager: false, helpers: false })
}

fn words(found: &Findings, devices: &Devices) -> Vec<String> {
    resolved(found, devices).exemptions.iter().map(describe).collect()
}

async fn read() -> Findings {
    Reader::new(overlay(), WINDOW)
        .look(true)
        .await
        .unwrap()
        .expect("the first look tells everything")
}

fn restore(program: &str, rules: &str) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), rules).unwrap();
    run(&format!("{program}-restore --noflush {}", file.path().display()));
}

#[test]
fn a_node_without_rules_has_none_that_matter() {
    in_netns(async {
        let mut reader = Reader::new(overlay(), WINDOW);
        assert_eq!(reader.look(true).await.unwrap(), Some(Findings::default()));
        assert_eq!(reader.look(true).await.unwrap(), None, "nothing changed");
    });
}

#[test]
fn rules_of_all_families() {
    in_netns(async {
        let devices = node().await;
        run(&format!("nft -f {RULES}"));
        let found = read().await;
        let lines = resolved(&found, &devices).rules;
        let has = |family: &str, chain: &str, rule: &str| {
            lines.iter().any(|line| {
                line.family.is_some_and(|found| found.name() == family)
                    && line.chain.as_deref() == Some(chain)
                    && line.rule == rule
                    && line.effect == Effect::KernelPath
                    && line.handle.is_some()
            })
        };
        assert!(has("inet", "forward", "udp dport 5300 limit rate over 100/second drop"));
        assert!(has("ip", "d", "ip saddr 10.5.1.7 dup addr 10.0.0.1 dev lo"));
        // nft's JSON does not name its devices, the kernel does.
        assert!(has("netdev", "in", "limit rate over 5/second drop"), "{lines:#?}");
        assert!(!lines.iter().any(|line| line.chain.as_deref() == Some("in1")), "{lines:#?}");
        assert!(!lines.iter().any(|line| line.chain.as_deref() == Some("unused")));
        let logs = lines.iter().filter(|line| line.effect == Effect::Log).count();
        assert_eq!(logs, 2, "{lines:#?}");
    });
}

const ESTABLISHED: &str = "-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT";
const PORTS: &str = "-A FORWARD -p udp -m multiport --dports 53,5300 -m hashlimit \
                     --hashlimit-above 9/sec --hashlimit-name x -j DROP";
const FLOOD: &str = "-A FORWARD -p tcp --syn -m limit --limit 25/sec -j ACCEPT";
const HELPER: &str = "*raw\n-A PREROUTING -p tcp --dport 21 -j CT --helper ftp\nCOMMIT\n";

#[test]
fn both_kinds_of_iptables_mean_the_same() {
    for kind in ["iptables-nft", "iptables-legacy"] {
        in_netns(async move {
            let devices = node().await;
            restore(kind, &format!("*filter\n{ESTABLISHED}\n{PORTS}\n{FLOOD}\nCOMMIT\n{HELPER}"));
            let found = read().await;
            assert_eq!(
                words(&found, &devices),
                ["TCP to port 21, with the answers", "UDP to port 53", "UDP to port 5300"],
                "{kind}"
            );
            // What translates sees one packet of a connection.
            restore(
                kind,
                "*nat\n-A POSTROUTING -m statistic --mode random --probability 0.5 \
                           -j MASQUERADE\nCOMMIT\n",
            );
            assert_eq!(words(&read().await, &devices).len(), 3, "{kind}");
            restore(kind, "*filter\n-I FORWARD -j NFQUEUE\nCOMMIT\n");
            assert_eq!(
                words(&read().await, &devices),
                ["TCP and UDP", "TCP to port 21, with the answers"]
            );
        });
    }
}

#[test]
fn reading_makes_no_tables() {
    in_netns(async {
        for _ in 0..2 {
            read().await;
        }
        let tables = || std::fs::read_to_string("/proc/thread-self/net/ip_tables_names").unwrap();
        assert_eq!(tables(), "");
        assert_eq!(run("nft list tables"), "");
        run("iptables-legacy -t mangle -S");
        let before = tables();
        read().await;
        assert_eq!(tables(), before);
    });
}

#[test]
fn changes_of_old_tables_are_seen_by_a_thorough_look_within_the_window() {
    in_netns(async {
        let devices = node().await;
        let mut reader = Reader::new(overlay(), WINDOW);
        reader.look(true).await.unwrap();
        assert!(!reader.has_to_look());
        run("iptables-legacy -A FORWARD -p udp -m quota --quota 9 -j ACCEPT");
        assert!(reader.has_to_look());
        let found = reader.look(false).await.unwrap().expect("there is a new table");
        assert_eq!(words(&found, &devices), ["UDP"]);
        run("iptables-legacy -F FORWARD");
        assert!(!reader.has_to_look());
        assert_eq!(reader.look(false).await.unwrap(), None, "nothing tells");
        tokio::time::sleep(WINDOW / 2).await;
        assert!(reader.has_to_look());
        assert_eq!(reader.look(true).await.unwrap(), Some(Findings::default()));
        assert!(!reader.has_to_look());
    });
}

#[test]
fn a_large_rule_set_of_services_costs_little() {
    in_netns(async {
        let mut rules = String::from(
            "*filter\n:KUBE-FORWARD - [0:0]\n-A FORWARD -j KUBE-FORWARD\n\
             -A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP\nCOMMIT\n\
             *nat\n:KUBE-SERVICES - [0:0]\n-A PREROUTING -j KUBE-SERVICES\n",
        );
        for number in 0..3000 {
            let (service, endpoint) =
                (format!("KUBE-SVC-{number:012}"), format!("KUBE-SEP-{number:012}"));
            rules.push_str(&format!(
                ":{service} - [0:0]\n:{endpoint} - [0:0]\n\
                 -A KUBE-SERVICES -d 10.96.{}.{} -p tcp --dport 443 -j {service}\n\
                 -A {service} -m statistic --mode random --probability 0.5 -j {endpoint}\n\
                 -A {endpoint} -p tcp -j DNAT --to-destination 10.5.2.2:443\n",
                number / 250,
                number % 250
            ));
        }
        restore("iptables-nft", &(rules + "COMMIT\n"));
        let whole = Instant::now();
        run("nft -j list ruleset");
        let whole = whole.elapsed();
        let began = Instant::now();
        assert_eq!(read().await, Findings::default());
        let took = began.elapsed();
        assert!(took * 3 < whole, "{took:?}, and {whole:?} for all that nft can list");
    });
}

#[test]
fn a_follower_hears_of_rules() {
    in_netns(async {
        let devices = node().await;
        let mut follower = RulesFollower::start(overlay(), WINDOW, Duration::from_secs(60));
        follower.changed().await.unwrap();
        run("nft add table ip t");
        run("nft add chain ip t f { type filter hook forward priority 0 ; }");
        run("nft add rule ip t f udp dport 5300 limit rate over 100/second drop");
        follower.notice();
        let limit = Duration::from_secs(5);
        tokio::time::timeout(limit, follower.changed()).await.expect("another reading").unwrap();
        let found = follower.reading().findings.unwrap();
        assert_eq!(words(&found, &devices), ["UDP to port 5300"]);
        // Old tables, without a notice.
        run("iptables-legacy -A FORWARD -p tcp -m quota --quota 9 -j ACCEPT");
        follower.glance();
        tokio::time::timeout(limit, follower.changed()).await.expect("another reading").unwrap();
        let found = follower.reading().findings.unwrap();
        assert_eq!(words(&found, &devices), ["TCP", "UDP to port 5300"]);
    });
}
