//! Acquiring.

use super::*;

#[tokio::test]
async fn an_own_dual_stack_lease_keeps_its_subnet() {
    let etcd = Etcd::start().await;
    let keys = keys(&etcd);
    let config = configure(&etcd, CONFIG).await;
    let dual = key("10.5.27.0-24&fd00:5:0:4e::-64");
    keys.put_leased(&dual, &value(11)).await;
    keys.put_leased(&key("10.5.28.0-24&fd00:5:0:4f::-64"), &value(12)).await;
    let source = source(&etcd).await;
    let claim = Claim { previous: Some(net("10.5.28.0/24")), ..claim(11) };
    let lease = source.acquire(&config, &claim).await.unwrap();
    assert_eq!(lease.subnet, net("10.5.27.0/24"));
    assert_eq!(keys.get(&dual).await, None);
    assert_eq!(source.renew(&lease).await.unwrap().subnet, lease.subnet);
    assert_eq!(keys.subnets().await.len(), 2);
    keys.assert_no_orphans().await;
}

#[tokio::test]
async fn an_etcd_lease_that_others_use_too_is_left() {
    let etcd = Etcd::start().await;
    let config = configure(&etcd, CONFIG).await;
    keys(&etcd).put_leased(&key("10.5.9.0/24"), &value(11)).await;
    let id = keys(&etcd).get(&key("10.5.9.0/24")).await.unwrap().lease.unwrap();
    let options = PutOptions::new().with_lease(id);
    etcd.client().await.kv_client().put("/other", "program", Some(options)).await.unwrap();
    source(&etcd).await.acquire(&config, &claim(11)).await.unwrap();
    assert!(keys(&etcd).get("/other").await.is_some());
}
