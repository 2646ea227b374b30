//! The page `docs/configuration.md`, made of clap's definitions and of what
//! [`NetworkConfig::parse`] says.

use std::fmt::Write as _;

use clap::{Arg, CommandFactory};
use flannel_core::backend::BackendKind;
use flannel_core::config::{
    ConfigError, MAX_VNI, NetworkConfig, SettingsError, UdpConfig, VxlanConfig,
};

use super::{Cli, Klog, flannel, go_style};

const INTRODUCTION: &str = "\
# Configuration

Two things say what a node does: the network config in etcd, which is the same for all
nodes, and each agent's flags. Both are flannel's, and ours besides.
[compatibility.md](compatibility.md) has what differs from flannel.

This page is made from the code. A test compares the two.

## Network config

JSON under `<etcd-prefix>/config`:

```sh
etcdctl put /coreos.com/network/config '{\"Network\":\"10.5.0.0/16\",\"Backend\":{\"Type\":\"vxlan\"}}'
```

Keys may be written in any case. Unknown keys are ignored, and the last of equal keys
counts. `null` leaves the default. An agent reads the config at its start. A later change
holds after a restart; `status` tells of it.

";

const FLAGS: &str = "\
## Flags

Flags may have one dash or two, and their value after `=` or as the next word. A boolean
takes its value after `=` only: `--ip-masq`, `--ip-masq=false`.

Each flag can also be given in the environment. The command line goes first. An empty
value means that the flag is not set. Unknown flags and wrong values end with exit code 2.
`-h` is short for `--help`.

";

/// Where a flag is explained at length.
const MORE: &[(&str, &str)] = &[
    ("etcd-api", "etcd-v2.md"),
    ("iface", "compatibility.md#the-underlay-while-running"),
    ("ip-blackhole-route", "compatibility.md#the-blackhole-route"),
    ("healthz-port", "operations.md#health"),
    ("metrics-peers", "metrics.md"),
    ("connectivity-port", "operations.md#try-the-ways-to-all-peers"),
    ("log-format", "operations.md#logs"),
    ("on-lost-lease", "operations.md#a-lost-lease"),
    ("datapath", "fast-path.md"),
    ("fast-path", "fast-path.md"),
    ("fast-path-window", "fast-path.md#how-a-flow-is-confirmed"),
    ("flow-table-size", "fast-path.md#the-flow-table"),
    ("packet-rules", "fast-path.md#rules-that-judge-each-packet"),
    ("verify-source", "fast-path.md#the-source-check"),
    ("xdp", "fast-path.md#--xdp"),
    ("state-dir", "operations.md#two-networks-on-a-node"),
];

/// A config that has only what it must have.
const LEAST: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#;

/// Configs that are refused: at least one for each reason.
const REFUSED: &[&str] = &[
    "not JSON",
    "[]",
    "{}",
    r#"{"Network":"10.5.0.0"}"#,
    r#"{"Network":"fd00::/48"}"#,
    r#"{"Network":"10.5.0.0/29"}"#,
    r#"{"Network":"10.5.0.0/16","SubnetLen":31}"#,
    r#"{"Network":"10.5.0.0/16","SubnetLen":17}"#,
    r#"{"Network":"10.5.0.0/16","SubnetLen":"24"}"#,
    r#"{"Network":"10.5.0.0/16","SubnetMin":"10.6.0.0"}"#,
    r#"{"Network":"10.5.0.0/16","SubnetMax":"10.5.9.1"}"#,
    r#"{"Network":"10.5.0.0/16","SubnetMin":"first"}"#,
    r#"{"Network":"10.5.0.0/16","EnableIPv6":true}"#,
    r#"{"Network":"10.5.0.0/16","EnableIPv4":false}"#,
    r#"{"Network":"10.5.0.0/16","Backend":"vxlan"}"#,
    r#"{"Network":"10.5.0.0/16","Backend":{"Type":"wireguard"}}"#,
    r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlam"}}"#,
    r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","VNI":16777215}}"#,
    r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","Port":70000}}"#,
    r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","MTU":100}}"#,
    r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","GBP":1}}"#,
    r#"{"Network":"10.5.0.0/16","Backend":{"Type":"udp","Port":0}}"#,
    r#"{"Network":"10.5.0.0/16","Backend":{"Type":"udp","Port":"8285"}}"#,
];

