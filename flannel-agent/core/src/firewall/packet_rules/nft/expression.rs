//! Expressions: what a condition looks at, and which packets it leaves.

use std::net::Ipv4Addr;

use serde_json::Value;

use super::sets::Stored;
use super::{Context, single};
use crate::firewall::packet_rules::draft::Draft;
use crate::firewall::packet_rules::flags;
use crate::firewall::packet_rules::matches::{Matches, Names, mark, protocol, socket, state};
use crate::firewall::packet_rules::ranges::{Addresses, Ranges};
use crate::firewall::packet_rules::ruleset::Judges;

/// Whether an expression has one value for all packets of a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// It has.
    Constant,
    /// It has not; why.
    Differs(Judges, String),
}

impl Content {
    fn packet(why: &str) -> Self {
        Self::Differs(Judges::Packet, why.to_owned())
    }

    fn or(self, other: impl FnOnce() -> Self) -> Self {
        match self {
            Self::Constant => other(),
            differs => differs,
        }
    }
}

/// What an expression looks at. What nobody knows may differ.
pub(super) fn content(expression: &Value, context: &Context<'_>) -> Content {
    match expression {
        Value::Array(all) => all_of(all.iter(), context),
        Value::String(name) if name.starts_with('@') => match stored(name, context) {
            Some(stored) if !stored.limits => Content::Constant,
            Some(_) => Content::packet("limit in a set"),
            None => Content::packet("set"),
        },
        Value::Object(members) if members.len() == 1 => members
            .iter()
            .next()
            .map_or(Content::Constant, |(kind, value)| of_kind(kind, value, context)),
        // The members of a range, a hash, an element.
        Value::Object(members) => all_of(members.values(), context),
        _ => Content::Constant,
    }
}

fn all_of<'a>(mut all: impl Iterator<Item = &'a Value>, context: &Context<'_>) -> Content {
    all.find_map(|one| Some(content(one, context)).filter(|found| *found != Content::Constant))
        .unwrap_or(Content::Constant)
}

fn of_kind(kind: &str, value: &Value, context: &Context<'_>) -> Content {
    let key = value.get("key").and_then(Value::as_str).unwrap_or_default();
    match kind {
        "payload" => of_payload(value),
        "meta" => match key {
            "length" | "random" => Content::packet(&format!("meta {key}")),
            "mark" | "priority" | "protocol" | "nfproto" | "l4proto" | "iif" | "iifname"
            | "iiftype" | "iifkind" | "iifgroup" | "oif" | "oifname" | "oiftype" | "oifkind"
            | "oifgroup" | "ibrname" | "obrname" | "ibrpvid" | "ibrvproto" | "ibrhwaddr"
            | "pkttype" | "cpu" | "skuid" | "skgid" | "rtclassid" | "cgroup" | "secmark"
            | "secpath" | "ipsec" | "sdif" | "sdifname" | "broute" | "nftrace" | "time" | "day"
            | "hour" => Content::Constant,
            _ => Content::packet(&format!("meta {key}")),
        },
        "ct" => match key {
            "bytes" | "packets" | "avgpkt" => {
                Content::Differs(Judges::Counters, format!("ct {key}"))
            }
            "state" | "direction" | "status" | "mark" | "expiration" | "helper" | "label"
            | "l3proto" | "saddr" | "daddr" | "ip" | "ip6" | "protocol" | "proto-src"
            | "proto-dst" | "zone" | "count" | "id" | "event" | "secmark" => Content::Constant,
            _ => Content::packet(&format!("ct {key}")),
        },
        "tcp option" if is_of_syn(value) => Content::Constant,
        "tcp option" => Content::packet("tcp option"),
        "fib" | "rt" | "socket" | "osf" | "ipsec" | "exthdr" | "ip option" | "sctp chunk"
        | "dccp option" | "symhash" => Content::Constant,
        "concat" | "set" | "prefix" | "range" | "elem" | "map" | "jhash" | "&" | "|" | "^"
        | "<<" | ">>" => content(value, context),
        _ => Content::packet(kind),
    }
}

