//! Outcomes of packets in JSON: their names.

use flannel_ebpf::abi::Outcome;
use serde::de::Error as _;
use serde::{Deserialize as _, Deserializer, Serializer};

pub(super) fn serialize<S: Serializer>(outcomes: &[Outcome], to: S) -> Result<S::Ok, S::Error> {
    to.collect_seq(outcomes.iter().map(|outcome| outcome.name()))
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Outcome>, D::Error> {
    let names = Vec::<String>::deserialize(from)?;
    let known = |name: String| {
        let found = Outcome::ALL.iter().find(|outcome| outcome.name() == name);
        found.copied().ok_or_else(|| D::Error::custom(format!("no outcome is called {name:?}")))
    };
    names.into_iter().map(known).collect()
}
