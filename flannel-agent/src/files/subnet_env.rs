//! `subnet.env`: what docker, CNI plugins and scripts read.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;

use ipnetwork::Ipv4Network;

use super::{WriteError, write_atomically};

/// Its contents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubnetEnv {
    /// FLANNEL_NETWORK.
    pub network: Ipv4Network,
    /// FLANNEL_SUBNET, host bits zero (the file has the first host address).
    pub subnet: Ipv4Network,
    /// FLANNEL_MTU in bytes.
    pub mtu: u32,
    /// FLANNEL_IPMASQ.
    pub ip_masq: bool,
}

impl SubnetEnv {
    /// Byte for byte as flannel writes it.
    pub fn text(&self) -> String {
        let gateway = Ipv4Addr::from(u32::from(self.subnet.network()).saturating_add(1));
        format!(
            "FLANNEL_NETWORK={}/{}\nFLANNEL_SUBNET={gateway}/{}\nFLANNEL_MTU={}\nFLANNEL_IPMASQ={}\n",
            self.network.network(),
            self.network.prefix(),
            self.subnet.prefix(),
            self.mtu,
            self.ip_masq
        )
    }
}

/// Writes the file atomically.
///
/// # Errors
/// The step that failed.
pub fn write(path: &Path, env: &SubnetEnv) -> Result<(), WriteError> {
    write_atomically(path, env.text().as_bytes())
}

/// Subnet that an earlier run (flannel's or ours) wrote, host bits zero; `None`
/// if there is none that can be read.
pub fn read_subnet(path: &Path) -> Option<Ipv4Network> {
    let text = fs::read_to_string(path).ok()?;
    let value = text.lines().find_map(|line| line.trim().strip_prefix("FLANNEL_SUBNET="))?;
    let gateway: Ipv4Network = value.trim_matches('"').parse().ok()?;
    Ipv4Network::new(gateway.network(), gateway.prefix()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env() -> SubnetEnv {
        SubnetEnv {
            network: "10.5.0.0/16".parse().unwrap(),
            subnet: "10.5.27.0/24".parse().unwrap(),
            mtu: 1350,
            ip_masq: true,
        }
    }

    #[test]
    fn bytes_are_flannels() {
        assert_eq!(
            env().text(),
            "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.27.1/24\nFLANNEL_MTU=1350\n\
             FLANNEL_IPMASQ=true\n"
        );
    }

    #[test]
    fn the_subnet_reads_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("subnet.env");
        assert_eq!(read_subnet(&path), None);
        write(&path, &env()).unwrap();
        assert_eq!(read_subnet(&path), Some(env().subnet));
        for text in ["", "FLANNEL_SUBNET=", "FLANNEL_SUBNET=10.5.27.1/99\n", "FLANNEL_SUBNET=x\n"] {
            fs::write(&path, text).unwrap();
            assert_eq!(read_subnet(&path), None, "{text:?}");
        }
    }
}
