//! Which API is taken, and both at once.

use flannel_agent::source::SourceError;
use flannel_core::lease::update::LeaseUpdate;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::etcd::server::free_port;
use crate::etcd::updates::{map, next, next_snapshot};

fn by_v3(etcd: &Etcd) -> Keys<'_> {
    Keys::by(EtcdApi::V3, etcd)
}

#[tokio::test]
async fn auto_takes_the_api_that_has_the_config() {
    let etcd = Etcd::start().await;
    let config = format!("{PREFIX}/config");
    let auto = store(&etcd.url(), EtcdApi::Auto).await;
    let neither = auto.config().await.unwrap_err().to_string();
    for part in ["neither", "etcdv3 API?", "by the v2 API", &config] {
        assert!(neither.contains(part), "{part}: {neither}");
    }
    assert_eq!(auto.api(), None);
    keys(&etcd).put(&config, CONFIG).await;
    let network = auto.config().await.unwrap();
    assert!(auto.api().unwrap().starts_with("v2"), "{:?}", auto.api());
    let lease = auto.acquire(&network, &claim(11)).await.unwrap();
    assert_eq!(keys(&etcd).subnets().await.len(), 1);
    let mut updates = auto.watch(CancellationToken::new());
    let expected = map(&[(&lease.subnet.to_string(), "10.99.0.11")]);
    assert_eq!(next_snapshot(&mut updates).await, expected);

    by_v3(&etcd).put(&config, CONFIG).await;
    let both = store(&etcd.url(), EtcdApi::Auto).await;
    both.config().await.unwrap();
    let why = both.api().unwrap();
    assert!(why.starts_with("v3") && why.contains("v2 has a network config too"), "{why}");
    assert_eq!(both.list().await.unwrap().0.len(), 0, "v3 has none");
    // What was chosen stays.
    assert_eq!(auto.list().await.unwrap().0.len(), 1);
}

#[tokio::test]
async fn a_bad_config_in_v3_does_not_make_it_v2() {
    let etcd = Etcd::start().await;
    keys(&etcd).put(&format!("{PREFIX}/config"), CONFIG).await;
    by_v3(&etcd).put(&format!("{PREFIX}/config"), "garbage").await;
    let auto = store(&etcd.url(), EtcdApi::Auto).await;
    let error = auto.config().await.unwrap_err();
    assert!(matches!(error, SourceError::Config { .. }), "{error}");
    assert_eq!(auto.api(), None);
}

#[tokio::test]
async fn a_server_without_v2_is_served_by_v3() {
    let etcd = Etcd::start_without_v2().await;
    let auto = store(&etcd.url(), EtcdApi::Auto).await;
    let error = auto.config().await.unwrap_err().to_string();
    assert!(error.contains("v2 API is off") && error.contains("etcdv3"), "{error}");
    by_v3(&etcd).put(&format!("{PREFIX}/config"), CONFIG).await;
    auto.config().await.unwrap();
    assert_eq!(auto.api().as_deref(), Some("v3"));
    let v2 = store(&etcd.url(), EtcdApi::V2).await;
    let error = v2.config().await.unwrap_err().to_string();
    assert!(error.contains("--enable-v2") && error.contains("--etcd-api"), "{error}");
}

/// An etcd of the days before v3: HTTP/1.1 alone, and its version says so.
async fn old_etcd(etcd: &Etcd, version: &'static str) -> String {
    let port = free_port();
    let to = etcd.port();
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut start = Vec::new();
                while !start.ends_with(b"\r\n\r\n") && !start.starts_with(b"PRI ") {
                    match near.read_u8().await {
                        Ok(byte) => start.push(byte),
                        Err(_) => return,
                    }
                }
                if start.starts_with(b"PRI ") {
                    let _ = near.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
                    return;
                }
                if start.starts_with(b"GET /version") {
                    let head = format!(
                        "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
                        version.len()
                    );
                    let _ = near.write_all(format!("{head}{version}").as_bytes()).await;
                    let _ = near.read(&mut [0; 1024]).await;
                    return;
                }
                let Ok(mut far) = tokio::net::TcpStream::connect(("127.0.0.1", to)).await else {
                    return;
                };
                // One request for each connection: the next one may ask for the version.
                let head = String::from_utf8(start).unwrap();
                let head = head.replacen("\r\n", "\r\nConnection: close\r\n", 1);
                let _ = far.write_all(head.as_bytes()).await;
                let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
            });
        }
    });
    format!("http://127.0.0.1:{port}")
}

