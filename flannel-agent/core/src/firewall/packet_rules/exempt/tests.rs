//! From rules as iptables-save prints them to exemptions.

use super::*;
use crate::firewall::packet_rules::devices::tests::node;
use crate::firewall::packet_rules::iptables;
use crate::firewall::packet_rules::walk;

pub(in super::super) fn overlay() -> Overlay {
    Overlay { network: "10.5.0.0/16".parse().unwrap(), port: Some(8472) }
}

pub(in super::super) fn resolved(findings: &Findings) -> Resolved {
    let devices = node(false);
    let present = Present { devices: &devices, overlay: overlay(), eager: false, helpers: false };
    resolve(findings, present)
}

/// What rules of FORWARD (or with another chain in front) become, in words.
fn forward(rules: &[&str]) -> Vec<String> {
    words(&read("filter", rules))
}

fn words(findings: &Findings) -> Vec<String> {
    resolved(findings).exemptions.iter().map(describe).collect()
}

fn read(table: &str, rules: &[&str]) -> Findings {
    let mut text = format!("*{table}\n");
    for chain in ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"] {
        text.push_str(&format!(":{chain} ACCEPT [0:0]\n"));
    }
    text.push_str(":one - [0:0]\n:two - [0:0]\n");
    for rule in rules {
        let chain = if rule.starts_with("-A ") { "" } else { "-A FORWARD " };
        text.push_str(&format!("{chain}{rule}\n"));
    }
    walk::findings(&iptables::read(&(text + "COMMIT\n")), overlay())
}

const LIMIT: &str = "-m limit --limit 1/sec -j DROP";

#[test]
fn matches_narrow_what_is_exempt() {
    for (matches, exempt) in [
        ("", &["TCP and UDP"][..]),
        ("-p udp -m udp --dport 5300", &["UDP to port 5300"]),
        (
            "-p tcp -m multiport --dports 21,5060:5070",
            &["TCP to port 21", "TCP to ports 5060-5070"],
        ),
        ("-s 10.5.1.7/32 -d 10.5.2.0/24", &["TCP and UDP from 10.5.1.7/32 to 10.5.2.0/24"]),
        ("-d 10.5.0.0/16", &["TCP and UDP"]),
        // Nothing outside of the overlay is on the path.
        ("! -d 10.0.0.0/8", &[]),
        ("-d 192.0.2.0/24", &[]),
        (
            "! -s 10.5.0.0/17",
            &[
                "TCP and UDP from 10.5.128.0/17",
                // Sources may be anybody.
            ],
        ),
        ("-i cni0", &["TCP and UDP, outwards"]),
        ("-i flannel.1", &["TCP and UDP, inwards"]),
        ("-o flannel.1 -p tcp", &["TCP, outwards"]),
        ("-i veth+ -o flannel.+", &["TCP and UDP, outwards"]),
        ("-i cni0 -o cni0", &[]),
        ("-i docker0", &[]),
        ("-i eth0", &[]),
        ("-o eth1 -p udp", &[]),
        ("! -i lo", &["TCP and UDP"]),
        ("-p icmp", &[]),
        ("! -p tcp", &["UDP"]),
        ("-p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN", &[]),
        ("-p tcp -m tcp ! --tcp-flags FIN,SYN,RST,ACK SYN", &["TCP"]),
        ("-f", &[]),
        ("-m mark --mark 0x4", &["TCP and UDP"]),
        ("-m set --match-set some src", &["TCP and UDP"]),
    ] {
        let found = forward(&[&format!("{matches} {LIMIT}")]);
        if matches == "! -s 10.5.0.0/17" {
            assert!(found.len() <= 4 && !found.is_empty(), "{found:?}");
            continue;
        }
        assert_eq!(found, exempt, "{matches}");
    }
}

