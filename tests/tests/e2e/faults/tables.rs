//! What stands in a node's tables, and whether it is what the leases say.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use aya::programs::TcAttachType;
use flannel_tests::etcd::Etcd;
use flannel_tests::hooks;
use flannel_tests::node::Node;
use flannel_tests::process::output;
use serde_json::Value;

/// Everything is asked by one shell: a look must not take longer than a repair.
const ASK: &str = r#"
ask() { echo "== $1"; shift; "$@" 2>/dev/null; }
ask link ip -d -j link show dev flannel.1
ask address ip -j -4 address show dev flannel.1
ask routes ip -j -4 route show table all
ask neighbours ip -j -4 neigh show dev flannel.1
ask fdb bridge -j fdb show dev flannel.1
ask nft nft -s list ruleset
ask iptables iptables-save
ask map bpftool -j map dump pinned "$(echo "$PINS"/v*/fl_subnets4)"
ask addresses bpftool -j map dump pinned "$(echo "$PINS"/v*/fl_peers4)"
ask pods bpftool -j map dump pinned "$(echo "$PINS"/v*/fl_veths)"
ask pins find "$PINS" -type f -printf '%f\n'
ask file cat "$FILE"
ask state cat "$STATE/state.json"
ask socket test -S "$STATE/agent.sock"
echo "$?"
echo "== lock"
test -e "$STATE/lock" && ! flock -n "$STATE/lock" true
echo "$?"
"#;

/// A node's tables, by name: lines in an order of their own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Tables(BTreeMap<&'static str, BTreeSet<String>>);

/// A peer as a lease tells of it: subnet, PublicIP, MAC.
type Peer = (String, String, String);

impl Tables {
    /// Reads them.
    pub(super) fn of(node: &Node, pins: &Path) -> Self {
        let mut command = node.netns.command("sh");
        command.args(["-c", ASK]).env("PINS", pins).env("FILE", node.subnet_file());
        let text = output(command.env("STATE", node.state_dir())).stdout;
        let text = String::from_utf8_lossy(&text).into_owned();
        let mut found = BTreeMap::new();
        for part in text.split("== ").skip(1) {
            let (name, body) = part.split_once('\n').unwrap_or((part, ""));
            if let Some((name, read)) = READERS.iter().find(|(known, _)| *known == name) {
                found.insert(*name, read(body));
            }
        }
        let ways = [("in", TcAttachType::Ingress), ("out", TcAttachType::Egress)];
        let on = |interface: &str| {
            let on = ways.iter().map(|(word, way)| (word, hooks::at(&node.netns, interface, *way)));
            on.flat_map(|(word, all)| all.into_iter().map(move |(name, _)| (*word, name)))
                .map(|(word, name)| format!("{interface} {word} {name}"))
                .collect::<Vec<_>>()
        };
        let programs = ["eth0", "flannel.1", "veth2"].iter().flat_map(|interface| on(interface));
        found.insert("programs", programs.collect());
        Self(found)
    }

    /// What is not in both, in words; empty if nothing.
    pub(super) fn differences(&self, other: &Self) -> String {
        let mut text = String::new();
        for (name, before) in &self.0 {
            let now = other.0.get(name).cloned().unwrap_or_default();
            before.difference(&now).for_each(|line| text += &format!("\n  {name}: no {line}"));
            now.difference(before).for_each(|line| text += &format!("\n  {name}: now {line}"));
        }
        text
    }

    fn lines(&self, name: &str) -> impl Iterator<Item = &str> {
        self.0.get(name).into_iter().flatten().map(String::as_str)
    }

    /// What the leases say and the tables do not, or the other way round.
    pub(super) fn against(&self, node: &Node, etcd: &Etcd, programs: bool) -> String {
        let own = node.address.to_string();
        let (ours, peers): (Vec<Peer>, Vec<Peer>) =
            leases(etcd).into_iter().partition(|(_, ip, _)| *ip == own);
        let mut text = String::new();
        let mut compare = |what: &str, wanted: BTreeSet<String>, found: BTreeSet<String>| {
            if wanted != found {
                text += &format!("\n  {what}: the leases say {wanted:?}, there is {found:?}");
            }
        };
        let of = |say: fn(&Peer) -> String| peers.iter().map(say).collect::<BTreeSet<_>>();
        let is_ours = |line: &&str| line.contains("flannel.1") && line.contains("via");
        compare(
            "routes",
            of(|(subnet, _, _)| format!("{subnet} via {} dev flannel.1 onlink", network(subnet))),
            self.lines("routes").filter(is_ours).map(str::to_owned).collect(),
        );
        compare(
            "neighbours",
            of(|(subnet, _, mac)| format!("{} {mac} PERMANENT", network(subnet))),
            self.lines("neighbours").map(str::to_owned).collect(),
        );
        compare(
            "FDB",
            of(|(_, ip, mac)| format!("{mac} dst {ip} permanent")),
            self.lines("fdb").map(str::to_owned).collect(),
        );
        if programs {
            compare(
                "map",
                of(|(subnet, ip, mac)| format!("{subnet} {ip} {mac}")),
                self.lines("map").map(str::to_owned).collect(),
            );
        }
        let device = ours.iter().map(|(_, ip, mac)| format!("{mac} local {ip}")).collect();
        let there =
            self.lines("link").map(|line| line.split(' ').take(3).collect::<Vec<_>>().join(" "));
        compare("device", device, there.collect());
        text
    }
}

fn network(subnet: &str) -> &str {
    subnet.split('/').next().unwrap_or(subnet)
}

