//! Statements of a rule.

use serde_json::Value;

use super::expression::{self, Content};
use super::sets;
use super::{Context, single};
use crate::firewall::packet_rules::draft::Draft;
use crate::firewall::packet_rules::iptables;
use crate::firewall::packet_rules::kinds::{self, Action, Condition};
use crate::firewall::packet_rules::ruleset::{Judges, Note, Verdict};

/// Elements of a verdict map that are told apart.
const VERDICTS: usize = 256;

/// Reads a rule: one draft, or one for each element of its verdict map.
pub(super) fn read(expressions: &Value, context: &Context<'_>) -> Vec<Draft> {
    let mut drafts = vec![Draft::default()];
    let Some(statements) = expressions.as_array() else {
        if !expressions.is_null() {
            drafts[0].act(Judges::Packet, "unreadable");
        }
        return drafts;
    };
    for statement in statements {
        match single(statement) {
            Some(("vmap", map)) => {
                drafts = drafts.iter().flat_map(|draft| branches(draft, map, context)).collect();
            }
            Some((kind, value)) => {
                drafts.iter_mut().for_each(|draft| one(draft, kind, value, context));
            }
            None => drafts.iter_mut().for_each(|draft| draft.act(Judges::Packet, "unreadable")),
        }
    }
    drafts
}

fn one(draft: &mut Draft, kind: &str, value: &Value, context: &Context<'_>) {
    match kind {
        "match" => expression::narrow(draft, value, context),
        "limit" | "quota" => draft.select(Judges::Packet, kind),
        // It counts connections.
        "ct count" => draft.vague(),
        "counter" | "comment" | "last" => {}
        "log" => draft.note(Note::Log),
        "flow" => draft.note(Note::Offload),
        "accept" => draft.end(),
        "drop" | "reject" => draft.drop(kind),
        "continue" => {}
        "return" => draft.rule.verdict = Verdict::Return,
        "jump" | "goto" => jump(draft, kind, value),
        "queue" | "fwd" => {
            draft.act(Judges::Packet, kind);
            draft.end();
        }
        "dup" | "reset" => draft.act(Judges::Packet, kind),
        "synproxy" => {
            draft.act(Judges::Connection, kind);
            draft.end();
        }
        "ct helper" => draft.act(Judges::Connection, kind),
        "notrack" => {
            draft.notrack = true;
            draft.rule.effect = true;
        }
        "ct timeout" | "ct expectation" | "secmark" | "tproxy" => draft.rule.effect = true,
        "snat" | "dnat" | "masquerade" | "redirect" => {
            draft.rule.effect = true;
            draft.end();
        }
        "mangle" => mangle(draft, value, context),
        "set" | "map" | "meter" => update(draft, kind, value),
        "xt" => xt(draft, value),
        _ => draft.act(Judges::Packet, kind),
    }
}

fn jump(draft: &mut Draft, kind: &str, value: &Value) {
    let Some(target) = value.get("target").and_then(Value::as_str) else {
        return draft.act(Judges::Packet, "unreadable");
    };
    draft.rule.verdict = match kind {
        "jump" => Verdict::Jump(target.to_owned()),
        _ => Verdict::Goto(target.to_owned()),
    };
}

/// A field of the packet or of what belongs to it gets a value. Addresses, ports,
/// DSCP, TTL, marks and priorities are repeated; what else is written into a packet
/// cannot be.
fn mangle(draft: &mut Draft, value: &Value, context: &Context<'_>) {
    draft.rule.effect = true;
    let key = value.get("key").unwrap_or(&Value::Null);
    match single(key) {
        Some(("payload", payload)) if !is_repeated(payload) => {
            draft.act(Judges::Packet, "payload set");
        }
        Some(("payload", payload)) => draft.alter(&format!("{} set", text(payload, "field"))),
        Some(("meta", meta)) if matches!(text(meta, "key"), "mark" | "priority") => {
            draft.alter(&format!("meta {} set", text(meta, "key")));
        }
        Some(("meta" | "ct", _)) => {}
        // Only what has the option is changed, and those that stand in a SYN only
        // are in no packet of the fast path.
        Some(("tcp option", option)) if expression::is_of_syn(option) => draft.vague(),
        Some((other, _)) => draft.act(Judges::Packet, &format!("{other} set")),
        None => draft.act(Judges::Packet, "unreadable"),
    }
    let written = value.get("value").unwrap_or(&Value::Null);
    if let Content::Differs(reach, why) = expression::content(written, context) {
        draft.select(reach, &why);
    }
}