/// Whether an option of TCP stands in a SYN only.
pub(super) fn is_of_syn(option: &Value) -> bool {
    let name = option.get("name").and_then(Value::as_str).unwrap_or_default();
    matches!(name, "maxseg" | "window" | "sack-permitted" | "sack-perm" | "fastopen")
}

fn of_payload(payload: &Value) -> Content {
    let text = |name: &str| payload.get(name).and_then(Value::as_str).unwrap_or_default();
    let number = |name: &str| payload.get(name).and_then(Value::as_u64);
    if payload.get("tunnel").is_some() {
        return Content::packet("payload");
    }
    if let Some(base) = payload.get("base").and_then(Value::as_str) {
        let (Some(start), Some(length)) = (number("offset"), number("len")) else {
            return Content::packet("payload");
        };
        let end = start.saturating_add(length);
        let within = |low: u64, high: u64| start >= low && end <= high;
        let constant = match base {
            "ll" => within(0, 112),
            // Version, protocol, addresses.
            "nh" => within(0, 4) || within(72, 80) || within(96, 160),
            "th" => within(0, 32),
            _ => false,
        };
        return if constant { Content::Constant } else { Content::packet("payload") };
    }
    let field = text("field");
    let differs = match text("protocol") {
        "ip" => matches!(field, "length" | "id" | "checksum" | "ecn"),
        "tcp" | "udp" | "th" => !matches!(field, "sport" | "dport"),
        // Other protocols are the kernel's in any case.
        _ => false,
    };
    match differs {
        true => Content::Differs(Judges::Packet, format!("{} {field}", text("protocol"))),
        false => Content::Constant,
    }
}

/// A set or map by `@name`.
pub(super) fn stored<'a>(name: &str, context: &Context<'a>) -> Option<&'a Stored> {
    context.sets.get(context.family, context.table, name.strip_prefix('@')?)
}

/// A match statement: narrows the draft by what it says.
pub(super) fn narrow(draft: &mut Draft, value: &Value, context: &Context<'_>) {
    let member = |name: &str| value.get(name).unwrap_or(&Value::Null);
    let (left, right) = (member("left"), member("right"));
    let operator = member("op").as_str().unwrap_or("==");
    if let Some(mask) = flags_mask(left) {
        return flags(draft, mask, operator, right);
    }
    if let Content::Differs(reach, why) = content(left, context).or(|| content(right, context)) {
        draft.select(reach, &why);
    }
    compare(draft, left, operator, right, context);
}

/// `left == right`.
pub(super) fn equals(draft: &mut Draft, left: &Value, right: &Value, context: &Context<'_>) {
    match flags_mask(left) {
        Some(mask) => flags(draft, mask, "==", right),
        None => compare(draft, left, "==", right, context),
    }
}

fn compare(draft: &mut Draft, left: &Value, operator: &str, right: &Value, context: &Context<'_>) {
    let values = values(right, context);
    match single(left) {
        Some(("payload", payload)) => of_packet(draft, payload, operator, values),
        Some(("meta", meta)) => {
            let key = meta.get("key").and_then(Value::as_str).unwrap_or_default();
            of_meta(draft, key, operator, values);
        }
        Some(("ct", ct)) if ct.get("key").and_then(Value::as_str) == Some("state") => {
            states(draft, operator, values);
        }
        Some(("fib", fib)) if is_target_type(fib) => target_type(draft, operator, values),
        Some(("concat", parts)) => concat(draft, parts, operator, values, context),
        // A part of a field.
        Some(("&", parts)) => {
            match parts.get(0).and_then(single) {
                Some(("payload", payload)) => of_protocol(draft, payload),
                Some(("meta", meta)) if meta.get("key").and_then(Value::as_str) == Some("mark") => {
                    marks(draft, operator, values);
                }
                _ => {}
            }
            draft.vague();
        }
        _ => draft.vague(),
    }
}

/// The values on the right side; `None` if they are not known.
fn values<'a>(right: &'a Value, context: &Context<'a>) -> Option<Vec<&'a Value>> {
    let listed = match right {
        Value::String(name) if name.starts_with('@') => {
            stored(name, context)?.elements.as_ref()?.iter().collect()
        }
        Value::Array(all) => all.iter().collect(),
        Value::Object(_) => match right.get("set") {
            Some(Value::Array(all)) => all.iter().collect(),
            Some(one) => vec![one],
            None => vec![right],
        },
        _ => vec![right],
    };
    Some(listed.into_iter().map(plain).collect())
}

