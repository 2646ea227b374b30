//! Flags of flanneld that ours accepts without any effect, and those of its
//! first versions that are refused.

use std::ffi::OsStr;
use std::net::Ipv6Addr;

use clap::{ArgAction, Args};

use crate::flag;

/// Flags of flanneld 0.5 for modes that later ones do not have.
const GIVEN_UP: [(&str, &str); 7] = [
    ("subnet-dir", "several networks in one daemon"),
    ("networks", "several networks in one daemon"),
    ("listen", "server mode"),
    ("remote", "client mode"),
    ("remote-keyfile", "client mode"),
    ("remote-certfile", "client mode"),
    ("remote-cafile", "client mode"),
];

/// flanneld's flags of Go's type bool, and of int: of those alone Go says that a
/// value is wrong, and flanneld goes on without one from the environment.
const BOOLEANS: [&str; 6] = [
    "ip-masq",
    "ip-masq-fully-random-disable",
    "iptables-forward-rules",
    "ip-blackhole-route",
    "kube-subnet-mgr",
    "set-node-network-unavailable",
];
const INTEGERS: [&str; 3] = ["healthz-port", "iptables-resync", "subnet-lease-renew-margin"];

/// What is wrong with a value from the environment that flanneld would leave out.
pub(super) fn wrong_value(name: &str, value: &OsStr) -> Option<String> {
    let text = value.to_string_lossy();
    if BOOLEANS.contains(&name) {
        flag::go_bool(&text).err().map(str::to_owned)
    } else if INTEGERS.contains(&name) {
        flag::go_int(&text).err()
    } else {
        None
    }
}

/// The flags of old flannelds that cannot be had, and what they were for.
#[cfg(test)]
pub(super) fn given_up_flags() -> impl Iterator<Item = (&'static str, &'static str)> {
    GIVEN_UP.into_iter()
}

/// Why a flag of an old flanneld cannot be had.
pub(super) fn given_up(name: &str) -> Option<String> {
    let (_, mode) = GIVEN_UP.iter().find(|(known, _)| *known == name)?;
    let instead = match *mode {
        "several networks in one daemon" => {
            "run one daemon for each network, with its own --etcd-prefix, --subnet-file, \
             --state-dir and --pin-dir"
        }
        _ => "every node talks to etcd itself: give --etcd-endpoints",
    };
    Some(format!(
        "--{name} is a flag of flanneld 0.5 for {mode}, which is not supported; {instead}"
    ))
}

/// Flags that change nothing, so that the command lines of flanneld work.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Flags of flanneld that are accepted without effect")]
pub struct WithoutEffect {
    /// Subnets from the Kubernetes API: not supported, so only false
    #[arg(long, value_name = "BOOL", value_parser = flag::go_bool, num_args = 0..=1,
          require_equals = true, default_missing_value = "true", action = ArgAction::Set)]
    kube_subnet_mgr: Option<bool>,
    /// Address of the Kubernetes API
    #[arg(long, value_name = "URL")]
    kube_api_url: Option<String>,
    /// kubeconfig file
    #[arg(long, value_name = "FILE")]
    kubeconfig_file: Option<String>,
    /// Prefix of the annotations of Kubernetes nodes
    #[arg(long, value_name = "PREFIX")]
    kube_annotation_prefix: Option<String>,
    /// File with the network config for Kubernetes
    #[arg(long, value_name = "FILE")]
    net_config_path: Option<String>,
    /// Tell Kubernetes when the network is up
    #[arg(long, value_name = "BOOL", value_parser = flag::go_bool, num_args = 0..=1,
          require_equals = true, default_missing_value = "true", action = ArgAction::Set)]
    set_node_network_unavailable: Option<bool>,
    /// Seconds between comparisons of the firewall's rules: they are watched
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true,
          value_parser = flag::go_int)]
    iptables_resync: Option<i64>,
    /// IPv6 address that the other nodes reach this one at: overlays are IPv4
    #[arg(long, value_name = "IPV6")]
    public_ipv6: Option<Ipv6Addr>,
}

impl WithoutEffect {
    /// # Errors
    /// A flag asks for what cannot be had.
    pub(super) fn check(&self) -> Result<(), String> {
        if self.kube_subnet_mgr == Some(true) {
            return Err("--kube-subnet-mgr=true: subnets from the Kubernetes API are not \
                        supported; this daemon takes them from etcd: leave the flag out and give \
                        --etcd-endpoints"
                .to_owned());
        }
        Ok(())
    }

    /// The flags that were given, each with the reason why it does nothing.
    pub fn given(&self) -> Vec<String> {
        const KUBERNETES: &str = "is for subnets from the Kubernetes API; ours come from etcd";
        let flags = [
            ("kube-subnet-mgr", self.kube_subnet_mgr.is_some(), KUBERNETES),
            ("kube-api-url", self.kube_api_url.is_some(), KUBERNETES),
            ("kubeconfig-file", self.kubeconfig_file.is_some(), KUBERNETES),
            ("kube-annotation-prefix", self.kube_annotation_prefix.is_some(), KUBERNETES),
            ("net-config-path", self.net_config_path.is_some(), KUBERNETES),
            (
                "set-node-network-unavailable",
                self.set_node_network_unavailable.is_some(),
                KUBERNETES,
            ),
            (
                "iptables-resync",
                self.iptables_resync.is_some(),
                "is for polling; changes of the rules are answered at once",
            ),
            ("public-ipv6", self.public_ipv6.is_some(), "is for IPv6 overlays; ours are IPv4"),
        ];
        flags
            .iter()
            .filter(|(_, given, _)| *given)
            .map(|(name, _, why)| format!("--{name} {why}"))
            .collect()
    }
}
