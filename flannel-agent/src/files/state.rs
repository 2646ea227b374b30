//! The state file: what a node has to remember of itself to come back as the
//! same node, and what `cleanup` has to know.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use ipnetwork::Ipv4Network;
use serde::{Deserialize, Serialize};

use super::{WriteError, write_atomically};
use crate::mac::MacAddr;

/// Version of the file's form.
pub const VERSION: u32 = 1;

/// The file's contents.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeState {
    /// [`VERSION`].
    pub version: u32,
    /// What peers sent to.
    pub public_ip: Ipv4Addr,
    /// Our subnet.
    pub subnet: Ipv4Network,
    /// MAC of our VTEP.
    pub vtep_mac: MacAddr,
    /// Name of the VXLAN device.
    pub device: String,
    /// VXLAN network identifier.
    pub vni: u32,
    /// `tcx` or `clsact`, if programs were attached.
    pub attach: Option<String>,
    /// Sysctls that the agent changed, with the values before.
    #[serde(default)]
    pub sysctls: BTreeMap<String, String>,
}

/// What was found.
#[derive(Debug, Default)]
pub struct Loaded {
    /// The state, if there is one that can be read.
    pub state: Option<NodeState>,
    /// Why the file that is there is not used.
    pub warning: Option<String>,
}

/// Path of the state file.
pub fn path(state_dir: &Path) -> PathBuf {
    state_dir.join("state.json")
}

/// Reads the state file. A file that cannot be read is no failure: the node
/// then finds its lease by its address.
pub fn load(state_dir: &Path) -> Loaded {
    let path = path(state_dir);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Loaded::default(),
        Err(error) => return unusable(&path, &error),
    };
    match serde_json::from_str::<NodeState>(&text) {
        Ok(state) if state.version == VERSION => Loaded { state: Some(state), warning: None },
        Ok(state) => unusable(&path, &format!("its version is {}, ours {VERSION}", state.version)),
        Err(error) => unusable(&path, &error),
    }
}

fn unusable(path: &Path, why: &dyn std::fmt::Display) -> Loaded {
    Loaded { state: None, warning: Some(format!("{}: {why}", path.display())) }
}

/// Writes the state file atomically.
///
/// # Errors
/// The step that failed.
pub fn store(state_dir: &Path, state: &NodeState) -> Result<(), WriteError> {
    let mut text = serde_json::to_vec_pretty(state).map_err(|error| WriteError {
        call: "encode",
        path: path(state_dir),
        source: error.into(),
    })?;
    text.push(b'\n');
    write_atomically(&path(state_dir), &text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> NodeState {
        NodeState {
            version: VERSION,
            public_ip: Ipv4Addr::new(192, 0, 2, 1),
            subnet: "10.5.1.0/24".parse().unwrap(),
            vtep_mac: MacAddr([2, 0, 0, 0, 0, 1]),
            device: "flannel.1".to_owned(),
            vni: 1,
            attach: Some("tcx".to_owned()),
            sysctls: BTreeMap::from([("net.a".to_owned(), "0".to_owned())]),
        }
    }

    #[test]
    fn reads_back_what_was_written() {
        let folder = tempfile::tempdir().unwrap();
        assert!(load(folder.path()).state.is_none());
        store(folder.path(), &state()).unwrap();
        let loaded = load(folder.path());
        assert_eq!(loaded.state, Some(state()));
        assert_eq!(loaded.warning, None);
    }

    #[test]
    fn a_broken_or_foreign_file_is_a_warning() {
        let folder = tempfile::tempdir().unwrap();
        for text in ["", "{", "{\"version\":1}"] {
            fs::write(path(folder.path()), text).unwrap();
            let loaded = load(folder.path());
            assert!(loaded.state.is_none());
            assert!(loaded.warning.unwrap().contains("state.json"), "{text:?}");
        }
        let newer = NodeState { version: VERSION + 1, ..state() };
        store(folder.path(), &newer).unwrap();
        assert!(load(folder.path()).warning.unwrap().contains("version"));
    }
}
