//! One agent for a device and an overlay network on a node.
//!
//! Two agents with directories of their own do not meet there. They would meet at
//! the device, and each would undo what the other does.

use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use ipnetwork::Ipv4Network;

/// Names that this process holds, as abstract sockets: they belong to the network
/// namespace, as devices do, and go with the process.
#[derive(Debug)]
pub(super) struct Single(#[expect(dead_code, reason = "held, not used")] Vec<UnixDatagram>);

/// Another agent has a device or a network.
#[derive(Debug, thiserror::Error)]
pub enum SingleError {
    /// It runs.
    #[error(
        "another agent on this node has {0}; give each its own --etcd-prefix with a Network and a \
         Backend.VNI of its own, or stop the other one"
    )]
    Taken(String),
    /// The kernel does not tell.
    #[error("find out whether another agent has {what}: {source}")]
    Unknown {
        /// What was asked for.
        what: String,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl Single {
    /// Takes them for this process.
    ///
    /// # Errors
    /// Another process has one.
    pub(super) fn take(network: Ipv4Network, device: Option<&str>) -> Result<Self, SingleError> {
        let device = device.map(|device| format!("the device {device}"));
        let all = [Some(format!("the network {network}")), device];
        all.into_iter().flatten().map(hold).collect::<Result<_, _>>().map(Self)
    }
}

fn hold(what: String) -> Result<UnixDatagram, SingleError> {
    let bound = SocketAddr::from_abstract_name(format!("flannel-ebpf: {what}"))
        .and_then(|name| UnixDatagram::bind_addr(&name));
    bound.map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => SingleError::Taken(what),
        _ => SingleError::Unknown { what, source },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_device_and_network_has_one() {
        let network = |text: &str| text.parse::<Ipv4Network>().unwrap();
        let first = Single::take(network("10.251.0.0/16"), Some("flannel.251")).unwrap();
        let refused = |net: &str, device| {
            Single::take(network(net), device).map(drop).unwrap_err().to_string()
        };
        let text = refused("10.251.0.0/16", Some("flannel.252"));
        assert!(
            text.contains("another agent on this node has the network 10.251.0.0/16"),
            "{text}"
        );
        let text = refused("10.252.0.0/16", Some("flannel.251"));
        assert!(text.contains("the device flannel.251"), "{text}");
        Single::take(network("10.252.0.0/16"), Some("flannel.252")).unwrap();
        drop(first);
        Single::take(network("10.251.0.0/16"), Some("flannel.251")).unwrap();
    }
}
