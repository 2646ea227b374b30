//! Acquiring and renewing.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use flannel_agent::source::{Claim, LEASE_TTL, LeaseSource, SourceError};
use flannel_core::lease::Lease;

use super::*;
use crate::etcd::server::{Etcd, free_port};

/// Whether the lease ends [`LEASE_TTL`] from now, give or take a minute.
fn is_fresh(lease: &Lease) -> bool {
    let left = lease.expires.unwrap().duration_since(SystemTime::now()).unwrap();
    left <= LEASE_TTL && left > LEASE_TTL - Duration::from_secs(60)
}

#[tokio::test]
async fn a_missing_or_bad_config_is_told() {
    let etcd = Etcd::start().await;
    let error = source(&etcd).await.config().await.unwrap_err().to_string();
    for part in ["not found", "v2 API", "/coreos.com/network/config", &etcd.url()] {
        assert!(error.contains(part), "{part}: {error}");
    }
    put(&etcd, &format!("{PREFIX}/config"), "garbage");
    let error = source(&etcd).await.config().await.unwrap_err().to_string();
    assert!(error.starts_with("the config under /coreos.com/network/config is unus"), "{error}");
}

#[tokio::test]
async fn an_acquired_subnet_is_written_as_flannel_does_and_read_as_the_guides_do() {
    let etcd = Etcd::start().await;
    let config = configure(&etcd, CONFIG).await;
    let lease = source(&etcd).await.acquire(&config, &claim(11)).await.unwrap();
    assert_eq!(lease.subnet.prefix(), 24);
    assert!(is_fresh(&lease));
    let node = get(&etcd, &key(&lease.subnet.to_string())).unwrap();
    assert_eq!(
        node["value"],
        r#"{"PublicIP":"10.99.0.11","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:0b"}}"#
    );
    assert_eq!(node["modifiedIndex"], lease.revision);
    assert!((86300..=86400).contains(&node["ttl"].as_i64().unwrap()), "{node}");

    let mut curl = Command::new("curl")
        .args(["-s", &format!("{}/v2/keys/coreos.com/network/subnets", etcd.url())])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let read = Command::new("python3")
        .args(["-m", "json.tool"])
        .stdin(curl.stdout.take().unwrap())
        .output()
        .unwrap();
    assert!(curl.wait().unwrap().success() && read.status.success());
    let text = String::from_utf8(read.stdout).unwrap();
    let shown = format!("\"key\": \"{}\"", key(&lease.subnet.to_string()));
    assert!(text.contains(&shown) && text.contains("VtepMAC"), "{text}");
}

#[tokio::test]
async fn a_restarted_node_has_its_subnet_again() {
    let etcd = Etcd::start().await;
    let config = configure(&etcd, CONFIG).await;
    let first = source(&etcd).await.acquire(&config, &claim(11)).await.unwrap();
    for _ in 0..3 {
        // A claim of another subnet does not count against the lease.
        let claim = Claim { previous: Some(net("10.5.200.0/24")), ..claim(11) };
        let again = source(&etcd).await.acquire(&config, &claim).await.unwrap();
        assert_eq!(again.subnet, first.subnet);
        assert!(is_fresh(&again) && again.revision > first.revision);
    }
    assert_eq!(keys(&etcd).len(), 1);
}

#[tokio::test]
async fn the_lease_of_an_old_flannel_is_taken_over() {
    let etcd = Etcd::start().await;
    let config = configure(&etcd, CONFIG).await;
    put_leased(&etcd, &key("10.5.43.0/24"), &old_value(11));
    put_leased(&etcd, &key("10.5.44.0/24"), &old_value(12));
    let source = source(&etcd).await;
    let lease = source.acquire(&config, &claim(11)).await.unwrap();
    assert_eq!(lease.subnet, net("10.5.43.0/24"));
    let (leases, _) = source.list().await.unwrap();
    let vteps: Vec<_> = leases.iter().map(|lease| lease.attrs.vtep().unwrap().vtep_mac).collect();
    assert!(vteps.contains(&MacAddr([2, 0, 0, 0, 0, 12])), "{vteps:?}");
}

