//! Conntrack's helpers and the ports that they work on, where the kernel gives them
//! to connections by itself (`net.netfilter.nf_conntrack_helper=1`, before Linux
//! 6.0). Pure.

use super::matches::{Matches, protocol};
use super::ranges::Ports;
use super::ruleset::{Judges, NetfilterHook};
use super::walk::{Findings, Layer, RuleFinding, RuleScope};

/// Name, protocols and ports.
const HELPERS: &[(&str, u8, &[u32])] = &[
    ("amanda", protocol::UDP, &[10_080]),
    ("ftp", protocol::TCP, &[21]),
    ("h323", protocol::TCP, &[1720]),
    ("h323", protocol::UDP, &[1719]),
    ("irc", protocol::TCP, &[6667]),
    ("netbios-ns", protocol::UDP, &[137]),
    ("pptp", protocol::TCP, &[1723]),
    ("sane", protocol::TCP, &[6566]),
    ("sip", protocol::ALL, &[5060]),
    ("snmp", protocol::UDP, &[161]),
    ("tftp", protocol::UDP, &[69]),
];

/// What these helpers look at.
pub(super) fn automatic() -> Findings {
    let rules = HELPERS.iter().map(|(name, protocols, ports)| {
        let dport = Ports::of(ports.iter().map(|port| (*port, *port)));
        let matches = Matches { protocols: *protocols, dport, ..Matches::default() };
        RuleFinding {
            place: None,
            handle: None,
            text: format!("net.netfilter.nf_conntrack_helper = 1: helper {name}").into(),
            why: "ct helper".into(),
            reach: Some(Judges::Connection),
            note: None,
            scopes: vec![RuleScope {
                layer: Layer::Inner,
                hook: NetfilterHook::Prerouting,
                matches,
            }],
        }
    });
    Findings { rules: rules.collect(), ..Findings::default() }
}