/// An element without what hangs on it.
fn plain(value: &Value) -> &Value {
    value.get("elem").and_then(|element| element.get("val")).unwrap_or(value)
}

/// Narrows by the protocol that a field belongs to; that of no packet on the fast
/// path: never.
fn of_protocol(draft: &mut Draft, payload: &Value) {
    let protocols = match payload.get("protocol").and_then(Value::as_str) {
        Some("tcp") => protocol::TCP,
        Some("udp") => protocol::UDP,
        None | Some("ip" | "th" | "ether" | "vlan") => protocol::ALL,
        Some(
            "ip6" | "arp" | "icmp" | "icmpv6" | "igmp" | "esp" | "ah" | "comp" | "udplite" | "dccp"
            | "sctp",
        ) => 0,
        Some(_) => protocol::ALL,
    };
    draft.narrow(&Matches { protocols, ..Matches::default() });
}

fn of_packet(draft: &mut Draft, payload: &Value, operator: &str, values: Option<Vec<&Value>>) {
    let text = |name: &str| payload.get(name).and_then(Value::as_str).unwrap_or_default();
    of_protocol(draft, payload);
    if payload.get("tunnel").is_some() {
        return draft.vague();
    }
    let matches = match (text("protocol"), text("field")) {
        ("ip", "saddr") => {
            ranges(operator, values, address).map(|source| Matches { source, ..Matches::default() })
        }
        ("ip", "daddr") => ranges(operator, values, address)
            .map(|destination| Matches { destination, ..Matches::default() }),
        ("tcp" | "udp" | "th", "sport") => {
            ranges(operator, values, port).map(|sport| Matches { sport, ..Matches::default() })
        }
        ("tcp" | "udp" | "th", "dport") => {
            ranges(operator, values, port).map(|dport| Matches { dport, ..Matches::default() })
        }
        ("ip", "protocol") => return protocols(draft, operator, values),
        ("ether", "type") => return families(draft, operator, values),
        _ => None,
    };
    match matches {
        Some(matches) => draft.narrow(&matches),
        None => draft.vague(),
    }
}

fn of_meta(draft: &mut Draft, key: &str, operator: &str, values: Option<Vec<&Value>>) {
    match key {
        "l4proto" => protocols(draft, operator, values),
        "nfproto" | "protocol" => families(draft, operator, values),
        "iif" | "iifname" | "oif" | "oifname" => {
            let names = values.filter(|_| operator == "==").and_then(|values| {
                values.into_iter().map(Value::as_str).collect::<Option<Vec<&str>>>()
            });
            let Some(names) = names.map(Names::of) else { return draft.vague() };
            draft.narrow(&match key.starts_with('i') {
                true => Matches { input: names, ..Matches::default() },
                false => Matches { output: names, ..Matches::default() },
            });
        }
        "mark" => {
            marks(draft, operator, values);
            draft.vague();
        }
        // What comes from no socket fits no such condition, not even a negated one.
        "skuid" | "skgid" => {
            draft.narrow(&Matches { sockets: socket::SOME, ..Matches::default() });
            draft.vague();
        }
        _ => draft.vague(),
    }
}

/// A condition on the mark, or on bits of it: whether only marked packets fulfil it.
fn marks(draft: &mut Draft, operator: &str, values: Option<Vec<&Value>>) {
    let numbers = values.and_then(|all| all.into_iter().map(Value::as_u64).collect());
    let numbers: Vec<u64> = numbers.unwrap_or_default();
    let marked = match operator {
        "==" | "in" => !numbers.is_empty() && !numbers.contains(&0),
        "!=" => numbers == [0],
        ">" => numbers.len() == 1,
        _ => false,
    };
    if marked {
        draft.narrow(&Matches { marks: mark::SOME, ..Matches::default() });
    }
}

