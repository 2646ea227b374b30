//! Acquiring and renewing.

use std::collections::BTreeSet;
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
async fn a_missing_config_is_told_in_flannels_words() {
    let etcd = Etcd::start().await;
    let error = source(&etcd).await.config().await.unwrap_err().to_string();
    let words = "flannel config not found in etcd store. \
                 Did you create your config using etcdv3 API?";
    assert!(error.starts_with(words), "{error}");
    assert!(error.contains("/coreos.com/network/config") && error.contains(&etcd.url()), "{error}");
    put(&etcd.client().await, &format!("{PREFIX}/config"), "garbage").await;
    let error = source(&etcd).await.config().await.unwrap_err().to_string();
    assert!(error.starts_with("the config under /coreos.com/network/config is unus"), "{error}");
}

#[tokio::test]
async fn an_acquired_subnet_is_written_as_flannel_does() {
    let etcd = Etcd::start().await;
    let client = etcd.client().await;
    let config = configure(&etcd, CONFIG).await;
    let lease = source(&etcd).await.acquire(&config, &claim(11)).await.unwrap();
    assert_eq!(lease.subnet.prefix(), 24);
    assert_ne!(lease.subnet, net("10.5.0.0/24"), "the first subnet is never given out");
    let kv = get(&client, &key(&lease.subnet.to_string())).await.unwrap();
    assert_eq!(
        kv.value_str().unwrap(),
        r#"{"PublicIP":"10.99.0.11","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:0b"}}"#
    );
    assert_eq!(kv.mod_revision(), lease.revision);
    let left = client.lease_client().time_to_live(kv.lease(), None).await.unwrap();
    assert_eq!(left.granted_ttl(), 86400);
    assert!(is_fresh(&lease));
    assert_no_orphans(&client).await;
}

#[tokio::test]
async fn a_restarted_node_has_its_subnet_again_without_orphans() {
    let etcd = Etcd::start().await;
    let client = etcd.client().await;
    let config = configure(&etcd, CONFIG).await;
    let first = source(&etcd).await.acquire(&config, &claim(11)).await.unwrap();
    for _ in 0..3 {
        // A claim of another subnet does not count against the lease.
        let claim = Claim { previous: Some(net("10.5.200.0/24")), ..claim(11) };
        let again = source(&etcd).await.acquire(&config, &claim).await.unwrap();
        assert_eq!(again.subnet, first.subnet);
        assert!(is_fresh(&again) && again.revision > first.revision);
        assert_no_orphans(&client).await;
    }
    assert_eq!(keys(&client).await.len(), 1);
}

#[tokio::test]
async fn the_previous_subnet_is_taken_if_it_is_free_and_fits() {
    let etcd = Etcd::start().await;
    let client = etcd.client().await;
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
    put_leased(&client, &key("10.5.96.0/20"), &value(99)).await;
    let lease = source.acquire(&config, &wants(16, "10.5.100.1/24")).await.unwrap();
    assert_ne!(lease.subnet, net("10.5.100.0/24"), "a lease overlaps it");
}

#[tokio::test]
async fn an_own_lease_that_does_not_fit_is_replaced() {
    let etcd = Etcd::start().await;
    let client = etcd.client().await;
    let config = configure(&etcd, CONFIG).await;
    put_leased(&client, &key("10.7.1.0/24"), &value(11)).await;
    put_leased(&client, &key("10.5.9.0/25"), &value(11)).await;
    put_leased(&client, &key("10.7.2.0/24"), &value(12)).await;
    let lease = source(&etcd).await.acquire(&config, &claim(11)).await.unwrap();
    assert!(net("10.5.0.0/16").contains(lease.subnet.network()));
    assert!(get(&client, &key("10.7.1.0/24")).await.is_none());
    assert!(get(&client, &key("10.5.9.0/25")).await.is_none());
    assert!(get(&client, &key("10.7.2.0/24")).await.is_some(), "it is another node's");
    assert_no_orphans(&client).await;
}

