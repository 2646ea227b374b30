//! One agent for a device, an overlay network and a pin directory on a node.
//!
//! Two agents with directories of their own do not meet there. They would meet at
//! the device, and each would undo what the other does. Programs of two agents with
//! one pin directory would share their maps, or one would run without pins.

use std::fmt;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};

use ipnetwork::Ipv4Network;

/// Names that this process holds, as abstract sockets: they belong to the network
/// namespace, as devices do, and go with the process.
#[derive(Debug)]
pub(super) struct Single(#[expect(dead_code, reason = "held, not used")] Vec<UnixDatagram>);

/// What only one agent on a node can have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Thing {
    /// An overlay network.
    Network(Ipv4Network),
    /// A device.
    Device(String),
    /// `--pin-dir`, as the file system has it.
    Pins(PathBuf),
}

impl fmt::Display for Thing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network(network) => write!(f, "the network {network}"),
            Self::Device(device) => write!(f, "the device {device}"),
            Self::Pins(path) => write!(f, "the pin directory {}", path.display()),
        }
    }
}

impl Thing {
    /// The name of the socket that stands for it. Names of abstract sockets are short,
    /// and paths are not: of a long one its end counts.
    fn name(&self) -> String {
        let text = format!("flannel-ebpf: {self}");
        let end = text.len().saturating_sub(NAME);
        let cut = (end..text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text[cut..].to_owned()
    }

    fn hint(&self) -> &'static str {
        match self {
            Self::Pins(_) => {
                "give each agent a --pin-dir, a --state-dir and a --subnet-file of its own"
            }
            Self::Network(_) | Self::Device(_) => {
                "give each its own --etcd-prefix with a Network and a Backend.VNI of its own"
            }
        }
    }
}

/// Bytes of an abstract socket's name (`sun_path` without its first byte).
const NAME: usize = 107;

/// Another agent has a device, a network or a pin directory.
#[derive(Debug, thiserror::Error)]
pub enum SingleError {
    /// It runs.
    #[error("another agent on this node has {}; {}, or stop the other one", .0, .0.hint())]
    Taken(Thing),
    /// The kernel does not tell.
    #[error("look for another agent that has {what}: {source}")]
    Unknown {
        /// What was asked for.
        what: Thing,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl Single {
    /// Takes them for this process. An agent without programs has no pins.
    ///
    /// # Errors
    /// Another process has one.
    pub(super) fn take(
        network: Ipv4Network,
        device: Option<&str>,
        pin_dir: Option<&Path>,
    ) -> Result<Self, SingleError> {
        let device = device.map(|device| Thing::Device(device.to_owned()));
        let pins = pin_dir.map(|path| Thing::Pins(real(path)));
        let all = [Some(Thing::Network(network)), device, pins];
        all.into_iter().flatten().map(hold).collect::<Result<_, _>>().map(Self)
    }
}

/// The path without symbolic links and dots. The directory may have to be made yet.
fn real(path: &Path) -> PathBuf {
    if let Ok(path) = path.canonicalize() {
        return path;
    }
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) if !parent.as_os_str().is_empty() => real(parent).join(name),
        _ => std::path::absolute(path).unwrap_or_else(|_| path.to_owned()),
    }
}

fn hold(what: Thing) -> Result<UnixDatagram, SingleError> {
    let bound =
        SocketAddr::from_abstract_name(what.name()).and_then(|name| UnixDatagram::bind_addr(&name));
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
        let first = Single::take(network("10.251.0.0/16"), Some("flannel.251"), None).unwrap();
        let refused = |net: &str, device| {
            Single::take(network(net), device, None).map(drop).unwrap_err().to_string()
        };
        let text = refused("10.251.0.0/16", Some("flannel.252"));
        assert!(
            text.contains("another agent on this node has the network 10.251.0.0/16"),
            "{text}"
        );
        let text = refused("10.252.0.0/16", Some("flannel.251"));
        assert!(text.contains("the device flannel.251"), "{text}");
        Single::take(network("10.252.0.0/16"), Some("flannel.252"), None).unwrap();
        drop(first);
        Single::take(network("10.251.0.0/16"), Some("flannel.251"), None).unwrap();
    }

    #[test]
    fn each_pin_directory_has_one_whatever_it_is_called() {
        let network = |number: u8| Ipv4Network::new([10, number, 0, 0].into(), 16).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let pins = folder.path().join("pins");
        let take = |number, path: &Path| Single::take(network(number), None, Some(path));
        let first = take(241, &pins).unwrap();
        std::fs::create_dir(&pins).unwrap();
        let alias = folder.path().join("alias");
        std::os::unix::fs::symlink(&pins, &alias).unwrap();
        for same in [&pins, &alias, &folder.path().join("pins/../pins")] {
            let text = take(242, same).map(drop).unwrap_err().to_string();
            assert!(text.contains("has the pin directory") && text.contains("--pin-dir"), "{text}");
        }
        take(242, &folder.path().join("others")).unwrap();
        drop(first);
        take(242, &pins).unwrap();
        // Longer than a socket's name.
        let long = |end: &str| folder.path().join("p".repeat(120)).join(end);
        let _first = take(243, &long("a")).unwrap();
        assert!(take(244, &long("a")).is_err());
        take(244, &long("b")).unwrap();
    }
}