/// The page.
fn page() -> String {
    let mut page = INTRODUCTION.to_owned();
    network_config(&mut page);
    refusals(&mut page);
    flags(&mut page);
    commands(&mut page);
    page
}

fn table(page: &mut String, titles: &[&str], rows: &[Vec<String>]) {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let titles: Vec<String> = titles.iter().map(|title| (*title).to_owned()).collect();
    *page += &line(&titles);
    *page += &format!("|{}\n", "---|".repeat(titles.len()));
    for row in rows {
        *page += &line(row);
    }
    page.push('\n');
}

/// `text` as code in a cell.
fn code(text: &str) -> String {
    format!("`{}`", text.replace('|', "\\|"))
}

/// A key of the network config: its value, the default, and what it means.
fn key(name: &str, kind: &str, default: &str, meaning: &str) -> Vec<String> {
    vec![code(name), kind.to_owned(), default.to_owned(), meaning.to_owned()]
}

const KEYS: [&str; 4] = ["key", "value", "default", "meaning"];

fn network_config(page: &mut String) {
    let least = NetworkConfig::parse(LEAST).unwrap();
    // Whole patterns: a key that is new must be told here.
    let NetworkConfig { network, subnet_len, subnet_min, subnet_max, backend } = least;
    let vxlan = backend.facts().vxlan().expect(LEAST);
    let example = |value: &dyn std::fmt::Display| format!("of {network}: `{value}`");
    let rows = [
        key(
            "Network",
            "a.b.c.d/n",
            "",
            "The overlay network. Must be given. Host bits are cleared.",
        ),
        key(
            "SubnetLen",
            "prefix length, to 30",
            &subnet_len.to_string(),
            "Size of each node's subnet. At least 2 more than the prefix of `Network`, which is the \
             default if that is longer than /22.",
        ),
        key(
            "SubnetMin",
            "address",
            &example(&subnet_min),
            "First subnet that is given out. Must be the first address of a subnet.",
        ),
        key(
            "SubnetMax",
            "address",
            &example(&subnet_max),
            "Last subnet that is given out. Must be the first address of a subnet.",
        ),
        key("Backend", "object", "`udp`", "What carries packets between nodes; see below."),
        key("EnableIPv4", "boolean", "true", "`false` is refused: overlays are IPv4."),
        key("EnableIPv6", "boolean", "false", "`true` is refused."),
        key("EnableNFTables", "boolean", "", "Ignored: `--firewall` says where rules go."),
    ];
    table(page, &KEYS, &rows);
    let _ = writeln!(
        page,
        "### Backends\n\n`Backend.Type`, in any case: {}.\n",
        BackendKind::supported()
    );
    vxlan_keys(page, vxlan);
    let UdpConfig { port } = UdpConfig::default();
    *page += "`udp`: packets in UDP through the agent and `flannel0`, as flannel's proxy does it. \
              Also what a config\nwithout `Backend` means.\n\n";
    let rows = [key("Port", "1 to 65535", &port.to_string(), "UDP port. The same on all nodes.")];
    table(page, &KEYS, &rows);
    *page += "`host-gw`: a route by each peer's PublicIP. All nodes are on one link, without NAT. \
              It has no keys.\nThe eBPF programs carry packets, or the kernel.\n\n\
              `alloc`: a lease and `subnet.env`, and nothing else. It has no keys.\n\n";
}

fn vxlan_keys(page: &mut String, config: &VxlanConfig) {
    let VxlanConfig { vni, port, gbp, learning, mtu, direct_routing } = config;
    assert_eq!(*mtu, None);
    *page += "`vxlan`: tunnels, by the eBPF programs or by the kernel.\n\n";
    let rows = [
        key(
            "VNI",
            &format!("0 to {MAX_VNI}"),
            &vni.to_string(),
            "VXLAN network identifier. The device is `flannel.<VNI>`.",
        ),
        key(
            "Port",
            "0 to 65535",
            &port.to_string(),
            "UDP port of the tunnel; 0 is the default. The same on all nodes.",
        ),
        key(
            "GBP",
            "boolean",
            &gbp.to_string(),
            "Carry the mark of group-based policy in the tunnel.",
        ),
        key("Learning", "boolean", &learning.to_string(), "Let the device learn MACs."),
        key(
            "MTU",
            "bytes, 118 to 65535",
            "the interface's",
            "MTU of the underlay. Pods get 50 bytes less; 0 is the default.",
        ),
        key(
            "DirectRouting",
            "boolean",
            &direct_routing.to_string(),
            "Plain routes, without a tunnel, to the peers on the same link.",
        ),
    ];
    table(page, &KEYS, &rows);
}