#[tokio::test]
async fn the_previous_subnet_is_taken_if_it_is_free_and_fits() {
    let etcd = Etcd::start().await;
    let config = configure(&etcd, CONFIG).await;
    let source = source(&etcd).await;
    // As subnet.env has it: with the bridge's host bits.
    let wants = |n, subnet: &str| Claim { previous: Some(net(subnet)), ..claim(n) };
    let lease = source.acquire(&config, &wants(11, "10.5.77.1/24")).await.unwrap();
    assert_eq!(lease.subnet, net("10.5.77.0/24"));
    let other = source.acquire(&config, &wants(12, "10.5.77.1/24")).await.unwrap();
    assert_ne!(other.subnet, net("10.5.77.0/24"), "another node has it");
    for (n, unfit) in [(13, "10.6.1.1/24"), (14, "10.5.80.1/25"), (15, "10.5.0.1/24")] {
        let lease = source.acquire(&config, &wants(n, unfit)).await.unwrap();
        assert_ne!(lease.subnet.network(), net(unfit).network());
        assert_eq!(lease.subnet.prefix(), 24);
    }
}

#[tokio::test]
async fn an_own_lease_that_does_not_fit_is_replaced() {
    let etcd = Etcd::start().await;
    let config = configure(&etcd, CONFIG).await;
    put_leased(&etcd, &key("10.7.1.0/24"), &value(11));
    put_leased(&etcd, &key("10.7.2.0/24"), &value(12));
    let lease = source(&etcd).await.acquire(&config, &claim(11)).await.unwrap();
    assert!(net("10.5.0.0/16").contains(lease.subnet.network()));
    assert!(get(&etcd, &key("10.7.1.0/24")).is_none());
    assert!(get(&etcd, &key("10.7.2.0/24")).is_some(), "it is another node's");
}

async fn share(nodes: u8) {
    let etcd = Etcd::start().await;
    let config = format!(
        r#"{{"Network":"10.5.0.0/16","SubnetMin":"10.5.1.0","SubnetMax":"10.5.{nodes}.0","Backend":{{"Type":"vxlan"}}}}"#
    );
    let config = configure(&etcd, &config).await;
    let mut running = tokio::task::JoinSet::new();
    for n in 1..=nodes {
        let (source, config) = (source(&etcd).await, config.clone());
        running.spawn(async move { source.acquire(&config, &claim(n)).await });
    }
    let mut subnets = BTreeSet::new();
    while let Some(node) = running.join_next().await {
        assert!(subnets.insert(node.unwrap().unwrap().subnet));
    }
    let expected: BTreeSet<_> =
        (1..=nodes).map(|third| net(&format!("10.5.{third}.0/24"))).collect();
    assert_eq!(subnets, expected);
    let error = source(&etcd).await.acquire(&config, &claim(99)).await.unwrap_err();
    assert!(error.to_string().starts_with(&format!("out of subnets: {nodes} leases")), "{error}");
}

#[tokio::test]
async fn three_nodes_share_exactly_three_subnets() {
    share(3).await;
}

#[tokio::test]
async fn twenty_nodes_share_exactly_twenty_subnets() {
    share(20).await;
}

#[tokio::test]
async fn unreadable_keys_are_nobodys_subnet() {
    let etcd = Etcd::start().await;
    let config = r#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.1.0","SubnetMax":"10.5.4.0","Backend":{"Type":"vxlan"}}"#;
    let config = configure(&etcd, config).await;
    put(&etcd, &key("10.5.1.0/24"), "garbage");
    put(&etcd, &key("10.5.2.0-24&junk"), &value(12));
    put(&etcd, &format!("{}/directory", key("10.5.3.0/24")), &value(13));
    put(&etcd, &key("garbage"), &value(14));
    let lease = source(&etcd).await.acquire(&config, &claim(11)).await.unwrap();
    assert_eq!(lease.subnet, net("10.5.4.0/24"));
    assert_eq!(get(&etcd, &key("10.5.1.0/24")).unwrap()["value"], "garbage");
    let error = source(&etcd).await.acquire(&config, &claim(15)).await.unwrap_err();
    assert!(matches!(error, SourceError::OutOfSubnets { .. }), "{error}");
}