/// The numbers for which a comparison holds.
fn ranges<const MAX: u32>(
    operator: &str,
    values: Option<Vec<&Value>>,
    read: impl Fn(&Value) -> Option<(u32, u32)>,
) -> Option<Ranges<MAX>> {
    let all = values?.into_iter().map(read).collect::<Option<Vec<(u32, u32)>>>()?;
    match (operator, all.as_slice()) {
        ("==", _) => Some(Ranges::of(all)),
        ("!=", _) => Some(Ranges::of(all).not()),
        ("<", [(low, _)]) => Some(Ranges::of(low.checked_sub(1).map(|below| (0, below)))),
        (">", [(_, high)]) => Some(Ranges::of(high.checked_add(1).map(|above| (above, MAX)))),
        ("<=", [(_, high)]) => Some(Ranges::of([(0, *high)])),
        (">=", [(low, _)]) => Some(Ranges::of([(*low, MAX)])),
        _ => None,
    }
}

fn address(value: &Value) -> Option<(u32, u32)> {
    let number = |value: &Value| Some(u32::from(value.as_str()?.parse::<Ipv4Addr>().ok()?));
    match single(value) {
        Some(("prefix", prefix)) => {
            let length =
                u8::try_from(prefix.get("len")?.as_u64()?).ok().filter(|len| *len <= 32)?;
            Addresses::prefix(number(prefix.get("addr")?)?, length).ranges().first().copied()
        }
        Some(("range", ends)) => Some((number(ends.get(0)?)?, number(ends.get(1)?)?)),
        _ => number(value).map(|address| (address, address)),
    }
}

fn port(value: &Value) -> Option<(u32, u32)> {
    let number = |value: &Value| {
        let number = match value {
            Value::String(text) => text.parse::<u64>().ok(),
            other => other.as_u64(),
        };
        u16::try_from(number?).ok().map(u32::from)
    };
    match single(value) {
        Some(("range", ends)) => Some((number(ends.get(0)?)?, number(ends.get(1)?)?)),
        _ => number(value).map(|port| (port, port)),
    }
}

fn protocols(draft: &mut Draft, operator: &str, values: Option<Vec<&Value>>) {
    let bits = |value: &Value| match value {
        Value::String(name) => Some(match name.as_str() {
            "tcp" | "6" => protocol::TCP,
            "udp" | "17" => protocol::UDP,
            _ => 0,
        }),
        Value::Number(number) => Some(match number.as_u64() {
            Some(6) => protocol::TCP,
            Some(17) => protocol::UDP,
            _ => 0,
        }),
        _ => None,
    };
    let all = values.and_then(|all| all.into_iter().map(bits).collect::<Option<Vec<u8>>>());
    let one_of = all.map(|all| all.into_iter().fold(0, |some, bit| some | bit));
    let protocols = match (operator, one_of) {
        ("==", Some(bits)) => bits,
        ("!=", Some(bits)) => protocol::ALL & !bits,
        _ => return draft.vague(),
    };
    draft.narrow(&Matches { protocols, ..Matches::default() });
}

/// A condition that holds for IPv4, or does not.
fn families(draft: &mut Draft, operator: &str, values: Option<Vec<&Value>>) {
    let names =
        values.and_then(|all| all.into_iter().map(Value::as_str).collect::<Option<Vec<&str>>>());
    match (operator, names) {
        ("==" | "!=", Some(names)) => {
            let ours = names.iter().any(|name| matches!(*name, "ip" | "ipv4"));
            draft.never |= ours != (operator == "==");
        }
        _ => draft.vague(),
    }
}

fn states(draft: &mut Draft, operator: &str, values: Option<Vec<&Value>>) {
    let bit = |value: &Value| {
        Some(match value.as_str()? {
            "new" => state::NEW,
            "established" => state::ESTABLISHED,
            "related" => state::RELATED,
            "invalid" => state::INVALID,
            "untracked" => state::UNTRACKED,
            _ => return None,
        })
    };
    let all = values.and_then(|all| all.into_iter().map(bit).collect::<Option<Vec<u8>>>());
    let one_of = all.map(|all| all.into_iter().fold(0, |some, bit| some | bit));
    let states = match (operator, one_of) {
        ("==" | "in", Some(bits)) => bits,
        ("!=" | "!", Some(bits)) => state::ALL & !bits,
        _ => return draft.vague(),
    };
    draft.narrow(&Matches { states, ..Matches::default() });
}