fn refusals(page: &mut String) {
    *page += "### What is refused\n\nAn agent with such a config waits for a better one, and says \
              why in its log, in `status` and at\n`/readyz`. The words are flannel's, with what it \
              leaves out.\n\n";
    let said = |config: &str| NetworkConfig::parse(config).unwrap_err().to_string();
    let rows: Vec<_> = REFUSED
        .iter()
        .map(|config| vec![code(config), said(config).replace('<', "&lt;")])
        .collect();
    table(page, &["config", "message"], &rows);
}

fn flags(page: &mut String) {
    *page += FLAGS;
    let mut command = Cli::command();
    // Gives it --help.
    command.build();
    let (without, ours): (Vec<_>, Vec<_>) =
        command.get_arguments().partition(|arg| without_effect(arg));
    let titles = ["flag", "in the environment", "default", "meaning"];
    let rows: Vec<_> = ours.into_iter().map(flag).collect();
    table(page, &titles, &rows);
    *page += "`FLANNELD_LOG`, which has no flag, sets the level of the log: `warn`, `info` (the \
              default), `debug`,\nor of one part (`info,flannel_agent::reconcile=debug`). \
              `NOTIFY_SOCKET` is systemd's.\n\nWithout it klog's `v` does (`FLANNELD_V`): \
              `info` to 1, `debug` to 4, then `trace`. So does `vmodule`\n(`FLANNELD_VMODULE`) for \
              parts of the agent: `source::etcd3=2,watch=2`.\n\n";
    *page += "### Flags of flanneld without effect\n\nThey are accepted, so that command lines of \
              flanneld work. One line in the log says so.\n\n";
    let mut rows: Vec<_> = without.into_iter().map(flag).collect();
    let logging = go_style::logging().filter(|name| !Klog::FLAGS.contains(name));
    let logging = logging.map(code).collect::<Vec<_>>().join(", ");
    rows.push(vec![logging, String::new(), String::new(), "Flags of klog and glog".to_owned()]);
    table(page, &titles, &rows);
    *page += "### Flags of flanneld 0.5 that are refused\n\nWith exit code 2, and what to do \
              instead.\n\n";
    let rows: Vec<_> =
        flannel::given_up_flags().map(|(name, mode)| vec![code(name), mode.to_owned()]).collect();
    table(page, &["flag", "was for"], &rows);
}

/// Whether it stands under the heading of flags without effect.
fn without_effect(arg: &Arg) -> bool {
    arg.get_help_heading().is_some_and(|heading| heading.contains("without effect"))
}

/// A flag's row.
fn flag(arg: &Arg) -> Vec<String> {
    let name = arg.get_long().expect("a long name");
    let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
    let (meaning, told) = match help.split_once(" [default: ") {
        Some((meaning, default)) => (meaning, default.trim_end_matches(']')),
        None => (help.as_str(), ""),
    };
    let values = arg.get_default_values();
    let values: Vec<_> = values.iter().map(|value| value.to_string_lossy()).collect();
    let default = if values.is_empty() || arg.is_hide_default_value_set() {
        told.to_owned()
    } else {
        code(&values.join(","))
    };
    let mut meaning = meaning.to_owned() + ".";
    let kinds: Vec<String> = arg
        .get_possible_values()
        .iter()
        .filter_map(|value| Some(format!("{}: {}", code(value.get_name()), value.get_help()?)))
        .collect();
    if !kinds.is_empty() {
        meaning += &format!("<br>{}.", kinds.join(".<br>"));
    }
    if let Some((_, page)) = MORE.iter().find(|(known, _)| *known == name) {
        meaning += &format!(" [More]({page})");
    }
    let variable = if go_style::NOT_FROM_ENV.contains(&name) {
        String::new()
    } else {
        code(&go_style::variable(name))
    };
    vec![spelt(arg, name), variable, default, meaning.replace('|', "\\|")]
}

