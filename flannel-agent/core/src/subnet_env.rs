//! The text of `subnet.env`.

use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;

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
