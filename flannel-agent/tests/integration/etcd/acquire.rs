//! Acquiring and renewing, by either API.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use flannel_agent::source::{Claim, LEASE_TTL, LeaseSource, SourceError};
use flannel_core::lease::Lease;

use super::server::free_port;
use super::*;

by_either_api!(
    a_missing_or_bad_config_is_told,
    an_acquired_subnet_is_written_as_flannel_does,
    a_restarted_node_has_its_subnet_again_without_orphans,
    the_previous_subnet_is_taken_if_it_is_free_and_fits,
    an_own_lease_that_does_not_fit_is_replaced,
    three_nodes_share_exactly_three_subnets,
    twenty_nodes_share_exactly_twenty_subnets,
    unreadable_keys_are_nobodys_subnet,
    renewals_write_the_value_and_a_new_end,
    another_nodes_lease_is_never_overwritten,
    a_deleted_or_spoilt_own_key_is_written_again,
    a_reservation_stays_one,
    a_dead_endpoint_is_passed_over,
);

/// Whether the lease ends [`LEASE_TTL`] from now, give or take a minute.
fn is_fresh(lease: &Lease) -> bool {
    let left = lease.expires.unwrap().saturating_duration_since(Instant::now());
    left <= LEASE_TTL && left > LEASE_TTL - Duration::from_secs(60)
}

async fn a_missing_or_bad_config_is_told(api: EtcdApi) {
    let etcd = Etcd::start().await;
    let source = store(&etcd.url(), api).await;
    let error = source.config().await.unwrap_err().to_string();
    if api == EtcdApi::V3 {
        let flannels = "flannel config not found in etcd store. \
                        Did you create your config using etcdv3 API?";
        assert!(error.starts_with(flannels), "{error}");
    }
    let name = if api == EtcdApi::V3 { "etcdv3 API" } else { "v2 API" };
    for part in ["not found", name, "/coreos.com/network/config", &etcd.url()] {
        assert!(error.contains(part), "{part}: {error}");
    }
    Keys::by(api, &etcd).put(&format!("{PREFIX}/config"), "garbage").await;
    let error = source.config().await.unwrap_err().to_string();
    assert!(error.starts_with("the config under /coreos.com/network/config is unus"), "{error}");
}

async fn an_acquired_subnet_is_written_as_flannel_does(api: EtcdApi) {
    let etcd = Etcd::start().await;
    let keys = Keys::by(api, &etcd);
    let (source, config) = configured(api, &etcd, CONFIG).await;
    let lease = source.acquire(&config, &claim(11)).await.unwrap();
    assert_eq!(lease.subnet.prefix(), 24);
    assert_ne!(lease.subnet, net("10.5.0.0/24"), "the first subnet is never given out");
    assert!(is_fresh(&lease));
    let written = keys.get(&key(&lease.subnet.to_string())).await.unwrap();
    assert_eq!(
        written.value,
        r#"{"PublicIP":"10.99.0.11","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:0b"}}"#
    );
    assert_eq!(written.revision, lease.revision);
    assert!((86300..=86400).contains(&written.left.unwrap()), "{written:?}");
    keys.assert_no_orphans().await;
}

async fn a_restarted_node_has_its_subnet_again_without_orphans(api: EtcdApi) {
    let etcd = Etcd::start().await;
    let keys = Keys::by(api, &etcd);
    let (source, config) = configured(api, &etcd, CONFIG).await;
    let first = source.acquire(&config, &claim(11)).await.unwrap();
    for _ in 0..3 {
        // A claim of another subnet does not count against the lease.
        let claim = Claim { previous: Some(net("10.5.200.0/24")), ..claim(11) };
        let again = store(&etcd.url(), api).await.acquire(&config, &claim).await.unwrap();
        assert_eq!(again.subnet, first.subnet);
        assert!(is_fresh(&again) && again.revision > first.revision);
        keys.assert_no_orphans().await;
    }
    assert_eq!(keys.subnets().await.len(), 1);
}