fn text<'a>(object: &'a Value, name: &str) -> &'a str {
    object.get(name).and_then(Value::as_str).unwrap_or_default()
}

fn is_repeated(payload: &Value) -> bool {
    match text(payload, "protocol") {
        "ip" => matches!(text(payload, "field"), "saddr" | "daddr" | "dscp" | "ttl"),
        "tcp" | "udp" | "th" => matches!(text(payload, "field"), "sport" | "dport"),
        "ether" | "vlan" => true,
        _ => false,
    }
}

/// An element is put into a set or map, with statements of its own perhaps.
fn update(draft: &mut Draft, kind: &str, value: &Value) {
    draft.rule.effect |= kind != "meter";
    if value.get("stmt").is_some_and(sets::limits) {
        draft.select(Judges::Packet, "limit in a set");
    } else {
        draft.vague();
    }
}

/// A match or target of iptables, by its name.
fn xt(draft: &mut Draft, value: &Value) {
    let name = text(value, "name");
    match text(value, "type") {
        "match" => match kinds::condition(name) {
            _ if name == "comment" => {}
            // It is shown for options of TCP only.
            _ if name == "tcp" => draft.select(Judges::Packet, "tcp option"),
            Condition::Read | Condition::Constant => draft.vague(),
            Condition::Differs(reach) => draft.select(reach, name),
        },
        // It may give a helper.
        "target" if kinds::action(name) == Some(Action::Conntrack) => {
            draft.act(Judges::Connection, name);
        }
        // It may give the packet the connection's mark.
        "target" if name == "CONNMARK" => draft.alter(name),
        "target" => iptables::take(draft, name),
        "watcher" => draft.note(Note::Log),
        _ => draft.act(Judges::Packet, "xt"),
    }
}

/// A verdict map: a draft for each of its verdicts.
fn branches(draft: &Draft, map: &Value, context: &Context<'_>) -> Vec<Draft> {
    let key = map.get("key").unwrap_or(&Value::Null);
    let data = map.get("data").unwrap_or(&Value::Null);
    let mut base = draft.clone();
    if let Content::Differs(reach, why) = expression::content(key, context) {
        base.select(reach, &why);
    }
    let stored = data.as_str().and_then(|name| expression::stored(name, context));
    let pairs = match (data.get("set"), stored) {
        (Some(set), _) => set.as_array(),
        (None, Some(stored)) => stored.elements.as_ref(),
        (None, None) => {
            base.act(Judges::Packet, "vmap");
            return vec![base];
        }
    };
    let verdict = |draft: &mut Draft, verdict: &Value| match single(verdict) {
        Some((kind, value)) => one(draft, kind, value, context),
        None => draft.act(Judges::Packet, "unreadable"),
    };
    let Some(pairs) = pairs.filter(|pairs| pairs.len() <= VERDICTS) else {
        let mut all: Vec<&Value> = stored.iter().flat_map(|stored| &stored.values).collect();
        all.extend(pairs.into_iter().flatten().filter_map(|pair| pair.get(1)));
        base.vague();
        return distinct(all)
            .into_iter()
            .map(|value| {
                let mut branch = base.clone();
                verdict(&mut branch, value);
                branch
            })
            .collect();
    };
    pairs
        .iter()
        .map(|pair| {
            let mut branch = base.clone();
            let wanted = pair.get(0).unwrap_or(&Value::Null);
            expression::equals(&mut branch, key, wanted, context);
            verdict(&mut branch, pair.get(1).unwrap_or(&Value::Null));
            branch
        })
        .collect()
}

fn distinct(values: Vec<&Value>) -> Vec<&Value> {
    let mut seen = std::collections::HashSet::new();
    values.into_iter().filter(|value| seen.insert(value.to_string())).collect()
}
