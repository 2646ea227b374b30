//! What the node remembers across restarts, as it stands in `state.json`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use ipnetwork::Ipv4Network;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::checksum::TunnelChecksum;
use crate::firewall::upstream::Place;
use crate::mac::MacAddr;
use crate::status::Attachment;

/// Version of the file's format that this program writes. A file of a higher
/// one is not read.
pub const VERSION: u32 = 1;

/// The contents of `state.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NodeState {
    /// Version of the format; the agent writes the newest.
    pub version: u32,
    /// The PublicIP of the lease.
    pub public_ip: Ipv4Addr,
    /// The flags that it was chosen by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub underlay: Option<String>,
    /// The node's subnet, host bits zero.
    #[schemars(with = "String")]
    pub subnet: Ipv4Network,
    /// MAC of the VTEP.
    pub vtep_mac: MacAddr,
    /// Name of the VXLAN device, with the backend that has one.
    #[serde(default)]
    pub device: Option<String>,
    /// VXLAN network identifier, with the backend that has one.
    #[serde(default)]
    pub vni: Option<u32>,
    /// The overlay network; absent in files of early versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub network: Option<Ipv4Network>,
    /// How the programs were attached; `None` on the kernel path.
    #[serde(default)]
    pub attach: Option<Attachment>,
    /// Where subnet.env was written, absolute.
    #[serde(default)]
    pub subnet_file: Option<PathBuf>,
    /// Where maps and links were pinned, absolute.
    #[serde(default)]
    pub pin_dir: Option<PathBuf>,
    /// What is still to be undone.
    #[serde(flatten)]
    pub traces: Traces,
}

/// What was changed on the node, or left on it, and is still to be undone: by this run,
/// the next start or `cleanup`. It is written down before the change, and goes when the
/// change is undone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Traces {
    /// Sysctls that the agent changed, with the values they had before.
    #[serde(default)]
    pub sysctls: BTreeMap<String, String>,
    /// Who makes the checksums of what the device sends, if we have changed it.
    #[serde(default, skip_serializing_if = "TunnelChecksum::is_device")]
    pub tunnel_checksum: TunnelChecksum,
    /// Devices by another network config.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub former_devices: BTreeSet<String>,
    /// Other overlay networks, whose routes may be there.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    #[schemars(with = "BTreeSet<String>")]
    pub former_networks: BTreeSet<Ipv4Network>,
    /// What the node was in another network, or with another subnet: firewall rules for
    /// it may be there.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub former_places: BTreeSet<Place>,
    /// Where else programs may be pinned, absolute.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub former_pin_dirs: BTreeSet<PathBuf>,
    /// flannel ran here before us, and routes without our mark may be its own.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unmarked_routes: bool,
}

/// What a run is, as far as earlier ones may have been something else.
#[derive(Clone, Copy, Debug)]
pub struct ThisRun<'a> {
    /// Network and subnet.
    pub node: Place,
    /// Name of the overlay's device, with a backend that has one.
    pub device: Option<&'a str>,
    /// `--pin-dir`, absolute.
    pub pin_dir: &'a Path,
    /// `--tunnel-checksum`.
    pub tunnel_checksum: TunnelChecksum,
}

impl Traces {
    /// What a run finds, by the state file and the node as subnet.env has it. Nothing
    /// that an earlier run had not undone is forgotten.
    pub fn found(before: Option<&NodeState>, env: Option<Place>, present: ThisRun<'_>) -> Self {
        let mut traces = before.map(|state| state.traces.clone()).unwrap_or_default();
        traces.unmarked_routes |= before.is_none() && env.is_some();
        if present.tunnel_checksum == TunnelChecksum::Kernel {
            traces.tunnel_checksum = TunnelChecksum::Kernel;
        }
        let was = before.and_then(NodeState::node);
        let nodes = || was.into_iter().chain(env);
        traces.former_places.extend(nodes());
        traces.former_places.remove(&present.node);
        traces.former_networks.extend(nodes().map(|node| node.network));
        traces.former_networks.remove(&present.node.network);
        traces.former_devices.extend(before.and_then(|state| state.device.clone()));
        traces.former_devices.retain(|device| Some(device.as_str()) != present.device);
        traces.former_pin_dirs.extend(before.and_then(|state| state.pin_dir.clone()));
        traces.former_pin_dirs.remove(present.pin_dir);
        traces
    }
}

impl NodeState {
    /// Network and subnet, if both are known.
    pub fn node(&self) -> Option<Place> {
        self.network.map(|network| Place { network, subnet: self.subnet })
    }

    /// Overlay networks that may have traces of us.
    pub fn networks(&self) -> BTreeSet<Ipv4Network> {
        let nodes = self.traces.former_places.iter().map(|node| node.network);
        let former = self.traces.former_networks.iter().copied().chain(nodes);
        self.network.into_iter().chain(former).collect()
    }
}

