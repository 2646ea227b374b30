//! What is written, what is left alone, and what goes.

use super::*;
use crate::firewall::names::TABLE;

fn rules() -> Rules {
    Rules {
        network: "10.5.0.0/16".parse().unwrap(),
        subnet: "10.5.1.0/24".parse().unwrap(),
        masquerade: true,
        forward: true,
        fully_random: true,
        vxlan_port: 8472,
    }
}

fn made(rules: &Rules, found: &Found) -> Option<String> {
    script(rules, found, &Names::flannels(), &Mine::default())
}

fn gone(found: &Found, flannels_too: bool) -> Option<String> {
    removal(found, flannels_too, &Names::flannels(), &Mine::default())
}

#[test]
fn another_networks_rules_stay() {
    let mine: Mine = [rules().network].into_iter().collect();
    let names = Names::beside(rules().network);
    let prefix = serde_json::json!([{"match": {"op": "==", "left": {}, "right":
        {"prefix": {"addr": "10.6.0.0", "len": 16}}}}, {"accept": null}]);
    let mut table = listing(&rules());
    for item in table["nftables"].as_array_mut().unwrap() {
        if item["rule"].is_object() {
            item["rule"]["expr"] = prefix.clone();
        }
    }
    let comments: Vec<String> = forward(&rules()).into_iter().map(|(_, comment)| comment).collect();
    let mut chain: serde_json::Value =
        serde_json::from_str(&forward_listing("drop", &[&comments[0], &comments[1]])).unwrap();
    let read = |table: &serde_json::Value, chain: &serde_json::Value| {
        Found::parse(Some(&table.to_string()), Some(&chain.to_string())).unwrap()
    };
    // FORWARD has rules of both; the first one is the other's.
    chain["nftables"][1]["rule"]["expr"] = prefix.clone();
    let found = read(&table, &chain);
    assert!(found.is_anothers(&mine) && !found.is_anothers(&Mine::default()));
    for too in [false, true] {
        let text = removal(&found, too, &Names::flannels(), &mine).unwrap();
        assert_eq!(text, "delete rule ip filter FORWARD handle 8\n");
    }
    let beside = Found { table: None, ..found };
    let text = script(&rules(), &beside, &names, &mine).unwrap();
    assert!(text.starts_with(&format!("add table ip {}\n", names.table)), "{text}");
    assert!(text.contains("handle 8") && !text.contains("handle 7"), "{text}");
    let own = "10.5.0.0";
    table["nftables"][2]["rule"]["expr"] =
        serde_json::json!([{"prefix": {"addr": own, "len": 16}}]);
    assert!(!read(&table, &chain).is_anothers(&mine), "ours, with something added");
}

/// The listing that nft would give for our table.
fn listing(rules: &Rules) -> serde_json::Value {
    let mut items = vec![serde_json::json!({"metainfo": {"version": "1.0.6"}})];
    for chain in chains(rules) {
        items.push(serde_json::json!({"chain": {"family": "ip", "table": TABLE,
            "name": chain.name, "handle": 1, "type": chain.kind, "hook": chain.hook,
            "prio": chain.priority, "policy": "accept"}}));
        for (handle, (_, comment)) in chain.rules.iter().enumerate() {
            items.push(serde_json::json!({"rule": {"family": "ip", "table": TABLE,
                "chain": chain.name, "handle": handle, "comment": comment, "expr": []}}));
        }
    }
    serde_json::json!({ "nftables": items })
}

fn found(listing: &serde_json::Value) -> Found {
    Found::parse(Some(&listing.to_string()), None).unwrap()
}

#[test]
fn masquerade_is_flannels_list() {
    let text: Vec<String> = masquerade(&rules()).into_iter().map(|(rule, _)| rule).collect();
    assert_eq!(
        text,
        [
            "meta mark & 0x4000 == 0x4000 return",
            "ip saddr 10.5.1.0/24 ip daddr 10.5.0.0/16 return",
            "ip saddr 10.5.0.0/16 ip daddr 10.5.1.0/24 return",
            "ip saddr != 10.5.0.0/16 ip daddr 10.5.1.0/24 return",
            "ip saddr 10.5.0.0/16 ip daddr != 224.0.0.0/4 meta l4proto udp \
             masquerade to :8473-65535 fully-random",
            "ip saddr 10.5.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random",
            "ip saddr != 10.5.0.0/16 ip daddr 10.5.0.0/16 meta l4proto udp \
             masquerade to :8473-65535 fully-random",
            "ip saddr != 10.5.0.0/16 ip daddr 10.5.0.0/16 masquerade fully-random",
        ]
    );
}

#[test]
fn flags_leave_rules_and_words_out() {
    let plain = Rules { forward: false, fully_random: false, ..rules() };
    let text = made(&plain, &Found::default()).unwrap();
    assert!(!text.contains("random") && !text.contains("chain forward"), "{text}");
    let found = Found::parse(None, Some(&forward_listing("drop", &[]))).unwrap();
    let text = made(&plain, &found).unwrap();
    assert!(!text.contains("FORWARD"), "{text}");
}

#[test]
fn source_ports_leave_the_tunnels_port_out() {
    for (port, range) in [
        (8472, (8473, 65535)),
        (4789, (4790, 65535)),
        (1024, (1025, 65535)),
        (1, (1024, 65535)),
        (65535, (1024, 65534)),
        (60000, (1024, 59999)),
    ] {
        assert_eq!(source_ports(port), range);
        assert!(!(range.0..=range.1).contains(&port));
    }
}

#[test]
fn an_equal_table_is_left_alone() {
    assert_eq!(made(&rules(), &found(&listing(&rules()))), None);
}

