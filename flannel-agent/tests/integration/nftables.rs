//! What the kernel says of nftables. Needs root.

use crate::netns::{in_netns, run};
use flannel_agent::kernel::nftables::{BaseChain, base_chains, generation, tables};

fn chain(family: &'static str, table: &str, name: &str, kind: &str, devices: &[&str]) -> BaseChain {
    BaseChain {
        family,
        table: table.to_owned(),
        name: name.to_owned(),
        kind: kind.to_owned(),
        devices: devices.iter().map(|name| (*name).to_owned()).collect(),
        egress: name == "two",
    }
}

#[test]
fn the_number_changes_with_the_rules_and_with_nothing_else() {
    in_netns(async {
        let first = generation().unwrap().expect("nftables");
        run("nft list ruleset");
        run("ip link add cni0 type bridge");
        assert_eq!(generation().unwrap(), Some(first));
        run("nft add table ip t");
        let second = generation().unwrap().unwrap();
        assert_ne!(second, first);
        run("iptables-nft -A FORWARD -j ACCEPT");
        assert_ne!(generation().unwrap(), Some(second));
    });
}

#[test]
fn base_chains_with_their_devices() {
    in_netns(async {
        assert_eq!(base_chains().unwrap(), []);
        run("ip link add cni0 type bridge");
        for table in ["ip t", "inet t", "netdev t", "bridge t", "ip6 t"] {
            run(&format!("nft add table {table}"));
        }
        let named: Vec<_> = tables()
            .unwrap()
            .iter()
            .map(|table| format!("{} {}", table.family, table.name))
            .collect();
        assert_eq!(named.len(), 5, "{named:?}");
        assert!(named.contains(&"ip6 t".to_owned()), "{named:?}");
        for line in [
            "ip t f { type filter hook forward priority 0 ; }",
            "ip t n { type nat hook postrouting priority 100 ; }",
            "ip t user",
            "inet t p { type filter hook prerouting priority 0 ; }",
            "netdev t one { type filter hook ingress device lo priority 0 ; }",
            "netdev t two { type filter hook egress devices = { lo, cni0 } priority 0 ; }",
            "bridge t b { type filter hook output priority 0 ; }",
            "ip6 t six { type filter hook forward priority 0 ; }",
        ] {
            run(&format!("nft add chain {line}"));
        }
        // No packet meets the rules of a table that sleeps.
        run("nft add table ip asleep { flags dormant ; }");
        run("nft add chain ip asleep f { type filter hook forward priority 0 ; }");
        let asleep: Vec<_> = tables().unwrap().into_iter().filter(|table| table.dormant).collect();
        assert_eq!(asleep.len(), 1, "{asleep:?}");
        assert_eq!(asleep[0].name, "asleep");
        let mut found = base_chains().unwrap();
        found.sort_by(|a, b| (a.family, &a.name).cmp(&(b.family, &b.name)));
        assert_eq!(
            found,
            [
                chain("bridge", "t", "b", "filter", &[]),
                chain("inet", "t", "p", "filter", &[]),
                chain("ip", "t", "f", "filter", &[]),
                chain("ip", "t", "n", "nat", &[]),
                chain("ip6", "t", "six", "filter", &[]),
                chain("netdev", "t", "one", "filter", &["lo"]),
                chain("netdev", "t", "two", "filter", &["cni0", "lo"]),
            ]
        );
    });
}

#[test]
fn thousands_of_chains_take_several_messages() {
    in_netns(async {
        let mut rules = String::from("*filter\n");
        for number in 0..3000 {
            rules.push_str(&format!(":CHAIN-OF-A-SERVICE-{number:06} - [0:0]\n"));
        }
        rules.push_str("-A FORWARD -j ACCEPT\nCOMMIT\n");
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), rules).unwrap();
        run(&format!("iptables-nft-restore {}", file.path().display()));
        let found = base_chains().unwrap();
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0], chain("ip", "filter", "FORWARD", "filter", &[]));
    });
}
