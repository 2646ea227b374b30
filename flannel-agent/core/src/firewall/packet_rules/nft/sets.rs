//! Named sets and maps.

use std::collections::HashMap;

use serde_json::Value;

use super::single;
use crate::firewall::packet_rules::ruleset::Family;

/// Elements that are kept of one.
const ELEMENTS: usize = 1024;

/// The sets and maps of all tables.
#[derive(Debug, Default)]
pub(super) struct Sets(HashMap<(Family, String, String), Stored>);

/// A set or map.
#[derive(Debug)]
pub(super) struct Stored {
    /// Its elements; `None` if there are too many, or packets change them.
    pub(super) elements: Option<Vec<Value>>,
    /// The values of a map, each once.
    pub(super) values: Vec<Value>,
    /// Each look at it counts for a limit or quota.
    pub(super) limits: bool,
}

impl Sets {
    pub(super) fn add(&mut self, family: Family, table: &str, object: &Value) {
        let Some(name) = object.get("name").and_then(Value::as_str) else { return };
        let elements = object.get("elem").and_then(Value::as_array);
        let elements = elements.map(Vec::as_slice).unwrap_or_default();
        let changed_by_packets = ["timeout", "size"].iter().any(|key| object.get(key).is_some())
            || super::strings(object.get("flags").unwrap_or(&Value::Null))
                .iter()
                .any(|flag| flag == "dynamic" || flag == "timeout");
        let kept = elements.len() <= ELEMENTS && !changed_by_packets;
        let mut values: Vec<Value> = Vec::new();
        // Verdicts to many chains (services) are in chains that translate.
        for value in elements.iter().filter_map(|pair| pair.get(1)) {
            if single(value).is_some() && !values.contains(value) && values.len() < ELEMENTS {
                values.push(value.clone());
            }
        }
        let stored = Stored {
            elements: kept.then(|| elements.to_vec()),
            values,
            limits: object.get("stmt").is_some_and(limits) || elements.iter().any(limits),
        };
        self.0.insert((family, table.to_owned(), name.to_owned()), stored);
    }

    /// The set or map of this name.
    pub(super) fn get(&self, family: Family, table: &str, name: &str) -> Option<&Stored> {
        self.0.get(&(family, table.to_owned(), name.to_owned()))
    }
}

/// Whether these statements, or those of an element, judge each packet.
pub(super) fn limits(value: &Value) -> bool {
    match value {
        Value::Array(all) => all.iter().any(limits),
        Value::Object(members) => members.iter().any(|(key, value)| match key.as_str() {
            "limit" | "quota" => true,
            "elem" => limits(value),
            _ => false,
        }),
        _ => false,
    }
}
