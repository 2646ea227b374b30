//! Rules that judge each packet, as `status` prints them.

use std::fmt::Write as _;

use flannel_core::firewall::packet_rules::exempt::{Effect, RuleLine};
use flannel_core::status::{PacketRulesMode, PacketRulesStatus};

/// What follows from them, in a line.
pub(super) fn summary(rules: &PacketRulesStatus) -> String {
    if rules.mode == PacketRulesMode::Ignore {
        return "ignored (--packet-rules): each sees one packet of a flow in a window".to_owned();
    }
    if !rules.read {
        return "not read yet; until then nothing takes the fast path".to_owned();
    }
    match rules.exempt.as_slice() {
        [] => "none keeps anything off the fast path".to_owned(),
        [one, two, _, more @ ..] if !more.is_empty() => {
            format!("on the kernel path: {one}; {two}; {} more", rules.exempt.len() - 2)
        }
        few => format!("on the kernel path: {}", few.join("; ")),
    }
}

/// The rules, each in a line.
pub(super) fn list(rules: &PacketRulesStatus) -> String {
    let mut text = String::new();
    let groups = [
        (Effect::KernelPath, "rules that keep flows on the kernel path"),
        (Effect::Log, "rules that see one packet of a flow in a window"),
        (Effect::Offload, "rules that hand flows to the kernel's own fast path"),
    ];
    for (effect, title) in groups {
        let mut lines = rules.rules.iter().filter(|line| line.effect == effect).peekable();
        if lines.peek().is_some() {
            let _ = write!(text, "\n\n{title}");
        }
        for line in lines {
            let _ = write!(text, "\n  {}", one(line));
        }
    }
    if rules.more > 0 {
        let _ = write!(text, "\n  and {} more", rules.more);
    }
    text
}

fn one(line: &RuleLine) -> String {
    let family = line.family.map(|family| family.name());
    let place: Vec<&str> =
        [family, line.table.as_deref(), line.chain.as_deref()].into_iter().flatten().collect();
    let mut text = place.join(" ");
    if let Some(handle) = line.handle {
        let _ = write!(text, " handle {handle}");
    }
    if !text.is_empty() {
        text.push_str(": ");
    }
    text.push_str(&line.rule);
    if line.effect == Effect::KernelPath {
        let _ = write!(text, " ({}: {})", line.why, line.matches);
    }
    text
}

#[cfg(test)]
mod tests {
    use flannel_core::firewall::packet_rules::ruleset::Family;

    use super::*;

    fn line(
        effect: Effect,
        place: Option<(Family, &str, &str)>,
        rule: &str,
        (why, matches): (&str, &str),
    ) -> RuleLine {
        RuleLine {
            effect,
            family: place.map(|(family, ..)| family),
            table: place.map(|(_, table, _)| table.to_owned()),
            chain: place.map(|(.., chain)| chain.to_owned()),
            handle: None,
            rule: rule.to_owned(),
            why: why.to_owned(),
            matches: matches.to_owned(),
        }
    }

    fn respected(exempt: &[&str], rules: Vec<RuleLine>, more: usize) -> PacketRulesStatus {
        PacketRulesStatus {
            mode: PacketRulesMode::Respect,
            read: true,
            exempt: exempt.iter().map(|text| (*text).to_owned()).collect(),
            rules,
            more,
        }
    }

    #[test]
    fn rules_are_listed_by_what_follows_from_them() {
        let mut limit = line(
            Effect::KernelPath,
            Some((Family::Ip, "t", "f")),
            "udp dport 53 limit rate 9/second drop",
            ("limit", "UDP to port 53"),
        );
        limit.handle = Some(7);
        let helper = line(
            Effect::KernelPath,
            None,
            "net.netfilter.nf_conntrack_helper = 1: helper ftp",
            ("ct helper", "TCP to port 21, with the answers"),
        );
        let log = line(
            Effect::Log,
            Some((Family::Ip, "filter", "FORWARD")),
            "-A FORWARD -j LOG",
            ("log", "TCP and UDP"),
        );
        let exempt = ["UDP to port 53", "TCP to port 21, with the answers"];
        let rules = respected(&exempt, vec![limit, helper, log], 2);
        assert_eq!(
            summary(&rules),
            "on the kernel path: UDP to port 53; TCP to port 21, with the answers"
        );
        let text = list(&rules);
        for line in [
            "rules that keep flows on the kernel path",
            "ip t f handle 7: udp dport 53 limit rate 9/second drop (limit: UDP to port 53)",
            "  net.netfilter.nf_conntrack_helper = 1: helper ftp (ct helper: TCP to port 21",
            "rules that see one packet of a flow in a window",
            "ip filter FORWARD: -A FORWARD -j LOG\n",
            "and 2 more",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
        assert!(!text.contains("own fast path"), "{text}");
    }

    #[test]
    fn the_summary_tells_modes_apart() {
        let mode = PacketRulesMode::Ignore;
        let ignored = PacketRulesStatus { mode, ..PacketRulesStatus::default() };
        assert!(summary(&ignored).contains("--packet-rules"));
        assert!(summary(&PacketRulesStatus::default()).contains("not read yet"));
        let rules = |exempt: &[&str]| respected(exempt, Vec::new(), 0);
        assert_eq!(summary(&rules(&[])), "none keeps anything off the fast path");
        assert_eq!(summary(&rules(&["a", "b", "c"])), "on the kernel path: a; b; c");
        assert_eq!(summary(&rules(&["a", "b", "c", "d"])), "on the kernel path: a; b; 2 more");
        assert_eq!(list(&rules(&[])), "");
    }
}
