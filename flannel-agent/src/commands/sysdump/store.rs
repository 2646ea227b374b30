//! Network config and leases, as they stand in etcd and as they are understood.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use flannel_core::config::NetworkConfig;
use flannel_core::lease::Lease;
use flannel_core::text::{counted, lasting};
use tokio::time::timeout;

use crate::commands::known::Daemon;
use crate::source::options::EtcdOptions;
use crate::source::store::Store;
use crate::source::{LeaseSource as _, SourceError};

/// All of it as text, asked as the daemon does, or its unit, or by these flags.
/// That may take so long.
pub(super) async fn text(
    own: &EtcdOptions,
    daemon: &Daemon,
    patience: Duration,
) -> Result<String, String> {
    let (etcd, api) = daemon.etcd(own);
    let read = async {
        let store = Store::connect(etcd, api).await?;
        let config = store.config_text().await?;
        let leases = store.list().await;
        Ok::<_, SourceError>(report(daemon.etcd_settings(), &config, leases, Instant::now()))
    };
    match timeout(patience, read).await {
        Ok(read) => read.map_err(|error| error.to_string()),
        Err(_) => Err(format!("no answer within {}", lasting(patience))),
    }
}

fn report(
    settings: Option<&str>,
    config: &str,
    leases: Result<(Vec<Lease>, i64), SourceError>,
    now: Instant,
) -> String {
    let mut text = String::new();
    if let Some(whose) = settings {
        let _ = writeln!(text, "No daemon runs: asked with the settings of {whose}.\n");
    }
    let _ = writeln!(text, "The network config as it stands in etcd:\n\n{}\n", config.trim_end());
    match NetworkConfig::parse(config) {
        Ok(understood) => {
            text.push_str("It is understood as:\n\n");
            for (key, value) in understood.described() {
                let _ = writeln!(text, "{key:<10} {value}");
            }
        }
        Err(error) => {
            let _ = writeln!(text, "It cannot be used: {error}");
        }
    }
    match leases {
        Ok((leases, revision)) => {
            let many = counted(leases.len(), "lease");
            let _ = writeln!(text, "\n{many} at revision {revision}:\n");
            leases.iter().for_each(|lease| text.push_str(&line(lease, now)));
        }
        Err(error) => {
            let _ = writeln!(text, "\nThe leases cannot be listed: {error}");
        }
    }
    text
}

fn line(lease: &Lease, now: Instant) -> String {
    let value = serde_json::to_string(&lease.attrs).unwrap_or_else(|error| error.to_string());
    let left = lease.expires.map(|end| lasting(end.saturating_duration_since(now)));
    let left = left.map(|left| format!(", {left} left")).unwrap_or_default();
    format!("{}: {value} (revision {}{left})\n", lease.subnet, lease.revision)
}

#[cfg(test)]
mod tests {
    use flannel_core::lease::attrs::LeaseAttrs;

    use super::*;

    #[test]
    fn the_config_is_etcds_and_then_ours() {
        let now = Instant::now();
        let value = r#"{"PublicIP":"192.0.2.7","PublicIPv6":null,"BackendType":"host-gw"}"#;
        let lease = Lease {
            subnet: "10.5.7.0/24".parse().unwrap(),
            attrs: LeaseAttrs::parse(value).unwrap(),
            expires: Some(now + Duration::from_secs(7200)),
            revision: 12,
        };
        let config = "{ \"network\": \"10.5.0.0/16\",\n  \"Backend\": {\"Type\": \"vxlan\"}}\n";
        let text = report(Some("x.service"), config, Ok((vec![lease], 13)), now);
        let expected = format!(
            "No daemon runs: asked with the settings of x.service.\n\n\
             The network config as it stands in etcd:\n\n{config}\n\
             It is understood as:\n\n\
             Network    10.5.0.0/16\n\
             SubnetLen  24\n\
             SubnetMin  10.5.1.0\n\
             SubnetMax  10.5.255.0\n\
             Backend    {}\n\n\
             1 lease at revision 13:\n\n\
             10.5.7.0/24: {value} (revision 12, 2 h left)\n",
            NetworkConfig::parse(config).unwrap().backend.describe()
        );
        assert_eq!(text, expected);
    }

    #[test]
    fn a_config_that_cannot_be_used_is_there_with_the_reason() {
        let config = r#"{"Network":"10.5.0.0/16","SubnetLen":31}"#;
        let text = report(None, config, Ok((Vec::new(), 1)), Instant::now());
        assert!(text.contains(config), "{text}");
        assert!(text.contains("It cannot be used: SubnetLen must be less than /31"), "{text}");
    }
}
