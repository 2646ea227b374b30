//! Whatever calls itself a listing: nothing panics.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{LISTING, SAVED, read};
use crate::firewall::packet_rules::exempt::tests::{overlay, resolved};
use crate::firewall::packet_rules::iptables;
use crate::firewall::packet_rules::nft::Listing;
use crate::firewall::packet_rules::walk::findings;

/// Words of nft's listings, and none.
const WORDS: &str = "\
    match op == != < in left right payload protocol field ip saddr daddr tcp udp \
    dport flags syn meta key iifname l4proto ct state new established limit rate \
    vmap data set elem val concat range prefix addr len jump goto target a accept \
    drop xt type name hashlimit @s @vm 10.5.1.1 & | numgen mangle value stmt meter \
    base offset th";

/// JSON in nft's words, in no order.
fn any_json() -> impl Strategy<Value = Value> {
    let words: Vec<&str> = WORDS.split(' ').chain([""]).collect();
    let word = move || proptest::sample::select(words.clone()).prop_map(str::to_owned);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        prop_oneof![any::<i64>(), 0..70_000i64].prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        word().prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 64, 6, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            proptest::collection::btree_map(word(), inner, 0..4)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn nothing_panics_on_any_rule(rule in any_json(), set in any_json(), chain in any_json()) {
        let mut items = vec![
            json!({"set": {"family": "ip", "table": "t", "name": "s", "elem": set.clone(),
                "stmt": set}}),
            json!({"chain": {"family": "ip", "table": "t", "name": "a", "hook": "forward"}}),
            json!({"rule": {"family": "ip", "table": "t", "chain": "a", "expr": rule.clone()}}),
            json!({"rule": {"family": "ip", "table": "t", "chain": "a", "expr": [rule]}}),
        ];
        items.push(chain);
        let (rules, _) = read(json!({ "nftables": items }).to_string().as_bytes());
        resolved(&findings(&rules, overlay()));
    }

    #[test]
    fn nothing_panics_on_any_bytes(
        cut in 0..LISTING.len(),
        change in 0..LISTING.len(),
        byte in any::<u8>(),
        rest in proptest::collection::vec(any::<u8>(), 0..40),
    ) {
        let mut bytes = LISTING.to_vec();
        bytes[change] = byte;
        let _ = Listing::default().add(&bytes);
        bytes.truncate(cut);
        bytes.extend(&rest);
        let _ = Listing::default().add(&bytes);
        let _ = Listing::default().add(&rest);
    }

    #[test]
    fn nothing_panics_on_any_listing_of_iptables(
        cut in 0..SAVED.len(),
        change in 0..SAVED.len(),
        byte in 0..128u8,
        rest in ".{0,40}",
    ) {
        let mut bytes = SAVED.as_bytes().to_vec();
        bytes[change] = byte;
        bytes.truncate(cut);
        let text = String::from_utf8_lossy(&bytes).into_owned() + &rest;
        resolved(&findings(&iptables::read(&text), overlay()));
        iptables::read(&format!("*filter\n:FORWARD ACCEPT\n-A FORWARD {rest}\n"));
    }
}