#[test]
fn any_difference_rewrites_the_table() {
    let differs = |change: &dyn Fn(&mut Vec<serde_json::Value>)| {
        let mut listing = listing(&rules());
        change(listing["nftables"].as_array_mut().unwrap());
        let script = made(&rules(), &found(&listing)).unwrap();
        assert!(script.starts_with("add table ip flannel-ipv4\ndelete table ip flannel-ipv4\n"));
    };
    differs(&|items| drop(items.pop()));
    differs(&|items| items.swap(2, 3));
    differs(&|items| items[1]["chain"]["prio"] = 50.into());
    differs(&|items| items[1]["chain"]["policy"] = "drop".into());
    differs(&|items| items[2]["rule"]["comment"] = "something else".into());
    differs(&|items| {
        items.push(serde_json::json!({"rule": {"chain": "forward", "handle": 99}}));
    });
    let other = Rules { subnet: "10.5.2.0/24".parse().unwrap(), ..rules() };
    assert!(made(&other, &found(&listing(&rules()))).is_some());
    let other = Rules { masquerade: false, ..rules() };
    let text = made(&other, &found(&listing(&rules()))).unwrap();
    assert!(!text.contains("postrtg") && text.contains("chain forward"), "{text}");
    assert!(made(&rules(), &Found::default()).is_some());
}

fn forward_listing(policy: &str, comments: &[&str]) -> String {
    let mut items = vec![serde_json::json!({"chain": {"family": "ip", "table": "filter",
        "name": "FORWARD", "handle": 1, "type": "filter", "hook": "forward", "prio": 0,
        "policy": policy}})];
    for (handle, comment) in comments.iter().enumerate() {
        items.push(serde_json::json!({"rule": {"chain": "FORWARD", "handle": handle + 7,
            "comment": comment, "expr": []}}));
    }
    serde_json::json!({ "nftables": items }).to_string()
}

#[test]
fn a_forward_policy_of_drop_gets_our_accepts_once() {
    let table = listing(&rules()).to_string();
    let with = |forward: &str| made(&rules(), &Found::parse(Some(&table), Some(forward)).unwrap());
    let comments: Vec<String> = forward(&rules()).into_iter().map(|(_, comment)| comment).collect();
    assert_eq!(
        with(&forward_listing("drop", &["someone's"])).unwrap(),
        format!(
            "add rule ip filter FORWARD ip saddr 10.5.0.0/16 counter accept comment \"{}\"\n\
             add rule ip filter FORWARD ip daddr 10.5.0.0/16 counter accept comment \"{}\"\n",
            comments[0], comments[1]
        )
    );
    let both = ["someone's", &comments[0], &comments[1]];
    assert_eq!(with(&forward_listing("drop", &both)), None);
    // One is missing: both are made again, in order.
    let text = with(&forward_listing("drop", &both[..2])).unwrap();
    assert!(text.starts_with("delete rule ip filter FORWARD handle 8\nadd rule"), "{text}");
    assert_eq!(with(&forward_listing("accept", &["someone's"])), None);
    assert_eq!(
        with(&forward_listing("accept", &both)).unwrap(),
        "delete rule ip filter FORWARD handle 8\ndelete rule ip filter FORWARD handle 9\n"
    );
}

#[test]
fn rules_that_flannel_has_made_meanwhile_stay() {
    let (masquerade, forward) = (masquerade(&rules()), forward(&rules()));
    let ours = masquerade.len() + forward.len();
    let removal_of = |change: &dyn Fn(&mut Vec<serde_json::Value>)| {
        let mut listing = listing(&rules());
        change(listing["nftables"].as_array_mut().unwrap());
        gone(&found(&listing), false).unwrap_or_default()
    };
    // All of it is flannel's.
    let text = removal_of(&|items| {
        for item in items {
            if item["rule"].is_object() {
                item["rule"]["comment"] = serde_json::Value::Null;
            }
        }
    });
    assert_eq!(text, "");
    let foreign = Found::parse(
        Some(
            r#"{"nftables":[{"chain":{"name":"c"}},
        {"rule":{"chain":"c","handle":1}}]}"#,
        ),
        None,
    );
    let text = gone(&foreign.unwrap(), true).unwrap();
    assert_eq!(text, "delete table ip flannel-ipv4\n");
    // One chain is.
    let text = removal_of(&|items| {
        items.retain(|item| item["rule"]["chain"] != "postrtg");
        items.push(serde_json::json!({"rule": {"chain": "postrtg", "handle": 99,
            "comment": MASQUERADE}}));
    });
    assert_eq!(text, "flush chain ip flannel-ipv4 forward\ndelete chain ip flannel-ipv4 forward\n");
    // Both wrote into the same chains.
    let text = removal_of(&|items| {
        for chain in ["postrtg", "forward"] {
            items.push(serde_json::json!({"rule": {"chain": chain, "handle": 99}}));
        }
    });
    assert_eq!(text.matches("delete rule ip flannel-ipv4").count(), ours, "{text}");
    assert!(!text.contains("handle 99") && !text.contains("chain ip"), "{text}");
}

#[test]
fn removal_takes_only_what_is_ours() {
    let comment = &forward(&rules())[0].1;
    let forward = forward_listing("drop", &["someone's", FORWARD, comment, "flanneld forwarding"]);
    let found = Found::parse(Some(&listing(&rules()).to_string()), Some(&forward)).unwrap();
    assert_eq!(
        gone(&found, false).unwrap(),
        "delete table ip flannel-ipv4\ndelete rule ip filter FORWARD handle 9\n"
    );
    assert_eq!(gone(&Found::default(), true), None);
}