/// Whether a question to the routing table is for the type of the destination's address.
fn is_target_type(fib: &Value) -> bool {
    let flags = fib.get("flags").unwrap_or(&Value::Null);
    let flag = flags.as_array().filter(|all| all.len() == 1).map_or(flags, |all| &all[0]);
    fib.get("result").and_then(Value::as_str) == Some("type") && flag.as_str() == Some("daddr")
}

fn target_type(draft: &mut Draft, operator: &str, values: Option<Vec<&Value>>) {
    let types =
        values.and_then(|all| all.into_iter().map(Value::as_str).collect::<Option<Vec<&str>>>());
    match (operator, types) {
        ("==" | "!=", Some(types)) => draft.target_types(types, operator == "!="),
        _ => draft.vague(),
    }
}

/// Several fields at once: each is narrowed to what it can be in any of the
/// combinations.
fn concat(
    draft: &mut Draft,
    parts: &Value,
    operator: &str,
    values: Option<Vec<&Value>>,
    context: &Context<'_>,
) {
    draft.vague();
    let (Some(parts), Some(values)) = (parts.as_array(), values) else { return };
    if operator != "==" {
        return;
    }
    for (number, part) in parts.iter().enumerate() {
        let column: Option<Vec<Value>> =
            values.iter().map(|value| value.get("concat")?.get(number).cloned()).collect();
        if let Some(column) = column {
            compare(draft, part, "==", &Value::Array(column), context);
        }
    }
}

/// The mask of `tcp flags` or `tcp flags & mask`; `None` for anything else.
fn flags_mask(left: &Value) -> Option<Option<u8>> {
    let is_flags = |value: &Value| {
        let payload = single(value).filter(|(kind, _)| *kind == "payload").map(|(_, of)| of);
        payload.is_some_and(|of| {
            of.get("protocol").and_then(Value::as_str) == Some("tcp")
                && of.get("field").and_then(Value::as_str) == Some("flags")
        })
    };
    if is_flags(left) {
        return Some(Some(u8::MAX));
    }
    let parts = left.get("&")?.as_array()?;
    match parts.as_slice() {
        [field, mask] if is_flags(field) => Some(bits(mask)),
        _ => None,
    }
}

/// Flags as a number.
fn bits(value: &Value) -> Option<u8> {
    match value {
        Value::Number(number) => u8::try_from(number.as_u64()?).ok(),
        Value::String(name) => flags::named(name).or_else(|| name.parse().ok()),
        Value::Array(all) => {
            let all = all.iter().map(bits).collect::<Option<Vec<u8>>>()?;
            Some(all.into_iter().fold(0, |some, bit| some | bit))
        }
        Value::Object(_) => bits(value.get("|")?),
        _ => None,
    }
}

fn flags(draft: &mut Draft, mask: Option<u8>, operator: &str, right: &Value) {
    let wanted: Option<Vec<u8>> = match right.get("set").and_then(Value::as_array) {
        Some(all) => all.iter().map(|one| bits(plain(one))).collect(),
        None => bits(right).map(|bits| vec![bits]),
    };
    let (Some(mask), Some(wanted)) = (mask, wanted) else {
        draft.narrow(&Matches { protocols: protocol::TCP, ..Matches::default() });
        return draft.select(Judges::Packet, "tcp flags");
    };
    match operator {
        "==" => draft.flags(|flags| wanted.contains(&(flags & mask))),
        "!=" => draft.flags(|flags| !wanted.contains(&(flags & mask))),
        "in" => draft.flags(|flags| wanted.iter().any(|wanted| flags & mask & wanted != 0)),
        "!" => draft.flags(|flags| wanted.iter().all(|wanted| flags & mask & wanted == 0)),
        _ => {
            draft.narrow(&Matches { protocols: protocol::TCP, ..Matches::default() });
            draft.select(Judges::Packet, "tcp flags");
        }
    }
}
