//! `subnet.env`: what docker, the CNI plugin and scripts know of the node's
//! subnet.

use std::net::Ipv4Addr;
use std::path::Path;

use ipnetwork::Ipv4Network;

use super::{WriteError, write_atomically};

/// More than this is not a `subnet.env`, in bytes.
const MAX_SIZE: u64 = 64 * 1024;

/// The contents of `subnet.env`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubnetEnv {
    /// The overlay network (`FLANNEL_NETWORK`).
    pub network: Ipv4Network,
    /// The node's subnet, host bits zero. The file has the subnet's first host
    /// address in its place (`FLANNEL_SUBNET`).
    pub subnet: Ipv4Network,
    /// MTU of the overlay in bytes (`FLANNEL_MTU`).
    pub mtu: u32,
    /// Whether we masquerade (`FLANNEL_IPMASQ`).
    pub ip_masq: bool,
}

impl SubnetEnv {
    /// The file's text, byte for byte as flannel writes it.
    pub fn to_text(&self) -> String {
        let first_host = Ipv4Addr::from(u32::from(self.subnet.network()).wrapping_add(1));
        format!(
            "FLANNEL_NETWORK={}/{}\nFLANNEL_SUBNET={first_host}/{}\nFLANNEL_MTU={}\n\
             FLANNEL_IPMASQ={}\n",
            self.network.network(),
            self.network.prefix(),
            self.subnet.prefix(),
            self.mtu,
            self.ip_masq
        )
    }

    /// Reads the file's text. Unknown lines are skipped, of lines with one key
    /// the last valid one counts, values may be quoted and lines may begin
    /// with `export`. `None` without a usable network and subnet; the MTU and
    /// the masquerading are 0 and false if they cannot be read.
    pub fn from_text(text: &str) -> Option<Self> {
        let (mut network, mut subnet, mut mtu, mut ip_masq) = (None, None, 0, false);
        for line in text.lines() {
            let line = line.trim();
            let line = line.strip_prefix("export ").unwrap_or(line);
            let Some((key, value)) = line.split_once('=') else {
                continue;
            };
            let value = unquoted(value.trim());
            match key.trim() {
                "FLANNEL_NETWORK" => network = masked(value).or(network),
                "FLANNEL_SUBNET" => subnet = masked(value).or(subnet),
                "FLANNEL_MTU" => mtu = value.parse().unwrap_or(mtu),
                "FLANNEL_IPMASQ" => ip_masq = value.parse().unwrap_or(ip_masq),
                _ => {}
            }
        }
        Some(Self { network: network?, subnet: subnet?, mtu, ip_masq })
    }
}

/// Writes `subnet.env`, see [`write_atomically`].
pub fn write(path: &Path, env: &SubnetEnv) -> Result<(), WriteError> {
    write_atomically(path, env.to_text().as_bytes())
}

/// Reads `subnet.env`; `None` if it is missing or of no use, which is the same
/// to its only reader: there is no previous subnet then.
pub fn read(path: &Path) -> Option<SubnetEnv> {
    let metadata = std::fs::metadata(path).ok()?;
    if !metadata.is_file() || metadata.len() > MAX_SIZE {
        return None;
    }
    let bytes = std::fs::read(path).ok()?;
    SubnetEnv::from_text(&String::from_utf8_lossy(&bytes))
}

fn unquoted(value: &str) -> &str {
    ['"', '\'']
        .iter()
        .find_map(|quote| value.strip_prefix(*quote)?.strip_suffix(*quote))
        .unwrap_or(value)
}

