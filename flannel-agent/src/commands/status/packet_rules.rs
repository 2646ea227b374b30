//! Rules that judge each packet, as `status` prints them.

use std::fmt::Write as _;

use serde_json::Value;

use super::plain;

/// What follows from them, in a line.
pub(super) fn summary(rules: &Value) -> String {
    if rules["mode"] == "ignore" {
        return "ignored (--packet-rules): each sees one packet of a flow in a window".to_owned();
    }
    if rules["read"] != true {
        return "not read yet; until then nothing takes the fast path".to_owned();
    }
    let exempt: Vec<String> = rules["exempt"].as_array().into_iter().flatten().map(plain).collect();
    match exempt.as_slice() {
        [] => "none keeps anything off the fast path".to_owned(),
        [one, two, _, more @ ..] if !more.is_empty() => {
            format!("on the kernel path: {one}; {two}; {} more", exempt.len() - 2)
        }
        few => format!("on the kernel path: {}", few.join("; ")),
    }
}

/// The rules, each in a line.
pub(super) fn list(rules: &Value) -> String {
    let mut text = String::new();
    let groups = [
        ("kernel_path", "rules that keep flows on the kernel path"),
        ("log", "rules that see one packet of a flow in a window"),
        ("offload", "rules that hand flows to the kernel's own fast path"),
    ];
    for (effect, title) in groups {
        let all = rules["rules"].as_array().into_iter().flatten();
        let mut lines = all.filter(|line| line["effect"] == effect).peekable();
        if lines.peek().is_some() {
            let _ = write!(text, "\n\n{title}");
        }
        for line in lines {
            let _ = write!(text, "\n  {}", one(line));
        }
    }
    if let Some(more) = rules["more"].as_u64().filter(|more| *more > 0) {
        let _ = write!(text, "\n  and {more} more");
    }
    text
}

fn one(line: &Value) -> String {
    let place: Vec<String> = ["family", "table", "chain"]
        .iter()
        .filter(|part| !line[**part].is_null())
        .map(|part| plain(&line[*part]))
        .collect();
    let mut text = place.join(" ");
    if let Some(handle) = line["handle"].as_u64() {
        let _ = write!(text, " handle {handle}");
    }
    if !text.is_empty() {
        text.push_str(": ");
    }
    text.push_str(&plain(&line["rule"]));
    if line["effect"] == "kernel_path" {
        let _ = write!(text, " ({}: {})", plain(&line["why"]), plain(&line["matches"]));
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn rules_are_listed_by_what_follows_from_them() {
        let rules = json!({"mode": "respect", "read": true,
            "exempt": ["UDP to port 53", "TCP to port 21, with the answers"],
            "rules": [
                {"effect": "kernel_path", "family": "ip", "table": "t", "chain": "f", "handle": 7,
                 "rule": "udp dport 53 limit rate 9/second drop", "why": "limit",
                 "matches": "UDP to port 53"},
                {"effect": "kernel_path", "family": null, "table": null, "chain": null,
                 "handle": null, "rule": "net.netfilter.nf_conntrack_helper = 1: helper ftp",
                 "why": "ct helper", "matches": "TCP to port 21, with the answers"},
                {"effect": "log", "family": "ip", "table": "filter", "chain": "FORWARD",
                 "handle": null, "rule": "-A FORWARD -j LOG", "why": "log",
                 "matches": "TCP and UDP"},
            ], "more": 2});
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
        assert!(summary(&json!({"mode": "ignore"})).contains("--packet-rules"));
        assert!(summary(&json!({"mode": "respect", "read": false})).contains("not read yet"));
        let rules = |exempt: &[&str]| json!({"mode": "respect", "read": true, "exempt": exempt});
        assert_eq!(summary(&rules(&[])), "none keeps anything off the fast path");
        assert_eq!(summary(&rules(&["a", "b", "c"])), "on the kernel path: a; b; c");
        assert_eq!(summary(&rules(&["a", "b", "c", "d"])), "on the kernel path: a; b; 2 more");
        assert_eq!(list(&json!(null)), "");
    }
}