async fn the_previous_subnet_is_taken_if_it_is_free_and_fits(api: EtcdApi) {
    let etcd = Etcd::start().await;
    let (source, config) = configured(api, &etcd, CONFIG).await;
    // As subnet.env has it: with the bridge's host bits.
    let wants = |n, subnet: &str| Claim { previous: Some(net(subnet)), ..claim(n) };
    let lease = source.acquire(&config, &wants(11, "10.5.77.1/24")).await.unwrap();
    assert_eq!(lease.subnet, net("10.5.77.0/24"));
    let other = source.acquire(&config, &wants(12, "10.5.77.1/24")).await.unwrap();
    assert_ne!(other.subnet, net("10.5.77.0/24"), "another node has it");
    let mut given = Vec::new();
    for (n, unfit) in [
        (13, "10.6.1.1/24"),
        (14, "10.5.0.1/24"),
        (15, "10.5.80.1/25"),
        (17, "10.5.81.1/25"),
        (18, "10.5.82.1/25"),
    ] {
        let lease = source.acquire(&config, &wants(n, unfit)).await.unwrap();
        assert_eq!(lease.subnet.prefix(), 24);
        given.extend((lease.subnet.network() == net(unfit).network()).then_some(unfit));
    }
    // Any free subnet may be given, by chance one that begins there.
    assert!(given.len() <= 1, "{given:?}");
    Keys::by(api, &etcd).put_leased(&key("10.5.96.0/20"), &value(99)).await;
    let lease = source.acquire(&config, &wants(16, "10.5.100.1/24")).await.unwrap();
    assert_ne!(lease.subnet, net("10.5.100.0/24"), "a lease overlaps it");
}

async fn an_own_lease_that_does_not_fit_is_replaced(api: EtcdApi) {
    let etcd = Etcd::start().await;
    let keys = Keys::by(api, &etcd);
    let (source, config) = configured(api, &etcd, CONFIG).await;
    keys.put_leased(&key("10.7.1.0/24"), &value(11)).await;
    keys.put_leased(&key("10.5.9.0/25"), &value(11)).await;
    keys.put_leased(&key("10.7.2.0/24"), &value(12)).await;
    let lease = source.acquire(&config, &claim(11)).await.unwrap();
    assert!(net("10.5.0.0/16").contains(lease.subnet.network()));
    assert_eq!(keys.get(&key("10.7.1.0/24")).await, None);
    assert_eq!(keys.get(&key("10.5.9.0/25")).await, None);
    assert!(keys.get(&key("10.7.2.0/24")).await.is_some(), "it is another node's");
    keys.assert_no_orphans().await;
}

async fn share(api: EtcdApi, nodes: u8) {
    let etcd = Etcd::start().await;
    let keys = Keys::by(api, &etcd);
    let config = format!(
        r#"{{"Network":"10.5.0.0/16","SubnetMin":"10.5.1.0","SubnetMax":"10.5.{nodes}.0","Backend":{{"Type":"vxlan"}}}}"#
    );
    let (source, config) = configured(api, &etcd, &config).await;
    let mut running = tokio::task::JoinSet::new();
    for n in 1..=nodes {
        let (source, config) = (store(&etcd.url(), api).await, config.clone());
        running.spawn(async move { source.acquire(&config, &claim(n)).await });
    }
    let mut subnets = BTreeSet::new();
    while let Some(node) = running.join_next().await {
        assert!(subnets.insert(node.unwrap().unwrap().subnet));
    }
    let expected: BTreeSet<_> =
        (1..=nodes).map(|third| net(&format!("10.5.{third}.0/24"))).collect();
    assert_eq!(subnets, expected);
    keys.assert_no_orphans().await;
    let error = source.acquire(&config, &claim(99)).await.unwrap_err();
    assert!(
        error.to_string().starts_with(&format!("out of subnets: with {nodes} leases")),
        "{error}"
    );
    keys.assert_no_orphans().await;
}

async fn three_nodes_share_exactly_three_subnets(api: EtcdApi) {
    share(api, 3).await;
}

async fn twenty_nodes_share_exactly_twenty_subnets(api: EtcdApi) {
    share(api, 20).await;
}

async fn unreadable_keys_are_nobodys_subnet(api: EtcdApi) {
    let etcd = Etcd::start().await;
    let keys = Keys::by(api, &etcd);
    let config = r#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.1.0","SubnetMax":"10.5.4.0","Backend":{"Type":"vxlan"}}"#;
    let (source, config) = configured(api, &etcd, config).await;
    keys.put(&key("10.5.1.0/24"), "garbage").await;
    keys.put(&key("10.5.2.0-24&junk"), &value(12)).await;
    // A directory is v2's alone.
    let directory = if api == EtcdApi::V2 { "/directory" } else { "" };
    keys.put(&(key("10.5.3.0/24") + directory), &value(13)).await;
    keys.put(&key("garbage"), &value(14)).await;
    let lease = source.acquire(&config, &claim(11)).await.unwrap();
    assert_eq!(lease.subnet, net("10.5.4.0/24"));
    assert_eq!(keys.get(&key("10.5.1.0/24")).await.unwrap().value, "garbage");
    let error = source.acquire(&config, &claim(15)).await.unwrap_err();
    assert!(matches!(error, SourceError::OutOfSubnets { .. }), "{error}");
}