#[tokio::test]
async fn renewals_write_the_value_and_a_new_ttl() {
    let etcd = Etcd::start().await;
    let config = configure(&etcd, CONFIG).await;
    let source = source(&etcd).await;
    let mut lease = source.acquire(&config, &claim(11)).await.unwrap();
    let key = key(&lease.subnet.to_string());
    for n in [11, 11, 42] {
        let old = format!("value={}", value(lease.attrs.public_ip.octets()[3]));
        curl(&etcd, &key, &["-XPUT", "--data-urlencode", &old, "-d", "ttl=100"]);
        lease.revision = get(&etcd, &key).unwrap()["modifiedIndex"].as_i64().unwrap();
        lease.attrs = attrs(n);
        let renewed = source.renew(&lease).await.unwrap();
        let after = get(&etcd, &key).unwrap();
        assert_eq!(after["value"], value(n));
        assert_eq!(after["modifiedIndex"], renewed.revision);
        assert!(after["ttl"].as_i64().unwrap() > 86300, "{after}");
        assert!(is_fresh(&renewed));
        lease = renewed;
    }
}

#[tokio::test]
async fn another_nodes_lease_is_never_overwritten() {
    let etcd = Etcd::start().await;
    let config = configure(&etcd, CONFIG).await;
    let source = source(&etcd).await;
    let lease = source.acquire(&config, &claim(11)).await.unwrap();
    let key = key(&lease.subnet.to_string());
    put_leased(&etcd, &key, &value(12));
    let before = get(&etcd, &key).unwrap();
    match source.renew(&lease).await.unwrap_err() {
        SourceError::LeaseLost { subnet, holder } => {
            assert_eq!((subnet, holder), (lease.subnet, Ipv4Addr::new(10, 99, 0, 12)));
        }
        other => panic!("{other}"),
    }
    // Nor is it by acquiring anew.
    let claim = Claim { previous: Some(lease.subnet), ..claim(11) };
    assert_ne!(source.acquire(&config, &claim).await.unwrap().subnet, lease.subnet);
    assert_eq!(get(&etcd, &key).unwrap()["modifiedIndex"], before["modifiedIndex"]);
}

#[tokio::test]
async fn a_deleted_or_spoilt_own_key_is_written_again() {
    let etcd = Etcd::start().await;
    let config = configure(&etcd, CONFIG).await;
    let source = source(&etcd).await;
    let lease = source.acquire(&config, &claim(11)).await.unwrap();
    let key = key(&lease.subnet.to_string());
    delete(&etcd, &key);
    let lease = source.renew(&lease).await.unwrap();
    assert_eq!(get(&etcd, &key).unwrap()["value"], value(11));
    put_leased(&etcd, &key, "garbage");
    source.renew(&lease).await.unwrap();
    assert_eq!(get(&etcd, &key).unwrap()["value"], value(11));
}

#[tokio::test]
async fn a_reservation_stays_one() {
    let etcd = Etcd::start().await;
    let config = configure(&etcd, CONFIG).await;
    put(&etcd, &key("10.5.50.0/24"), &value(11));
    let source = source(&etcd).await;
    let lease = source.acquire(&config, &claim(11)).await.unwrap();
    assert_eq!((lease.subnet, lease.expires), (net("10.5.50.0/24"), None));
    let renewed = source.renew(&lease).await.unwrap();
    assert_eq!(renewed.expires, None);
    let node = get(&etcd, &key("10.5.50.0/24")).unwrap();
    assert!(node.get("ttl").is_none() && node["modifiedIndex"] == renewed.revision, "{node}");
}

#[tokio::test]
async fn a_dead_endpoint_is_passed_over() {
    let etcd = Etcd::start().await;
    let config = configure(&etcd, CONFIG).await;
    let dead = format!("http://127.0.0.1:{}", free_port());
    let mut both = options(&dead);
    both.endpoints.push(etcd.url() + "/");
    let source = Etcd2::connect(both).await.unwrap();
    let lease = source.acquire(&config, &claim(11)).await.unwrap();
    source.renew(&lease).await.unwrap();

    let alone = Etcd2::connect(options(&dead)).await.unwrap();
    let error = alone.list().await.unwrap_err().to_string();
    for part in ["list", "/coreos.com/network/subnets", &dead, "refused", "--etcd-endpoints"] {
        assert!(error.contains(part), "{part}: {error}");
    }
}