#[test]
fn what_ends_or_opens_connections_is_told_from_the_rest() {
    let established = "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT";
    // Behind it only what conntrack calls new comes to the limit: of TCP the
    // handshake, of UDP all packets until there is an answer.
    assert_eq!(forward(&[established, LIMIT]), ["UDP"]);
    assert_eq!(forward(&[LIMIT, established]), ["TCP and UDP"]);
    assert_eq!(forward(&[established, "-p tcp -m limit --limit 1/sec -j ACCEPT"]), [""; 0]);
    assert_eq!(forward(&["-p tcp -m state --state NEW -m limit --limit 1/sec -j ACCEPT"]), [""; 0]);
    assert_eq!(forward(&["-p udp -m state --state NEW -m limit --limit 1/sec -j DROP"]), ["UDP"]);
    let only_tcp = "-p tcp -m conntrack --ctstate ESTABLISHED -j ACCEPT";
    assert_eq!(forward(&[only_tcp, LIMIT]), ["UDP"]);
    let from_one = "-s 10.5.1.7/32 -m conntrack --ctstate ESTABLISHED -j ACCEPT";
    assert_eq!(forward(&[from_one, LIMIT]), ["TCP and UDP"]);
    assert_eq!(forward(&["-j ACCEPT", LIMIT]), [""; 0]);
    assert_eq!(forward(&["-d 10.5.0.0/16 -j ACCEPT", LIMIT]), [""; 0]);
    assert_eq!(forward(&["-d 10.5.2.0/24 -j ACCEPT", LIMIT]), ["TCP and UDP"]);
}

#[test]
fn connections_that_conntrack_does_not_know_are_never_established() {
    let rules = ["-m conntrack --ctstate ESTABLISHED -j ACCEPT", LIMIT];
    let with = [rules[0], rules[1], "-A PREROUTING -p tcp -m tcp --dport 9 -j CT --notrack"];
    assert_eq!(words(&read("filter", &rules)), ["UDP"]);
    assert_eq!(words(&read("filter", &with)), ["TCP and UDP"]);
}

#[test]
fn jumps_carry_their_conditions() {
    let flood = ["-A one -m limit --limit 25/sec -j RETURN", "-A one -j DROP"];
    let with = |jump: &str| forward(&[&[jump], &flood[..]].concat());
    assert_eq!(with("-p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN -j one"), [""; 0]);
    assert_eq!(with("-p udp -m udp --dport 53 -j one"), ["UDP to port 53"]);
    assert_eq!(with("-p udp -m udp --dport 53 -g one"), ["UDP to port 53"]);
    assert_eq!(with("-A INPUT -j one"), ["TCP and UDP, inwards"], "the tunnel's packets");
    assert_eq!(with("-A two -j one"), [""; 0], "nothing comes there");
    assert_eq!(with("-A OUTPUT -j one"), [""; 0]);
    // Two ways.
    let both = ["-p udp -m udp --dport 53 -j one", "-p tcp -m tcp --dport 54 -j one"];
    let found = forward(&[&both[..], &flood[..]].concat());
    assert_eq!(found, ["UDP to port 53", "TCP to port 54"]);
    // What another chain accepts does not come back.
    let accept = "-A one -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT";
    assert_eq!(forward(&["-j one", accept, LIMIT]), ["UDP"]);
    assert_eq!(forward(&["-p tcp -j one", accept, LIMIT]), ["UDP"]);
    assert_eq!(forward(&["-s 10.5.1.7/32 -j one", accept, LIMIT]), ["TCP and UDP"]);
    assert_eq!(forward(&["-j one", "-A one -p tcp -j RETURN", accept, LIMIT]), ["TCP and UDP"]);
}

#[test]
fn what_only_tells_keeps_nothing_off() {
    let findings = read(
        "filter",
        &[
            "-m limit --limit 5/min -j LOG --log-prefix denied",
            "-j NFLOG --nflog-group 2",
            "-m limit --limit 5/min -j one",
            "-A one -j LOG",
            "-A one -m connlimit --connlimit-above 5 -j RETURN",
            "-A INPUT -j LOG",
            "-p icmp -j LOG",
            "-A two -j LOG",
            "-m limit --limit 5/min",
        ],
    );
    let resolved = resolved(&findings);
    assert_eq!(resolved.exemptions, []);
    assert_eq!(resolved.rules.len(), 3, "{:?}", resolved.rules);
    assert!(resolved.rules.iter().all(|line| line.effect == Effect::Log));
    // The same chain with a decision in it.
    let drops = ["-m limit --limit 5/min -j one", "-A one -j LOG", "-A one -j DROP"];
    assert_eq!(forward(&drops), ["TCP and UDP"]);
}