/// Read first, so that a newer format is told from a broken file.
#[derive(Deserialize)]
struct Version {
    version: u32,
}

/// Reads what the file holds.
///
/// # Errors
/// Why it cannot be used.
pub fn parse(bytes: &[u8]) -> Result<NodeState, String> {
    let Version { version } = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    if version > VERSION {
        return Err(format!(
            "its format is version {version} of a newer agent, this one knows {VERSION}"
        ));
    }
    let state: NodeState = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    if state.subnet.ip() != state.subnet.network() {
        return Err(format!("its subnet {} has host bits", state.subnet));
    }
    if !state.vtep_mac.is_unicast() {
        return Err(format!("its VTEP MAC {} is not a unicast address", state.vtep_mac));
    }
    Ok(state)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(network: &str, subnet: &str) -> Place {
        Place { network: network.parse().unwrap(), subnet: subnet.parse().unwrap() }
    }

    fn present() -> ThisRun<'static> {
        ThisRun {
            node: node("10.5.0.0/16", "10.5.1.0/24"),
            device: Some("flannel.1"),
            pin_dir: Path::new("/pins"),
            tunnel_checksum: TunnelChecksum::Device,
        }
    }

    fn before() -> NodeState {
        let text = br#"{"version":1,"public_ip":"192.0.2.1","subnet":"10.5.1.0/24","vni":1,
            "vtep_mac":"02:00:00:00:00:01","device":"flannel.1","network":"10.5.0.0/16",
            "pin_dir":"/pins"}"#;
        parse(text).unwrap()
    }

    #[test]
    fn a_run_like_the_last_one_finds_nothing() {
        let none = Traces::default();
        assert_eq!(Traces::found(None, None, present()), none);
        let same = Some(present().node);
        assert_eq!(Traces::found(Some(&before()), same, present()), none);
    }

    #[test]
    fn what_is_another_now_is_found_until_it_is_undone() {
        let other = ThisRun {
            node: node("10.6.0.0/16", "10.6.1.0/24"),
            device: Some("flannel.7"),
            pin_dir: Path::new("/elsewhere"),
            tunnel_checksum: TunnelChecksum::Kernel,
        };
        let first = Traces::found(Some(&before()), None, other);
        assert_eq!(first.former_places, [present().node].into());
        assert_eq!(first.former_networks, [present().node.network].into());
        assert_eq!(first.former_devices, ["flannel.1".to_owned()].into());
        assert_eq!(first.former_pin_dirs, [PathBuf::from("/pins")].into());
        assert_eq!(first.tunnel_checksum, TunnelChecksum::Kernel);
        assert!(!first.unmarked_routes);
        // The run before undid nothing; what was changed then, is to be undone still.
        let ended = NodeState {
            network: Some(other.node.network),
            subnet: other.node.subnet,
            device: Some("flannel.7".to_owned()),
            pin_dir: Some("/elsewhere".into()),
            traces: first.clone(),
            ..before()
        };
        let again = ThisRun { tunnel_checksum: TunnelChecksum::Device, ..other };
        assert_eq!(Traces::found(Some(&ended), None, again), first);
        // And back: now it is the other way round.
        let back = Traces::found(Some(&ended), None, present());
        assert_eq!(back.former_places, [other.node].into());
        assert_eq!(back.former_devices, ["flannel.7".to_owned()].into());
        assert_eq!(back.former_pin_dirs, [PathBuf::from("/elsewhere")].into());
        let networks = [other.node.network, present().node.network];
        assert_eq!(ended.networks(), networks.into());
    }

    #[test]
    fn flannels_routes_are_taken_up_until_that_is_done() {
        let env = node("10.5.0.0/16", "10.5.9.0/24");
        let first = Traces::found(None, Some(env), present());
        assert!(first.unmarked_routes);
        assert_eq!(first.former_places, [env].into());
        // subnet.env is ours by then.
        let killed = NodeState { traces: first.clone(), ..before() };
        assert_eq!(Traces::found(Some(&killed), Some(present().node), present()), first);
        assert!(!Traces::found(Some(&before()), Some(env), present()).unmarked_routes);
    }

    #[test]
    fn traces_stand_in_the_file_beside_the_rest() {
        let traces = Traces::found(None, Some(node("10.6.0.0/16", "10.6.1.0/24")), present());
        let state = NodeState { traces, ..before() };
        let text = serde_json::to_string(&state).unwrap();
        let former = r#""former_places":[{"network":"10.6.0.0/16","subnet":"10.6.1.0/24"}]"#;
        assert!(text.contains(former), "{text}");
        assert_eq!(parse(text.as_bytes()), Ok(state));
    }
}
