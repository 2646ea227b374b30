//! Leases as etcd's v2 API shows them.

use std::time::Instant;

use ipnetwork::Ipv4Network;
use serde::Deserialize;

use super::attrs::LeaseAttrs;
use super::key::SubnetKey;
use super::{Lease, end};

/// A key as the API shows it.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EtcdNode {
    /// Its whole name.
    pub key: String,
    /// It is a directory.
    pub dir: bool,
    /// What stands there; a directory has none.
    pub value: Option<String>,
    /// Seconds left; absent for a reservation.
    pub ttl: Option<i64>,
    /// Index of the last change.
    pub modified_index: i64,
    /// What is in the directory.
    pub nodes: Vec<EtcdNode>,
}

/// An answer about a key, and an event of a watch.
#[derive(Debug, Deserialize)]
pub struct LeaseChange {
    /// What happened: `get`, `set`, `expire`, ...
    pub action: String,
    /// The key as it is now.
    pub node: EtcdNode,
}

impl EtcdNode {
    /// Index of the last change.
    pub fn revision(&self) -> i64 {
        self.modified_index
    }

    /// When it ends; `None` for a reservation, and for what outlasts all clocks.
    pub fn expires(&self, now: Instant) -> Option<Instant> {
        end(now, self.ttl?)
    }

    /// The last part of a subnet key; `subnets` is what those begin with.
    pub fn name(&self, subnets: &str) -> Option<&str> {
        self.key.strip_prefix(subnets)
    }

    /// The lease that stands there.
    ///
    /// # Errors
    /// Why it is none.
    pub fn lease(&self, subnets: &str, now: Instant) -> Result<Lease, String> {
        let name = self.name(subnets).ok_or("the key is not below the prefix")?;
        if name.contains('&') {
            return Err("a dual-stack key has no place in etcd v2".to_owned());
        }
        let subnet = name.parse::<SubnetKey>().map_err(|error| error.to_string())?.subnet();
        let value = match &self.value {
            Some(value) if !self.dir => value,
            _ => return Err("it is a directory".to_owned()),
        };
        let attrs = LeaseAttrs::parse(value).map_err(|error| error.to_string())?;
        Ok(Lease { subnet, attrs, expires: self.expires(now), revision: self.revision() })
    }

    /// The subnet that the key claims, be the rest of it as it may.
    pub fn claims(&self, subnets: &str) -> Option<Ipv4Network> {
        Some(self.name(subnets)?.split('&').next()?.parse::<SubnetKey>().ok()?.subnet())
    }
}