/// The leases that the store has.
fn leases(etcd: &Etcd) -> Vec<Peer> {
    let read = |(key, value): (String, String)| {
        let lease: Value = serde_json::from_str(&value).ok()?;
        let word = |value: &Value| value.as_str().map(str::to_owned);
        let (ip, mac) = (word(&lease["PublicIP"])?, word(&lease["BackendData"]["VtepMAC"])?);
        Some((key.replace('-', "/"), ip, mac))
    };
    etcd.subnets().into_iter().filter_map(read).collect()
}

type Reader = fn(&str) -> BTreeSet<String>;

const READERS: &[(&str, Reader)] = &[
    ("link", |text| each(text, link)),
    ("address", |text| {
        let all = |link: &Value| link["addr_info"].as_array().cloned().unwrap_or_default();
        let links = objects(text);
        let addresses = links.iter().flat_map(all);
        addresses.map(|info| format!("{}/{}", word(&info["local"]), info["prefixlen"])).collect()
    }),
    ("routes", |text| each(text, route)),
    ("neighbours", |text| {
        each(text, |entry| {
            let state = entry["state"].as_array()?.iter().map(word).collect::<Vec<_>>().join(" ");
            // What the kernel asked for itself while a route was wrong.
            let asked = ["INCOMPLETE", "FAILED"].contains(&state.as_str());
            if asked && !word(&entry["dst"]).ends_with(".0") {
                return None;
            }
            Some(format!("{} {} {state}", word(&entry["dst"]), word(&entry["lladdr"])))
        })
    }),
    ("fdb", |text| {
        each(text, |entry| {
            let rest = entry.as_object()?.iter().filter(|(name, value)| {
                let plain = ["mac", "dst", "state", "ifname", "master"].contains(&name.as_str());
                !plain && **value != serde_json::json!(["self"]) && **value != serde_json::json!([])
            });
            let rest: String = rest.map(|(name, value)| format!(" {name} {value}")).collect();
            let (mac, dst) = (word(&entry["mac"]), word(&entry["dst"]));
            Some(format!("{mac} dst {dst} {}{rest}", word(&entry["state"])))
        })
    }),
    ("nft", |text| lines(text).filter(|line| !line.contains("packets")).collect()),
    ("iptables", |text| lines(text).filter(|line| line.contains("-A ")).collect()),
    ("map", |text| each(text, element)),
    // Ids are given out anew, with a lease that comes anew.
    ("addresses", |text| each(text, |element| Some(element["key"].to_string()))),
    ("pods", |text| each(text, |element| Some(format!("{} {}", element["key"], element["value"])))),
    ("pins", |text| {
        // Indexes of devices are others after each start of a device.
        lines(text)
            .map(|name| name.trim_start_matches(|c: char| c.is_ascii_digit()).to_owned())
            .collect()
    }),
    ("file", |text| lines(text).collect()),
    ("state", |text| lines(text).collect()),
    ("socket", |text| lines(text).collect()),
    ("lock", |text| lines(text).collect()),
];

fn lines(text: &str) -> impl Iterator<Item = String> {
    text.lines().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty())
}

fn objects(text: &str) -> Vec<Value> {
    let all: Option<Value> = serde_json::from_str(text.trim()).ok();
    all.and_then(|all| all.as_array().cloned()).unwrap_or_default()
}

fn each(text: &str, say: impl Fn(&Value) -> Option<String>) -> BTreeSet<String> {
    objects(text).iter().filter_map(say).collect()
}

fn word(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn link(link: &Value) -> Option<String> {
    let data = &link["linkinfo"]["info_data"];
    let up = link["flags"].as_array()?.iter().any(|flag| flag == "UP");
    Some(format!(
        "{} local {} up {up} mtu {} kind {} id {} port {} learning {} master {}",
        word(&link["address"]),
        word(&data["local"]),
        link["mtu"],
        word(&link["linkinfo"]["info_kind"]),
        data["id"],
        data["port"],
        data["learning"],
        word(&link["master"]),
    ))
}

/// Routes within the overlay network, but the pods' own.
fn route(route: &Value) -> Option<String> {
    let (to, device) = (word(&route["dst"]), word(&route["dev"]));
    if !to.starts_with("10.244.") || device == "cni0" {
        return None;
    }
    let mut text = to;
    if let Some(kind) = route["type"].as_str().filter(|kind| *kind != "unicast") {
        text = format!("{kind} {text}");
    }
    for (word, name) in [("via", "gateway"), ("dev", "dev")] {
        text += &route[name].as_str().map(|value| format!(" {word} {value}")).unwrap_or_default();
    }
    for flag in route["flags"].as_array().into_iter().flatten() {
        text += &format!(" {}", word(flag));
    }
    for name in ["table", "metric", "metrics", "prefsrc", "scope", "tos"] {
        let own = route["type"] == "local" && name == "table";
        if !route[name].is_null() && !own {
            text += &format!(" {name} {}", route[name]);
        }
    }
    Some(text)
}

fn element(element: &Value) -> Option<String> {
    let bytes = |value: &Value| -> Option<Vec<u8>> {
        let byte =
            |text: &Value| u8::from_str_radix(text.as_str()?.trim_start_matches("0x"), 16).ok();
        value.as_array()?.iter().map(byte).collect()
    };
    let (key, value) = (bytes(&element["key"])?, bytes(&element["value"])?);
    let dotted = |bytes: &[u8]| bytes.iter().map(u8::to_string).collect::<Vec<_>>().join(".");
    let mac: Vec<String> = value.get(..6)?.iter().map(|byte| format!("{byte:02x}")).collect();
    Some(format!(
        "{}/{} {} {}",
        dotted(key.get(4..8)?),
        key[0],
        dotted(value.get(8..12)?),
        mac.join(":")
    ))
}
