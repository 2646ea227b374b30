//! `nft -j list`, read for the rules that judge single packets. Pure.

mod expression;
mod sets;
mod statement;
mod text;

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;

use serde::de::{
    DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor,
};
use serde_json::Value;

use self::sets::Sets;
use super::matches::Names;
use super::ruleset::{Base, Chain, Family, NetfilterHook, Rule, RuleSet, bounded};

/// Devices of base chains, as the kernel tells: nft's JSON leaves them out before
/// version 1.0.7.
pub type Devices = HashMap<(Family, String, String), Vec<String>>;

/// Where a rule stands, and what it can refer to.
struct Context<'a> {
    sets: &'a Sets,
    family: Family,
    table: &'a str,
}

/// A rule set while its tables are being read.
#[derive(Debug, Default)]
pub struct Listing {
    rules: RuleSet,
    places: HashMap<(Family, String, String), usize>,
    sets: Sets,
    devices: Devices,
    /// Tables with matches or targets of iptables of which nft shows the name only.
    opaque: BTreeSet<(Family, String)>,
}

impl Listing {
    /// A listing without a table.
    pub fn new(devices: Devices) -> Self {
        Self { devices, ..Self::default() }
    }

    /// Reads what one call of nft has printed. It is read piece by piece: a large
    /// rule set would be far larger as a tree.
    ///
    /// # Errors
    /// It is not nft's JSON.
    pub fn add(&mut self, json: &[u8]) -> Result<(), serde_json::Error> {
        let mut deserializer = serde_json::Deserializer::from_slice(json);
        Document(self).deserialize(&mut deserializer)?;
        deserializer.end()
    }

    /// The rules, and the tables that iptables can tell more of.
    pub fn finish(self) -> (RuleSet, BTreeSet<(Family, String)>) {
        (self.rules, self.opaque)
    }

    fn item(&mut self, item: &Value) {
        let Some((kind, object)) = single(item) else { return };
        let text = |name: &str| object.get(name).and_then(Value::as_str);
        let Some(family) = text("family").and_then(Family::named) else { return };
        let Some(table) = text("table") else { return };
        match kind {
            "chain" => self.chain(family, table, object),
            "rule" => self.rule(family, table, object),
            "set" | "map" => self.sets.add(family, table, object),
            _ => {}
        }
    }

    fn chain(&mut self, family: Family, table: &str, object: &Value) {
        let Some(name) = object.get("name").and_then(Value::as_str) else { return };
        let key = (family, table.to_owned(), name.to_owned());
        let base = object.get("hook").map(|hook| Base {
            // What hook nobody knows may see everything.
            hook: hook.as_str().and_then(NetfilterHook::named).unwrap_or(NetfilterHook::Prerouting),
            nat: object.get("type").and_then(Value::as_str) == Some("nat"),
            drops: object.get("policy").and_then(Value::as_str) == Some("drop"),
            devices: match object.get("dev").map(strings).filter(|names| !names.is_empty()) {
                Some(names) => Names::of(names),
                None => self.devices.get(&key).map_or(Names::Any, Names::of),
            },
        });
        self.places.insert(key, self.rules.chains.len());
        self.rules.chains.push(Chain {
            family,
            table: table.into(),
            name: name.to_owned(),
            base,
            rules: Vec::new(),
        });
    }

    fn rule(&mut self, family: Family, table: &str, object: &Value) {
        let Some(chain) = object.get("chain").and_then(Value::as_str) else { return };
        let key = (family, table.to_owned(), chain.to_owned());
        let Some(at) = self.places.get(&key).copied() else { return };
        let context = Context { sets: &self.sets, family, table };
        let expressions = object.get("expr").unwrap_or(&Value::Null);
        let drafts = statement::read(expressions, &context);
        if expressions.as_array().is_some_and(|all| all.iter().any(|one| one.get("xt").is_some())) {
            self.opaque.insert((family, table.to_owned()));
        }
        let handle = object.get("handle").and_then(Value::as_u64);
        let mut shown: Option<Arc<str>> = None;
        for draft in drafts {
            self.rules.notrack |= draft.notrack;
            let Some(rule) = draft.finish().filter(|rule| !rule.is_idle()) else { continue };
            let text = rule
                .is_of_interest()
                .then(|| Arc::clone(shown.get_or_insert_with(|| bounded(&text::of(expressions)))));
            self.rules.chains[at].rules.push(Rule { handle, text, ..rule });
        }
    }
}

/// The only member of an object.
fn single(value: &Value) -> Option<(&str, &Value)> {
    let mut members = value.as_object()?.iter();
    match (members.next(), members.next()) {
        (Some((key, value)), None) => Some((key, value)),
        _ => None,
    }
}

/// A string, or all strings of a list.
fn strings(value: &Value) -> Vec<String> {
    match value {
        Value::String(text) => vec![text.clone()],
        Value::Array(all) => all.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        _ => Vec::new(),
    }
}

/// `{"nftables": [...]}`.
struct Document<'a>(&'a mut Listing);

impl<'de> DeserializeSeed<'de> for Document<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Document<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with the list `nftables`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut seen = false;
        while let Some(key) = map.next_key::<String>()? {
            if key == "nftables" && !seen {
                map.next_value_seed(Items(&mut *self.0))?;
                seen = true;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        if seen { Ok(()) } else { Err(A::Error::missing_field("nftables")) }
    }
}

struct Items<'a>(&'a mut Listing);

impl<'de> DeserializeSeed<'de> for Items<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Items<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        while let Some(item) = items.next_element::<Value>()? {
            self.0.item(&item);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