async fn renewals_write_the_value_and_a_new_end(api: EtcdApi) {
    let etcd = Etcd::start().await;
    let keys = Keys::by(api, &etcd);
    let (source, config) = configured(api, &etcd, CONFIG).await;
    let mut lease = source.acquire(&config, &claim(11)).await.unwrap();
    let key = key(&lease.subnet.to_string());
    for (n, near_its_end) in [(11, false), (11, true), (42, false), (42, true)] {
        if near_its_end {
            let old = keys.get(&key).await.unwrap();
            keys.write(&key, &old.value, Some(100)).await;
            if let Some(id) = old.lease {
                etcd.client().await.lease_client().revoke(id).await.unwrap();
            }
            lease.revision = keys.get(&key).await.unwrap().revision;
        }
        let before = keys.get(&key).await.unwrap();
        lease.attrs = attrs(n);
        let renewed = source.renew(&lease).await.unwrap();
        let after = keys.get(&key).await.unwrap();
        assert!(api == EtcdApi::V2 || after.lease != before.lease, "{after:?}");
        assert_eq!(after.value, value(n));
        assert_eq!(after.revision, renewed.revision);
        assert!(after.left.unwrap() > 86300, "{after:?}");
        assert!(is_fresh(&renewed));
        keys.assert_no_orphans().await;
        lease = renewed;
    }
}

async fn another_nodes_lease_is_never_overwritten(api: EtcdApi) {
    let etcd = Etcd::start().await;
    let keys = Keys::by(api, &etcd);
    let (source, config) = configured(api, &etcd, CONFIG).await;
    let lease = source.acquire(&config, &claim(11)).await.unwrap();
    let key = key(&lease.subnet.to_string());
    keys.put_leased(&key, &value(12)).await;
    let before = keys.get(&key).await.unwrap();
    match source.renew(&lease).await.unwrap_err() {
        SourceError::LeaseLost { subnet, holder } => {
            assert_eq!((subnet, holder), (lease.subnet, Ipv4Addr::new(10, 99, 0, 12)));
        }
        other => panic!("{other}"),
    }
    assert_eq!(keys.get(&key).await.unwrap().revision, before.revision);
    // Nor is it by acquiring anew.
    let claim = Claim { previous: Some(lease.subnet), ..claim(11) };
    assert_ne!(source.acquire(&config, &claim).await.unwrap().subnet, lease.subnet);
    assert_eq!(keys.get(&key).await.unwrap().revision, before.revision);
}

async fn a_deleted_or_spoilt_own_key_is_written_again(api: EtcdApi) {
    let etcd = Etcd::start().await;
    let keys = Keys::by(api, &etcd);
    let (source, config) = configured(api, &etcd, CONFIG).await;
    let lease = source.acquire(&config, &claim(11)).await.unwrap();
    let key = key(&lease.subnet.to_string());
    keys.delete(&key).await;
    let lease = source.renew(&lease).await.unwrap();
    assert_eq!(keys.get(&key).await.unwrap().value, value(11));
    keys.put_leased(&key, "garbage").await;
    source.renew(&lease).await.unwrap();
    assert_eq!(keys.get(&key).await.unwrap().value, value(11));
}

async fn a_reservation_stays_one(api: EtcdApi) {
    let etcd = Etcd::start().await;
    let keys = Keys::by(api, &etcd);
    let (source, config) = configured(api, &etcd, CONFIG).await;
    keys.put(&key("10.5.50.0/24"), &value(11)).await;
    let lease = source.acquire(&config, &claim(11)).await.unwrap();
    assert_eq!((lease.subnet, lease.expires), (net("10.5.50.0/24"), None));
    let renewed = source.renew(&lease).await.unwrap();
    assert_eq!(renewed.expires, None);
    let after = keys.get(&key("10.5.50.0/24")).await.unwrap();
    assert_eq!((after.left, after.revision), (None, renewed.revision));
    keys.assert_no_orphans().await;
}

async fn a_dead_endpoint_is_passed_over(api: EtcdApi) {
    let etcd = Etcd::start().await;
    let (_, config) = configured(api, &etcd, CONFIG).await;
    let dead = format!("http://127.0.0.1:{}", free_port());
    let mut both = options(&dead);
    both.endpoints.push(etcd.url() + "/");
    let source = Store::connect(both, api).await.unwrap();
    let lease = source.acquire(&config, &claim(11)).await.unwrap();
    source.renew(&lease).await.unwrap();
    Keys::by(api, &etcd).assert_no_orphans().await;

    let error = store(&dead, api).await.list().await.unwrap_err().to_string();
    let call = if api == EtcdApi::V3 { "get" } else { "list" };
    for part in [call, "/coreos.com/network/subnets", &dead, "refused", "--etcd-endpoints"] {
        assert!(error.contains(part), "{part}: {error}");
    }
}