/// What ufw makes of its defaults (abridged), with a service that it limits.
const UFW: &[&str] = &[
    "-A INPUT -j before-input",
    "-A INPUT -m limit --limit 3/min --limit-burst 10 -j LOG --log-prefix \"[UFW BLOCK] \"",
    "-A FORWARD -j before-forward",
    "-A FORWARD -j user-forward",
    "-A FORWARD -m limit --limit 3/min --limit-burst 10 -j LOG --log-prefix \"[UFW BLOCK] \"",
    "-A before-forward -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
    "-A before-forward -p icmp -m icmp --icmp-type 8 -j ACCEPT",
    "-A before-input -i lo -j ACCEPT",
    "-A before-input -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
    "-A before-input -m conntrack --ctstate INVALID -j logging-deny",
    "-A before-input -m conntrack --ctstate INVALID -j DROP",
    "-A before-input -j not-local",
    "-A before-input -j user-input",
    "-A logging-deny -m conntrack --ctstate INVALID -m limit --limit 3/min --limit-burst 10 -j RETURN",
    "-A logging-deny -m limit --limit 3/min --limit-burst 10 -j LOG --log-prefix \"[UFW BLOCK] \"",
    "-A not-local -m addrtype --dst-type LOCAL -j RETURN",
    "-A not-local -m limit --limit 3/min --limit-burst 10 -j logging-deny",
    "-A not-local -j DROP",
    "-A user-input -p tcp -m tcp --dport 22 -m conntrack --ctstate NEW -m recent --set --name x",
    "-A user-input -p tcp -m tcp --dport 22 -m conntrack --ctstate NEW -m recent --update \
     --seconds 30 --hitcount 6 --name x -j user-limit",
    "-A user-limit -m limit --limit 3/min -j LOG --log-prefix \"[UFW LIMIT BLOCK] \"",
    "-A user-limit -j REJECT --reject-with icmp-port-unreachable",
];

#[test]
fn a_usual_firewall_keeps_nothing_off() {
    let chains = [
        "before-input",
        "before-forward",
        "logging-deny",
        "not-local",
        "user-input",
        "user-forward",
        "user-limit",
    ];
    let mut text = "*filter\n:INPUT DROP [0:0]\n:FORWARD DROP [0:0]\n".to_owned();
    text.extend(chains.map(|chain| format!(":{chain} - [0:0]\n")));
    text.extend(UFW.iter().map(|rule| format!("{rule}\n")));
    let found = resolved(&walk::findings(&iptables::read(&(text + "COMMIT\n")), overlay()));
    assert_eq!(found.exemptions, [], "{:#?}", found.rules);
    // That of FORWARD; what comes to INPUT is the node's own.
    assert_eq!(found.rules.len(), 1, "{:#?}", found.rules);
}

#[test]
fn connections_are_exempt_with_their_answers() {
    let helper = read("raw", &["-A PREROUTING -p tcp -m tcp --dport 21 -j CT --helper ftp"]);
    assert_eq!(words(&helper), ["TCP to port 21, with the answers"]);
    // The helper stays with the connection whatever packet gave it.
    let new = "-p tcp -m tcp --dport 21 -m conntrack --ctstate NEW -j CT --helper ftp";
    assert_eq!(words(&read("raw", &[new])), ["TCP to port 21, with the answers"]);
    let bytes = "-p tcp -m connbytes --connbytes 1000 --connbytes-dir both \
                 --connbytes-mode bytes -j DROP";
    assert_eq!(forward(&[bytes]), ["TCP, with the answers"]);
    assert_eq!(
        forward(&["-p tcp -m tcp --dport 80 -m conntrack --ctstate INVALID,UNTRACKED -j SYNPROXY"]),
        ["TCP to port 80, with the answers"]
    );
}