#[tokio::test]
async fn a_server_without_grpc_is_served_by_v2() {
    let etcd = Etcd::start().await;
    let url = old_etcd(&etcd, r#"{"etcdserver":"2.3.8","etcdcluster":"2.3.0"}"#).await;
    let auto = store(&url, EtcdApi::Auto).await;
    assert!(auto.config().await.is_err());
    keys(&etcd).put(&format!("{PREFIX}/config"), CONFIG).await;
    let config = auto.config().await.unwrap();
    assert!(auto.api().unwrap().starts_with("v2"));
    auto.acquire(&config, &claim(11)).await.unwrap();
    assert_eq!(keys(&etcd).subnets().await.len(), 1);
    // One that has v3 but does not answer by it just now is waited for.
    let url = old_etcd(&etcd, r#"{"etcdserver":"3.4.23","etcdcluster":"3.4.0"}"#).await;
    let auto = store(&url, EtcdApi::Auto).await;
    assert!(auto.config().await.is_err());
    assert_eq!(auto.api(), None);
}

#[tokio::test]
async fn both_holds_one_subnet_in_both() {
    let etcd = Etcd::start().await;
    let config = r#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.1.0","SubnetMax":"10.5.4.0","Backend":{"Type":"vxlan"}}"#;
    keys(&etcd).put(&format!("{PREFIX}/config"), config).await;
    // Node 11 runs an old flannel still, and so does 12; 13 is on v3 alone.
    keys(&etcd).put_leased(&key("10.5.3.0/24"), &old_value(11)).await;
    keys(&etcd).put_leased(&key("10.5.1.0/24"), &old_value(12)).await;
    by_v3(&etcd).put(&key("10.5.2.0/24"), &value(13)).await;
    let both = store(&etcd.url(), EtcdApi::Both).await;
    let network = both.config().await.unwrap();
    let lease = both.acquire(&network, &claim(11)).await.unwrap();
    assert_eq!(lease.subnet, net("10.5.3.0/24"), "it keeps what it had in v2");
    for written in [
        by_v3(&etcd).get(&key("10.5.3.0/24")).await.unwrap().value,
        keys(&etcd).get(&key("10.5.3.0/24")).await.unwrap().value,
    ] {
        assert_eq!(written, value(11));
    }
    let another = store(&etcd.url(), EtcdApi::Both).await;
    let other = another.acquire(&network, &claim(14)).await.unwrap();
    assert_eq!(other.subnet, net("10.5.4.0/24"), "the only one that is free in both");
    let third = store(&etcd.url(), EtcdApi::Both).await;
    let error = third.acquire(&network, &claim(15)).await.unwrap_err();
    assert!(matches!(error, SourceError::OutOfSubnets { .. }), "{error}");

    let mut updates = both.watch(CancellationToken::new());
    let all = [("10.5.1.0/24", "10.99.0.12"), ("10.5.2.0/24", "10.99.0.13")];
    let ours = [("10.5.3.0/24", "10.99.0.11"), ("10.5.4.0/24", "10.99.0.14")];
    assert_eq!(next_snapshot(&mut updates).await, map(&[all, ours].concat()));
    // Ours goes in v2 alone: told, and mended by a renewal.
    keys(&etcd).delete(&key("10.5.3.0/24")).await;
    match next(&mut updates).await {
        LeaseUpdate::Removed { subnet, .. } => assert_eq!(subnet, lease.subnet),
        other => panic!("{other:?}"),
    }
    let lease = both.renew(&lease).await.unwrap();
    assert_eq!(keys(&etcd).get(&key("10.5.3.0/24")).await.unwrap().value, value(11));
    keys(&etcd).put_leased(&key("10.5.3.0/24"), &old_value(77)).await;
    let error = both.renew(&lease).await.unwrap_err();
    assert!(matches!(error, SourceError::LeaseLost { .. }), "{error}");
}

#[tokio::test]
async fn twelve_nodes_of_both_kinds_share_twelve_subnets() {
    let etcd = Etcd::start().await;
    let config = r#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.1.0","SubnetMax":"10.5.12.0","Backend":{"Type":"vxlan"}}"#;
    keys(&etcd).put(&format!("{PREFIX}/config"), config).await;
    let mut nodes = tokio::task::JoinSet::new();
    for n in 1..=12 {
        // Old flannels are those of v2 alone.
        let api = if n % 3 == 0 { EtcdApi::V2 } else { EtcdApi::Both };
        let node = store(&etcd.url(), api).await;
        nodes.spawn(async move {
            let config = node.config().await.unwrap();
            node.acquire(&config, &claim(n)).await.unwrap().subnet
        });
    }
    let mut subnets = std::collections::BTreeSet::new();
    while let Some(subnet) = nodes.join_next().await {
        assert!(subnets.insert(subnet.unwrap()));
    }
    assert_eq!(subnets.len(), 12);
    assert_eq!(keys(&etcd).subnets().await.len(), 12);
}