#[tokio::test]
async fn an_own_dual_stack_lease_keeps_its_subnet() {
    let etcd = Etcd::start().await;
    let client = etcd.client().await;
    let config = configure(&etcd, CONFIG).await;
    let dual = key("10.5.27.0-24&fd00:5:0:4e::-64");
    put_leased(&client, &dual, &value(11)).await;
    put_leased(&client, &key("10.5.28.0-24&fd00:5:0:4f::-64"), &value(12)).await;
    let source = source(&etcd).await;
    let claim = Claim { previous: Some(net("10.5.28.0/24")), ..claim(11) };
    let lease = source.acquire(&config, &claim).await.unwrap();
    assert_eq!(lease.subnet, net("10.5.27.0/24"));
    assert!(get(&client, &dual).await.is_none());
    assert_eq!(source.renew(&lease).await.unwrap().subnet, lease.subnet);
    assert_eq!(keys(&client).await.len(), 2);
    assert_no_orphans(&client).await;
}

#[tokio::test]
async fn twenty_nodes_share_exactly_twenty_subnets() {
    let etcd = Etcd::start().await;
    let client = etcd.client().await;
    let config = r#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.1.0","SubnetMax":"10.5.20.0","Backend":{"Type":"vxlan"}}"#;
    let config = configure(&etcd, config).await;
    let mut nodes = tokio::task::JoinSet::new();
    for n in 1..=20 {
        let (source, config) = (source(&etcd).await, config.clone());
        nodes.spawn(async move { source.acquire(&config, &claim(n)).await });
    }
    let mut subnets = BTreeSet::new();
    while let Some(node) = nodes.join_next().await {
        assert!(subnets.insert(node.unwrap().unwrap().subnet));
    }
    let expected: BTreeSet<_> = (1..=20).map(|third| net(&format!("10.5.{third}.0/24"))).collect();
    assert_eq!(subnets, expected);
    assert_no_orphans(&client).await;
    let error = source(&etcd).await.acquire(&config, &claim(21)).await.unwrap_err();
    assert!(error.to_string().starts_with("out of subnets: 20 leases"), "{error}");
    assert_no_orphans(&client).await;
}

#[tokio::test]
async fn unreadable_keys_are_nobodys_subnet() {
    let etcd = Etcd::start().await;
    let client = etcd.client().await;
    let config = r#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.1.0","SubnetMax":"10.5.4.0","Backend":{"Type":"vxlan"}}"#;
    let config = configure(&etcd, config).await;
    put(&client, &key("10.5.1.0/24"), "garbage").await;
    put(&client, &key("10.5.2.0-24&junk"), &value(12)).await;
    put(&client, &key("10.5.3.0-24"), &value(13)).await;
    put(&client, &key("garbage"), &value(14)).await;
    let lease = source(&etcd).await.acquire(&config, &claim(11)).await.unwrap();
    assert_eq!(lease.subnet, net("10.5.4.0/24"));
    assert_eq!(get(&client, &key("10.5.1.0/24")).await.unwrap().value(), b"garbage");
    let error = source(&etcd).await.acquire(&config, &claim(15)).await.unwrap_err();
    assert!(matches!(error, SourceError::OutOfSubnets { .. }), "{error}");
}

#[tokio::test]
async fn renewals_replace_the_etcd_lease_and_the_value() {
    let etcd = Etcd::start().await;
    let client = etcd.client().await;
    let config = configure(&etcd, CONFIG).await;
    let source = source(&etcd).await;
    let mut lease = source.acquire(&config, &claim(11)).await.unwrap();
    let key = key(&lease.subnet.to_string());
    for n in [11, 11, 42] {
        let before = get(&client, &key).await.unwrap();
        lease.attrs = attrs(n);
        let renewed = source.renew(&lease).await.unwrap();
        let after = get(&client, &key).await.unwrap();
        assert_ne!(after.lease(), before.lease());
        assert_eq!(after.value_str().unwrap(), value(n));
        assert_eq!(renewed.revision, after.mod_revision());
        assert!(is_fresh(&renewed));
        assert_no_orphans(&client).await;
        lease = renewed;
    }
}