/// A network in CIDR notation with its host bits cleared. A prefix length is
/// required: without one, nothing says how large the subnet was.
fn masked(value: &str) -> Option<Ipv4Network> {
    let (address, prefix) = value.split_once('/')?;
    let network = Ipv4Network::new(address.parse().ok()?, prefix.parse().ok()?).ok()?;
    Ipv4Network::new(network.network(), network.prefix()).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn net(text: &str) -> Ipv4Network {
        text.parse().unwrap()
    }

    fn env() -> SubnetEnv {
        SubnetEnv {
            network: net("10.5.0.0/16"),
            subnet: net("10.5.27.0/24"),
            mtu: 1350,
            ip_masq: true,
        }
    }

    const GOLDEN: &str = "FLANNEL_NETWORK=10.5.0.0/16\n\
                          FLANNEL_SUBNET=10.5.27.1/24\n\
                          FLANNEL_MTU=1350\n\
                          FLANNEL_IPMASQ=true\n";

    #[test]
    fn the_bytes_are_flannels() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("flannel/subnet.env");
        write(&path, &env()).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), GOLDEN.as_bytes());
        assert_eq!(read(&path), Some(env()));
    }

    #[test]
    fn every_backend_has_its_golden_file() {
        for (name, mtu, ip_masq) in [
            ("vxlan", 1450, false),
            ("vxlan-ip-masq", 1450, true),
            ("host-gw", 1500, false),
            ("udp", 1472, false),
        ] {
            let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden");
            let golden = std::fs::read_to_string(format!("{directory}/subnet.env.{name}")).unwrap();
            assert_eq!(SubnetEnv { mtu, ip_masq, ..env() }.to_text(), golden, "{name}");
        }
    }

    #[test]
    fn host_bits_do_not_reach_the_file() {
        let odd = SubnetEnv {
            network: net("10.5.3.4/16"),
            subnet: net("10.5.27.99/24"),
            ip_masq: false,
            ..env()
        };
        assert_eq!(odd.to_text(), GOLDEN.replace("true", "false"));
    }

    #[test]
    fn tolerant_of_what_people_make_of_it() {
        for text in [
            GOLDEN.replace('\n', "\r\n"),
            GOLDEN.trim_end().to_owned(),
            format!("# mine\n\n{GOLDEN}FLANNEL_IPV6_SUBNET=fd00::1/64\ngarbage\n=\n"),
            GOLDEN.replace("10.5.27.1/24", "\"10.5.27.1/24\"").replace("1350", "'1350'"),
            GOLDEN.replace("FLANNEL_", "export FLANNEL_"),
            format!("FLANNEL_SUBNET=10.5.1.1/24\n{GOLDEN}FLANNEL_SUBNET=nonsense\n"),
            GOLDEN.replace("27.1/24", "27.0/24"),
        ] {
            assert_eq!(SubnetEnv::from_text(&text), Some(env()), "{text}");
        }
    }

    #[test]
    fn without_network_or_subnet_there_is_nothing() {
        for text in [
            "",
            "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_MTU=1350\n",
            "FLANNEL_SUBNET=10.5.27.1/24\n",
            "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.27.1/33\n",
            "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.27.1\n",
        ] {
            assert_eq!(SubnetEnv::from_text(text), None, "{text}");
        }
        let bare = "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.27.1/24\nFLANNEL_MTU=x\n";
        assert_eq!(SubnetEnv::from_text(bare), Some(SubnetEnv { mtu: 0, ip_masq: false, ..env() }));
    }

    #[test]
    fn a_missing_or_strange_file_is_none() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(read(&directory.path().join("none")), None);
        assert_eq!(read(directory.path()), None);
        let path = directory.path().join("binary");
        std::fs::write(&path, [0xff, 0, b'\n']).unwrap();
        assert_eq!(read(&path), None);
        let large = GOLDEN.repeat(4000);
        std::fs::write(&path, large).unwrap();
        assert_eq!(read(&path), None);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            address: u32,
            prefix in 0u8..=30,
            bits in 0u8..=30,
            mtu: u32,
            ip_masq: bool,
        ) {
            let masked = |prefix| {
                let network = Ipv4Network::new(address.into(), prefix).unwrap();
                Ipv4Network::new(network.network(), prefix).unwrap()
            };
            let env = SubnetEnv {
                network: masked(prefix),
                subnet: masked(prefix.max(bits)),
                mtu,
                ip_masq,
            };
            prop_assert_eq!(SubnetEnv::from_text(&env.to_text()), Some(env));
        }

        #[test]
        fn any_text_is_survived(text: String) {
            let _ = SubnetEnv::from_text(&text);
            let _ = SubnetEnv::from_text(&format!("FLANNEL_NETWORK={text}\nFLANNEL_SUBNET={text}"));
        }
    }
}
