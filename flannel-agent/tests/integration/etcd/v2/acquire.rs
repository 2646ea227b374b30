//! Acquiring.

use std::process::Stdio;

use super::*;

#[tokio::test]
async fn an_acquired_subnet_is_read_as_the_guides_do() {
    let etcd = Etcd::start().await;
    let config = configure(&etcd, CONFIG).await;
    let lease = source(&etcd).await.acquire(&config, &claim(11)).await.unwrap();
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
async fn the_lease_of_an_old_flannel_is_taken_over() {
    let etcd = Etcd::start().await;
    let config = configure(&etcd, CONFIG).await;
    keys(&etcd).put_leased(&key("10.5.43.0/24"), &old_value(11)).await;
    keys(&etcd).put_leased(&key("10.5.44.0/24"), &old_value(12)).await;
    let source = source(&etcd).await;
    let lease = source.acquire(&config, &claim(11)).await.unwrap();
    assert_eq!(lease.subnet, net("10.5.43.0/24"));
    let (leases, _) = source.list().await.unwrap();
    let vteps: Vec<_> = leases.iter().map(|lease| lease.attrs.vtep().unwrap().vtep_mac).collect();
    assert!(vteps.contains(&MacAddr([2, 0, 0, 0, 0, 12])), "{vteps:?}");
}
