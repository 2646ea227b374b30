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

use crate::kernel::unix_sockets::{self, Named};

/// Names that this process holds, as abstract sockets: they belong to the network
/// namespace, as devices do, and go with the process. Anybody may hold such a name, so it
/// counts only if root or our own user does.
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
    /// The name of the socket that stands for it, or another one. Names of abstract
    /// sockets are short, and paths are not: of a long one its end counts.
    fn name(&self, other: Option<u32>) -> String {
        let text = match other {
            None => format!("flannel-ebpf: {self}"),
            Some(number) => format!("flannel-ebpf: {self}{OTHER}{number}"),
        };
        let end = text.len().saturating_sub(NAME);
        let cut = (end..text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text[cut..].to_owned()
    }

    /// Whether this is one of its names.
    fn has_name(&self, name: &str) -> bool {
        let number = name.rsplit_once(OTHER).and_then(|(_, number)| number.parse().ok());
        name == self.name(None) || number.is_some_and(|number| name == self.name(Some(number)))
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

/// What stands between a thing and the number of another name.
const OTHER: &str = " #";

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

/// Holds a name of `what`. Anybody may take a name, and only what an agent holds counts:
/// where another user has it, it is another that only we can know.
fn hold(what: Thing) -> Result<UnixDatagram, SingleError> {
    let (socket, told) = match bind(&what.name(None)) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            // Where the kernel does not tell whose it is, it is an agent's.
            let Ok(told) = unix_sockets::abstract_names() else {
                return Err(SingleError::Taken(what));
            };
            if told.iter().any(|named| is_agents(named, &what)) {
                return Err(SingleError::Taken(what));
            }
            tracing::warn!(%what, "another user holds the name by which agents know each other; another name is used");
            (bind(&what.name(Some(rand::random()))), unix_sockets::abstract_names())
        }
        bound => (bound, unix_sockets::abstract_names()),
    };
    let failed = |source| SingleError::Unknown { what: what.clone(), source };
    let socket = socket.map_err(failed)?;
    let own = rustix::fs::fstat(&socket).map_err(|error| failed(error.into()))?.st_ino as u32;
    let told = told.inspect_err(|error| tracing::debug!(%error, "unix sockets not listed"));
    let other = |named: &Named| named.inode != own && is_agents(named, &what);
    match told.is_ok_and(|told| told.iter().any(other)) {
        true => Err(SingleError::Taken(what)),
        false => Ok(socket),
    }
}

fn bind(name: &str) -> io::Result<UnixDatagram> {
    UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(name)?)
}

/// Whether a socket is an agent's that has this: a name of it, of root or our own user.
fn is_agents(named: &Named, what: &Thing) -> bool {
    let agents = |uid| uid == 0 || uid == nix::unistd::geteuid().as_raw();
    named.uid.is_none_or(agents)
        && std::str::from_utf8(&named.name).is_ok_and(|name| what.has_name(name))
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

    /// Holds the name of a network as another user.
    fn squatted(network: Ipv4Network) -> UnixDatagram {
        // A thread has a user of its own for what it makes.
        std::thread::spawn(move || {
            nix::unistd::setfsuid(nix::unistd::Uid::from_raw(65534));
            bind(&Thing::Network(network).name(None)).unwrap()
        })
        .join()
        .unwrap()
    }

    #[test]
    fn another_user_who_holds_a_name_keeps_no_agent_out_and_lets_no_second_in() {
        let network: Ipv4Network = "10.239.0.0/16".parse().unwrap();
        let take = || Single::take(network, None, None);
        let others = squatted(network);
        let first = take().unwrap();
        assert!(matches!(take(), Err(SingleError::Taken(_))));
        drop(others);
        assert!(matches!(take(), Err(SingleError::Taken(_))), "its first name is free");
        drop(first);
        drop(take().unwrap());
        let _others = squatted(network);
        take().unwrap();
    }

    #[test]
    fn an_earlier_version_of_the_agent_counts() {
        let thing = Thing::Network("10.238.0.0/16".parse().unwrap());
        let _runs = bind("flannel-ebpf: the network 10.238.0.0/16").unwrap();
        assert!(matches!(hold(thing), Err(SingleError::Taken(_))));
    }

    #[test]
    fn other_names_of_a_thing_are_known() {
        let short = Thing::Device("flannel.1".to_owned());
        let long = Thing::Pins(PathBuf::from(format!("/{}", "é".repeat(90))));
        for thing in [&short, &long] {
            for number in [None, Some(0), Some(u32::MAX)] {
                assert!(thing.has_name(&thing.name(number)), "{thing} {number:?}");
                assert!(thing.name(number).len() <= NAME);
            }
        }
        assert!(!short.has_name("flannel-ebpf: the device flannel.12"));
        assert!(!short.has_name("flannel-ebpf: the device flannel.1 #x"));
    }
}
