//! Everything below the prefix, for a migration.

use super::{Etcd2, EtcdNode};
use crate::source::SourceError;
use crate::source::holdings::{Holdings, Item};

impl Etcd2 {
    /// The config and all subnet keys, with what is left of their TTLs.
    ///
    /// # Errors
    /// etcd does not answer, or there is no config.
    pub(in crate::source) async fn holdings(&self) -> Result<Holdings, SourceError> {
        let value = self.config_text().await?;
        let config = Item { key: "config".to_owned(), value, seconds_left: None };
        let mut holds = Holdings { items: vec![config], unreadable: Vec::new() };
        let (mut nodes, subnets) = (self.nodes().await?.0, self.keys().subnets());
        nodes.sort_by(|a, b| a.key.cmp(&b.key));
        for node in nodes {
            let key = node.name(&subnets).unwrap_or(&node.key);
            let key = format!("subnets/{key}");
            match (self.decode(&node), node) {
                (Ok(_), EtcdNode { value: Some(value), ttl, .. }) => {
                    let seconds_left = ttl.map(|left| u64::try_from(left).unwrap_or(0));
                    holds.items.push(Item { key, value, seconds_left });
                }
                (Ok(_), _) => {}
                (Err(cause), _) => holds.unreadable.push((key, cause)),
            }
        }
        Ok(holds)
    }
}
