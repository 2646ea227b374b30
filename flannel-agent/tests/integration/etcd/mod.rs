//! The sources of leases against a real etcd on loopback.

mod certificates;
mod server;
mod v2;
mod v3;

use std::net::Ipv4Addr;

use flannel_agent::source::Claim;
use flannel_agent::source::options::EtcdOptions;
use flannel_core::lease::attrs::LeaseAttrs;
use flannel_core::mac::MacAddr;
use ipnetwork::Ipv4Network;

const PREFIX: &str = "/coreos.com/network";

const CONFIG: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#;

fn net(text: &str) -> Ipv4Network {
    text.parse().unwrap()
}

fn key(subnet: &str) -> String {
    format!("{PREFIX}/subnets/{}", subnet.replace('/', "-"))
}

/// What node `n` says of itself.
fn attrs(n: u8) -> LeaseAttrs {
    LeaseAttrs::vxlan(Ipv4Addr::new(10, 99, 0, n), 1, MacAddr([2, 0, 0, 0, 0, n]))
}

fn value(n: u8) -> String {
    serde_json::to_string(&attrs(n)).unwrap()
}

fn claim(n: u8) -> Claim {
    Claim::new(attrs(n), None)
}

fn options(url: &str) -> EtcdOptions {
    EtcdOptions {
        endpoints: vec![url.to_owned()],
        prefix: PREFIX.to_owned(),
        ..EtcdOptions::default()
    }
}