#[tokio::test]
async fn an_etcd_lease_that_others_use_too_is_left() {
    let etcd = Etcd::start().await;
    let client = etcd.client().await;
    let config = configure(&etcd, CONFIG).await;
    let id = put_leased(&client, &key("10.5.9.0/24"), &value(11)).await;
    let options = PutOptions::new().with_lease(id);
    client.kv_client().put("/other", "program", Some(options)).await.unwrap();
    source(&etcd).await.acquire(&config, &claim(11)).await.unwrap();
    assert!(get(&client, "/other").await.is_some());
}

#[tokio::test]
async fn another_nodes_lease_is_never_overwritten() {
    let etcd = Etcd::start().await;
    let client = etcd.client().await;
    let config = configure(&etcd, CONFIG).await;
    let source = source(&etcd).await;
    let lease = source.acquire(&config, &claim(11)).await.unwrap();
    let key = key(&lease.subnet.to_string());
    put_leased(&client, &key, &value(12)).await;
    let before = get(&client, &key).await.unwrap();
    match source.renew(&lease).await.unwrap_err() {
        SourceError::LeaseLost { subnet, holder } => {
            assert_eq!((subnet, holder), (lease.subnet, Ipv4Addr::new(10, 99, 0, 12)));
        }
        other => panic!("{other}"),
    }
    assert_eq!(get(&client, &key).await.unwrap().mod_revision(), before.mod_revision());
    // Nor is it by acquiring anew.
    let claim = Claim { previous: Some(lease.subnet), ..claim(11) };
    assert_ne!(source.acquire(&config, &claim).await.unwrap().subnet, lease.subnet);
    assert_eq!(get(&client, &key).await.unwrap().mod_revision(), before.mod_revision());
}

#[tokio::test]
async fn a_deleted_or_spoilt_own_key_is_written_again() {
    let etcd = Etcd::start().await;
    let client = etcd.client().await;
    let config = configure(&etcd, CONFIG).await;
    let source = source(&etcd).await;
    let lease = source.acquire(&config, &claim(11)).await.unwrap();
    let key = key(&lease.subnet.to_string());
    delete(&client, &key).await;
    let lease = source.renew(&lease).await.unwrap();
    assert_eq!(get(&client, &key).await.unwrap().value_str().unwrap(), value(11));
    put_leased(&client, &key, "garbage").await;
    source.renew(&lease).await.unwrap();
    assert_eq!(get(&client, &key).await.unwrap().value_str().unwrap(), value(11));
}

#[tokio::test]
async fn a_reservation_stays_one() {
    let etcd = Etcd::start().await;
    let client = etcd.client().await;
    let config = configure(&etcd, CONFIG).await;
    put(&client, &key("10.5.50.0/24"), &value(11)).await;
    let source = source(&etcd).await;
    let lease = source.acquire(&config, &claim(11)).await.unwrap();
    assert_eq!((lease.subnet, lease.expires), (net("10.5.50.0/24"), None));
    let renewed = source.renew(&lease).await.unwrap();
    assert_eq!(renewed.expires, None);
    assert_eq!(get(&client, &key("10.5.50.0/24")).await.unwrap().lease(), 0);
    assert_eq!(etcd_leases(&client).await, Vec::<i64>::new());
}

#[tokio::test]
async fn a_dead_endpoint_is_passed_over() {
    let etcd = Etcd::start().await;
    let config = configure(&etcd, CONFIG).await;
    let dead = format!("http://127.0.0.1:{}", free_port());
    let mut both = options(&dead);
    both.endpoints.push(etcd.url() + "/");
    let source = Etcd3::connect(both).await.unwrap();
    let lease = source.acquire(&config, &claim(11)).await.unwrap();
    source.renew(&lease).await.unwrap();
    assert_no_orphans(&etcd.client().await).await;

    let alone = Etcd3::connect(options(&dead)).await.unwrap();
    let error = alone.list().await.unwrap_err().to_string();
    let parts = ["get", "/coreos.com/network/subnets/", &dead, "refused", "--etcd-endpoints"];
    for part in parts {
        assert!(error.contains(part), "{part}: {error}");
    }
}