/// A flag with the name of its value.
fn spelt(arg: &Arg, name: &str) -> String {
    let value =
        arg.get_value_names().and_then(|names| names.first()).filter(|name| *name != "BOOL");
    value
        .filter(|_| arg.get_action().takes_values())
        .map_or_else(|| code(&format!("--{name}")), |value| code(&format!("--{name} {value}")))
}

fn commands(page: &mut String) {
    *page += "## Commands\n\nWithout one, the daemon runs. Variables hold for a command's flags of \
              the same name, too.\n\n";
    let command = Cli::command();
    let mut rows = Vec::new();
    for command in command.get_subcommands().filter(|command| !command.is_hide_set()) {
        let about = command.get_about().map(ToString::to_string).unwrap_or_default();
        let etcd = |arg: &&Arg| arg.get_long().is_some_and(|name| name.starts_with("etcd-"));
        let own = command.get_arguments().filter(|arg| !arg.is_hide_set() && !etcd(arg));
        let mut flags: Vec<String> = own
            .map(|arg| {
                let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
                let name = arg.get_long().map_or_else(
                    || code(&arg.get_id().as_str().to_uppercase()),
                    |name| spelt(arg, name),
                );
                format!("{name}: {help}.").replace('|', "\\|")
            })
            .collect();
        if command.get_arguments().any(|arg| etcd(&arg)) {
            flags.push("The daemon's flags that begin with `--etcd-`.".to_owned());
        }
        rows.push(vec![code(command.get_name()), format!("{about}."), flags.join("<br>")]);
    }
    table(page, &["command", "what it does", "flags"], &rows);
    while page.ends_with("\n\n") {
        page.pop();
    }
}

#[test]
fn the_page_is_the_codes() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/configuration.md");
    if std::env::var_os("FLANNEL_WRITE_DOCS").is_some() {
        std::fs::write(path, page()).unwrap();
    }
    let written = std::fs::read_to_string(path).unwrap();
    assert!(
        written == page(),
        "docs/configuration.md is not what the code says; write it anew with \
         FLANNEL_WRITE_DOCS=1 cargo test -p flannel-agent --lib cli::reference"
    );
}

#[test]
fn links_are_of_flags_that_there_are() {
    let command = Cli::command();
    for (name, _) in MORE {
        assert!(command.get_arguments().any(|arg| arg.get_long() == Some(name)), "{name}");
    }
}

#[test]
fn every_reason_to_refuse_a_config_has_an_example() {
    /// Its number: a reason that is new is missing here first.
    fn number(error: &ConfigError) -> usize {
        match error {
            ConfigError::Syntax(_) => 0,
            ConfigError::NotAnObject(_) => 1,
            ConfigError::WrongType { .. } => 2,
            ConfigError::BadCidr { .. } => 3,
            ConfigError::BadAddress { .. } => 4,
            ConfigError::NotIpv4 { .. } => 5,
            ConfigError::NoNetwork => 6,
            ConfigError::SubnetLenTooLong(_) => 7,
            ConfigError::TooFewSubnets { .. } => 8,
            ConfigError::NetworkTooSmall(_) => 9,
            ConfigError::OutOfNetwork { .. } => 10,
            ConfigError::OffBoundary { .. } => 11,
            ConfigError::BadBackend { .. } => 12,
            ConfigError::UnsupportedBackend(_) => 13,
            ConfigError::UnknownBackend(_) => 14,
            ConfigError::Settings(SettingsError::WrongType { backend, .. }) => {
                15 + usize::from(*backend == BackendKind::Udp)
            }
            ConfigError::Settings(SettingsError::OutOfRange { .. }) => 17,
            ConfigError::NotSupported { .. } => 18,
        }
    }
    let reasons = REFUSED.iter().map(|config| NetworkConfig::parse(config).unwrap_err());
    let shown: std::collections::BTreeSet<_> = reasons.map(|reason| number(&reason)).collect();
    assert_eq!(shown, (0..=18).collect());
}
