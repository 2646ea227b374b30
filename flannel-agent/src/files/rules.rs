//! The firewall rules that should be on the node: for the time when no agent runs.

use std::io;
use std::path::{Path, PathBuf};

use flannel_core::firewall::Rules;
use serde::{Deserialize, Serialize};

use super::{WriteError, write_atomically};
use crate::firewall::Mode;

/// What is to be kept, and where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// `--firewall` of the agent.
    pub firewall: Mode,
    /// The rules.
    pub rules: Rules,
}

/// Path of the file in the state directory.
pub fn path(state_dir: &Path) -> PathBuf {
    state_dir.join("rules.json")
}

/// Reads the file; `None` if there is none.
///
/// # Errors
/// It cannot be read, or is not ours.
pub fn load(state_dir: &Path) -> io::Result<Option<Wanted>> {
    match std::fs::read(path(state_dir)) {
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Writes the file, see [`write_atomically`].
///
/// # Errors
/// It cannot be written.
pub fn store(state_dir: &Path, wanted: &Wanted) -> Result<(), WriteError> {
    let path = path(state_dir);
    let encoded = serde_json::to_vec(wanted).map_err(|error| WriteError {
        path: path.clone(),
        step: "encoding",
        source: error.into(),
    });
    write_atomically(&path, &encoded?)
}

/// Removes the file: no rules are kept.
///
/// # Errors
/// It is there and cannot be removed.
pub fn remove(state_dir: &Path) -> Result<(), WriteError> {
    let path = path(state_dir);
    match std::fs::remove_file(&path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(WriteError { path, step: "removing", source })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(load(folder.path()).unwrap(), None);
        remove(folder.path()).unwrap();
        let rules = Rules {
            network: "10.5.0.0/16".parse().unwrap(),
            subnet: "10.5.27.0/24".parse().unwrap(),
            masquerade: true,
            forward: true,
            fully_random: false,
            vxlan_port: 8472,
        };
        let wanted = Wanted { firewall: Mode::Iptables, rules };
        store(folder.path(), &wanted).unwrap();
        assert_eq!(load(folder.path()).unwrap(), Some(wanted));
        std::fs::write(path(folder.path()), "{").unwrap();
        assert!(load(folder.path()).is_err());
        remove(folder.path()).unwrap();
        assert_eq!(load(folder.path()).unwrap(), None);
    }
}