#[test]
fn rules_on_tunnel_packets_keep_all_that_comes_by_them() {
    let input = |rules: &[&str]| {
        let rules: Vec<String> = rules.iter().map(|rule| format!("-A INPUT {rule}")).collect();
        forward(&rules.iter().map(String::as_str).collect::<Vec<&str>>())
    };
    let inwards = ["TCP and UDP, inwards"];
    assert_eq!(input(&["-p udp -m udp --dport 8472 -m limit --limit 9/sec -j ACCEPT"]), inwards);
    assert_eq!(input(&["-d 192.0.2.1/32 -m limit --limit 9/sec -j ACCEPT"]), inwards);
    assert_eq!(input(&["-i eth0 -m hashlimit --hashlimit-above 9/sec -j DROP"]), inwards);
    for other in [
        "-p tcp -m limit --limit 9/sec -j ACCEPT",
        "-p udp -m udp --dport 53 -m limit --limit 9/sec -j ACCEPT",
        "-i lo -m limit --limit 9/sec -j ACCEPT",
        "-i cni0 -m limit --limit 9/sec -j ACCEPT",
        "-d 192.0.2.9/32 -m limit --limit 9/sec -j ACCEPT",
        "-m limit --limit 9/sec -j LOG",
    ] {
        assert_eq!(input(&[other]), [""; 0], "{other}");
    }
    let accepted = "-p udp -m udp --dport 8472 -j ACCEPT";
    assert_eq!(input(&[accepted, "-m limit --limit 9/sec -j ACCEPT"]), [""; 0]);
}

#[test]
fn too_many_become_one() {
    let rule = |port: usize| format!("-p udp -m udp --dport {port} {LIMIT}");
    let most_kinds = MAX_EXEMPTIONS as usize;
    let rules: Vec<String> = (0..most_kinds).map(|port| rule(2 * port)).collect();
    let read_all = |rules: &[String]| {
        resolved(&read("filter", &rules.iter().map(String::as_str).collect::<Vec<&str>>()))
    };
    let most = read_all(&rules);
    assert_eq!((most.exemptions.len(), most.crowded, most.more), (most_kinds, false, 0));
    let more: Vec<String> = (0..2000).map(|port| rule(2 * port)).collect();
    for rules in [&more[..most_kinds + 1], &more[..]] {
        let found = read_all(rules);
        assert_eq!((found.exemptions, found.crowded), (everything(), true));
        assert_eq!(found.rules.len() + found.more, rules.len().max(LINES).min(rules.len()));
    }
    // One that holds the others is enough.
    let wide = read_all(&[more, vec![format!("-p udp {LIMIT}")]].concat());
    assert!(wide.crowded || wide.exemptions.len() == 1);
}

#[test]
fn eager_connections_are_judged_from_their_first_packet_on() {
    let findings = read(
        "filter",
        &[
            "-p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN -m limit --limit 1/sec -j ACCEPT",
            "-p tcp -m tcp --dport 22 -m conntrack --ctstate NEW -m recent --update --name x -j DROP",
        ],
    );
    let devices = node(false);
    let present = Present { devices: &devices, overlay: overlay(), eager: true, helpers: false };
    let eager: Vec<String> = resolve(&findings, present).exemptions.iter().map(describe).collect();
    assert_eq!(eager, ["TCP"]);
    assert_eq!(resolved(&findings).exemptions, []);
}

#[test]
fn helpers_by_port_are_exempt_both_ways() {
    let devices = node(false);
    let present = Present { devices: &devices, overlay: overlay(), eager: false, helpers: true };
    let found = resolve(&Findings::default(), present);
    let flows: Vec<String> = found.exemptions.iter().map(describe).collect();
    assert!(flows.iter().any(|flow| flow == "TCP to port 21, with the answers"), "{flows:?}");
    assert!(found.exemptions.iter().all(|one| one.both_ways == 1 && one.dport_min > 0));
    assert!(!found.crowded && !found.rules.is_empty());
    assert!(
        found.rules.iter().all(|line| line.family.is_none() && line.effect == Effect::KernelPath)
    );
}

#[test]
fn lines_say_where_a_rule_stands() {
    let found = resolved(&read("filter", &["-i cni0 -p udp -m udp --dport 53 -j NFQUEUE"]));
    let line = &found.rules[0];
    assert_eq!((line.family, line.table.as_deref()), (Some(Family::Ip), Some("filter")));
    assert_eq!((line.chain.as_deref(), line.handle), (Some("FORWARD"), None));
    assert_eq!(line.rule, "-A FORWARD -i cni0 -p udp -m udp --dport 53 -j NFQUEUE");
    assert_eq!((line.why.as_str(), line.matches.as_str()), ("NFQUEUE", "UDP to port 53, outwards"));
    let json = serde_json::to_value(line).unwrap();
    assert_eq!(json["effect"], "kernel_path");
}
