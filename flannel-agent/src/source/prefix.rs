//! Where keys are, as flanneld joins them. Pure.

use std::fmt;

use flannel_core::lease::key::SubnetKey;
use ipnetwork::Ipv4Network;

/// The keys below a prefix.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    prefix: String,
}

impl Keys {
    /// Those below this prefix, however it is written.
    pub(super) fn below(prefix: &str) -> Self {
        Self { prefix: clean(prefix) }
    }

    /// The prefix itself, without a slash at its end.
    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// That of the network config.
    pub(super) fn config(&self) -> String {
        format!("{}/config", self.prefix)
    }

    /// The prefix of all subnet keys.
    pub(super) fn subnets(&self) -> String {
        format!("{}/subnets/", self.prefix)
    }

    /// That of a subnet.
    pub(super) fn of(&self, subnet: Ipv4Network) -> String {
        format!("{}{}", self.subnets(), SubnetKey::new(subnet))
    }
}

/// A prefix as Go's `path.Clean` leaves it; empty instead of `/` and `.`.
pub(super) fn clean(prefix: &str) -> String {
    let rooted = prefix.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in prefix.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => {
                parts.pop();
            }
            ".." if rooted => {}
            part => parts.push(part),
        }
    }
    let joined = parts.join("/");
    if rooted && !joined.is_empty() { format!("/{joined}") } else { joined }
}

/// The same key with or without the slash that it begins with.
pub(super) fn other_spelling(key: &str) -> String {
    key.strip_prefix('/').map_or_else(|| format!("/{key}"), str::to_owned)
}

/// What there is in place of the network config, for messages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Instead {
    /// Nothing of the kind.
    #[default]
    Nothing,
    /// The key in another spelling.
    Key(String),
    /// A value at the prefix itself, which is then the key of a config.
    Prefix(String),
    /// A directory of that name (v2).
    Directory,
    /// Networks of flanneld 0.5's `-networks`: prefixes with a config each.
    Networks(Vec<String>),
}

/// Networks that a message names.
const NAMED: usize = 8;

impl Instead {
    /// Of the keys below `prefix`, those that are a config one level down.
    pub(super) fn networks(prefix: &str, keys: impl IntoIterator<Item = String>) -> Self {
        let below = format!("{prefix}/");
        let network = |key: String| {
            let name = key.strip_prefix(&below)?.strip_suffix("/config")?;
            (!name.is_empty() && !name.contains('/')).then(|| format!("{below}{name}"))
        };
        let networks: Vec<_> = keys.into_iter().filter_map(network).take(NAMED).collect();
        if networks.is_empty() { Self::Nothing } else { Self::Networks(networks) }
    }
}

impl fmt::Display for Instead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => Ok(()),
            Self::Key(key) => write!(
                f,
                "; there is a key {key}, which differs by the slash that it begins with: see \
                 --etcd-prefix"
            ),
            Self::Prefix(prefix) => {
                write!(f, "; there is a value at {prefix} itself: --etcd-prefix is without /config")
            }
            Self::Directory => write!(
                f,
                "; it is a directory, and the config has to be its value: delete it and write \
                 the JSON there"
            ),
            Self::Networks(networks) => write!(
                f,
                "; there are networks of flanneld 0.5's -networks: give one of them as \
                 --etcd-prefix ({})",
                networks.join(", ")
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_cleaned_as_go_does() {
        for (prefix, expected) in [
            ("/coreos.com/network", "/coreos.com/network"),
            ("//coreos.com//network/", "/coreos.com/network"),
            ("coreos.com/./network", "coreos.com/network"),
            ("/a/b/../c", "/a/c"),
            ("/../a", "/a"),
            ("../a/..", ".."),
            ("/", ""),
            (".", ""),
        ] {
            assert_eq!(clean(prefix), expected, "{prefix}");
        }
        assert_eq!(other_spelling("/a/config"), "a/config");
        assert_eq!(other_spelling("a/config"), "/a/config");
    }

    #[test]
    fn networks_are_one_level_down() {
        let keys = ["/p/blue/config", "/p/config", "/p/blue/subnets/10.5.1.0-24", "/p/a/b/config"];
        let found = Instead::networks("/p", keys.map(str::to_owned));
        assert_eq!(found, Instead::Networks(vec!["/p/blue".to_owned()]));
        assert!(found.to_string().contains("(/p/blue)"));
    }
}
