//! A rule in nft's own words, as far as they are known; the rest as JSON.

use serde_json::Value;

use super::single;

/// The rule's text.
pub(super) fn of(expressions: &Value) -> String {
    let Some(statements) = expressions.as_array() else { return expressions.to_string() };
    let words: Vec<String> = statements.iter().map(statement).collect();
    words.join(" ")
}

fn statement(value: &Value) -> String {
    let Some((kind, value)) = single(value) else { return value.to_string() };
    match kind {
        "match" => {
            let member = |name: &str| value.get(name).unwrap_or(&Value::Null);
            let left = expression(member("left"));
            let right = expression(member("right"));
            match member("op").as_str() {
                Some("==" | "in") | None => format!("{left} {right}"),
                Some(operator) => format!("{left} {operator} {right}"),
            }
        }
        "limit" => limit(value),
        "quota" => quota(value),
        "vmap" => format!("{} vmap {}", member(value, "key"), member(value, "data")),
        "jump" | "goto" => format!("{kind} {}", member(value, "target")),
        "mangle" => format!("{} set {}", member(value, "key"), member(value, "value")),
        "log" => match value.get("prefix").and_then(Value::as_str) {
            Some(prefix) => format!("log prefix {prefix:?}"),
            None => "log".to_owned(),
        },
        "ct helper" => format!("ct helper set {value}"),
        "counter" => kind.to_owned(),
        "xt" => format!("xt {} {}", member(value, "type"), member(value, "name")),
        "set" => {
            let statements = match value.get("stmt").and_then(Value::as_array) {
                Some(all) => all.iter().map(|one| format!(" {}", statement(one))).collect(),
                None => String::new(),
            };
            let (op, set) = (member(value, "op"), member(value, "set"));
            format!("{op} {set} {{ {}{statements} }}", member(value, "elem"))
        }
        "meter" => format!(
            "meter {} {{ {} {} }}",
            member(value, "name"),
            member(value, "key"),
            value.get("stmt").map(statement).unwrap_or_default()
        ),
        _ if value.is_null() => kind.to_owned(),
        _ => format!("{kind} {}", expression(value)),
    }
}

fn limit(value: &Value) -> String {
    if value.is_string() {
        return format!("limit name {value}");
    }
    let over = if value.get("inv") == Some(&Value::Bool(true)) { "over " } else { "" };
    let unit = match value.get("rate_unit").and_then(Value::as_str) {
        Some("packets") | None => String::new(),
        Some(unit) => format!(" {unit}"),
    };
    format!("limit rate {over}{}{unit}/{}", member(value, "rate"), member(value, "per"))
}

fn quota(value: &Value) -> String {
    if value.is_string() {
        return format!("quota name {value}");
    }
    let over = if value.get("inv") == Some(&Value::Bool(true)) { "over " } else { "" };
    format!("quota {over}{} {}", member(value, "val"), member(value, "val_unit"))
}

fn member(value: &Value, name: &str) -> String {
    value.get(name).map(expression).unwrap_or_default()
}

fn expression(value: &Value) -> String {
    let list = |all: &[Value], between: &str| {
        all.iter().map(expression).collect::<Vec<String>>().join(between)
    };
    match value {
        Value::String(text) => text.clone(),
        Value::Array(all) => list(all, ","),
        Value::Object(members) => match single(value) {
            Some(("payload", of)) if of.get("protocol").is_some() => {
                format!("{} {}", member(of, "protocol"), member(of, "field"))
            }
            Some(("payload", of)) => {
                format!("@{},{},{}", member(of, "base"), member(of, "offset"), member(of, "len"))
            }
            Some(("meta", of)) => match member(of, "key") {
                name if name.starts_with("iif") || name.starts_with("oif") => name,
                name => format!("meta {name}"),
            },
            Some(("ct", of)) => match of.get("dir") {
                Some(direction) => format!("ct {} {}", expression(direction), member(of, "key")),
                None => format!("ct {}", member(of, "key")),
            },
            Some(("concat", of)) => of.as_array().map_or_else(String::new, |all| list(all, " . ")),
            Some(("set", of)) => {
                let all = of.as_array().map_or_else(|| expression(of), |all| list(all, ", "));
                format!("{{ {all} }}")
            }
            Some(("range", of)) => of.as_array().map_or_else(String::new, |all| list(all, "-")),
            Some(("prefix", of)) => format!("{}/{}", member(of, "addr"), member(of, "len")),
            Some(("elem", of)) => member(of, "val"),
            Some((operator @ ("&" | "|" | "^" | "<<" | ">>"), of)) => {
                of.as_array().map_or_else(String::new, |all| list(all, &format!(" {operator} ")))
            }
            Some((kind @ ("accept" | "drop" | "continue" | "return"), _)) => kind.to_owned(),
            Some((kind @ ("jump" | "goto"), of)) => format!("{kind} {}", member(of, "target")),
            Some((kind, of)) => format!("{kind} {}", expression(of)),
            None => {
                let named =
                    members.iter().map(|(key, value)| format!("{key} {}", expression(value)));
                named.collect::<Vec<String>>().join(" ")
            }
        },
        Value::Null => String::new(),
        other => other.to_string(),
    }
}
