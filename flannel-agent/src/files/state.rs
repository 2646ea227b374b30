//! What the node remembers across restarts of the agent and of the machine.

use std::io;
use std::path::{Path, PathBuf};

pub use flannel_core::state::{NodeState, ThisRun, Traces, VERSION, parse};

use super::{WriteError, write_atomically};

/// The file in the state directory.
const FILE: &str = "state.json";

/// More than this is not our file, in bytes.
const MAX_SIZE: u64 = 1 << 20;

/// What [`load`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loaded {
    /// The state, if there is one that can be used.
    pub state: Option<NodeState>,
    /// Why a file that is there is not used, for the log: the agent then does
    /// as on its first start.
    pub warning: Option<String>,
}

/// Path of the state file in the state directory.
pub fn path(directory: &Path) -> PathBuf {
    directory.join(FILE)
}

/// Reads the state from the state directory.
pub fn load(directory: &Path) -> Loaded {
    let path = path(directory);
    match read(&path) {
        Ok(state) => Loaded { state, warning: None },
        Err(reason) => {
            let warning = format!("ignoring the saved state in {}: {reason}", path.display());
            Loaded { state: None, warning: Some(warning) }
        }
    }
}

/// Writes the state into the state directory, see [`write_atomically`].
pub fn store(directory: &Path, state: &NodeState) -> Result<(), WriteError> {
    let path = path(directory);
    let state = NodeState { version: VERSION, ..state.clone() };
    let mut text = serde_json::to_vec_pretty(&state).map_err(|error| WriteError {
        path: path.clone(),
        step: "encoding",
        source: error.into(),
    })?;
    text.push(b'\n');
    write_atomically(&path, &text)
}

fn read(path: &Path) -> Result<Option<NodeState>, String> {
    let metadata = match std::fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    if !metadata.is_file() {
        return Err("it is not a file".to_owned());
    }
    if metadata.len() > MAX_SIZE {
        return Err(format!("it has {} bytes, more than any state", metadata.len()));
    }
    let bytes = std::fs::read(path).map_err(|error| error.to_string())?;
    parse(&bytes).map(Some)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::Ipv4Addr;

    use flannel_core::status::Attachment;

    use super::*;

    fn state() -> NodeState {
        NodeState {
            version: VERSION,
            underlay: None,
            public_ip: Ipv4Addr::new(10, 99, 0, 11),
            subnet: "10.5.27.0/24".parse().unwrap(),
            vtep_mac: "72:35:2e:f2:e7:c9".parse().unwrap(),
            device: Some("flannel.1".to_owned()),
            vni: Some(1),
            network: None,
            attach: Some(Attachment::Tcx),
            subnet_file: Some("/run/flannel/subnet.env".into()),
            pin_dir: Some("/sys/fs/bpf/flannel".into()),
            traces: Traces {
                sysctls: BTreeMap::from([(
                    "net.netfilter.nf_conntrack_tcp_be_liberal".to_owned(),
                    "0".to_owned(),
                )]),
                ..Traces::default()
            },
        }
    }

    const GOLDEN: &str = r#"{
  "version": 1,
  "public_ip": "10.99.0.11",
  "subnet": "10.5.27.0/24",
  "vtep_mac": "72:35:2e:f2:e7:c9",
  "device": "flannel.1",
  "vni": 1,
  "attach": "tcx",
  "subnet_file": "/run/flannel/subnet.env",
  "pin_dir": "/sys/fs/bpf/flannel",
  "sysctls": {
    "net.netfilter.nf_conntrack_tcp_be_liberal": "0"
  }
}
"#;

    /// Loads a directory whose state file has these bytes.
    fn loaded(bytes: impl AsRef<[u8]>) -> Loaded {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(path(directory.path()), bytes).unwrap();
        load(directory.path())
    }

    #[test]
    fn the_format_is_stable() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path().join("made");
        store(&directory, &state()).unwrap();
        assert_eq!(std::fs::read_to_string(path(&directory)).unwrap(), GOLDEN);
        assert_eq!(load(&directory), Loaded { state: Some(state()), warning: None });
        assert_eq!(loaded(GOLDEN).state, Some(state()), "files of today are read for ever");
    }

    #[test]
    fn the_written_version_is_ours() {
        let directory = tempfile::tempdir().unwrap();
        store(directory.path(), &NodeState { version: 0, ..state() }).unwrap();
        assert_eq!(load(directory.path()).state.unwrap().version, VERSION);
    }

    #[test]
    fn no_file_is_no_warning() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(load(&directory.path().join("none")), Loaded::default());
    }

    #[test]
    fn absent_options_and_unknown_members_are_fine() {
        let text = r#"{"version":1,"public_ip":"10.99.0.11","subnet":"10.5.27.0/24",
            "vtep_mac":"72:35:2e:f2:e7:c9","device":"flannel.1","vni":1,"later":[]}"#;
        let expected = NodeState {
            attach: None,
            subnet_file: None,
            pin_dir: None,
            traces: Traces::default(),
            ..state()
        };
        assert_eq!(loaded(text), Loaded { state: Some(expected), warning: None });
    }

    #[test]
    fn what_cannot_be_used_is_a_warning() {
        let newer = GOLDEN.replace("\"version\": 1", "\"version\": 2");
        let newer_shape = r#"{"version": 9, "nodes": []}"#;
        for (bytes, reason) in [
            (newer.as_bytes(), "version 2 of a newer agent"),
            (newer_shape.as_bytes(), "version 9 of a newer agent"),
            (b"", "EOF"),
            (b"{\"version\": 1}", "missing field"),
            (b"[]", "expected"),
            (&[0xff, 0xfe, 0], "expected value"),
            (GOLDEN.replace("10.5.27.0/24", "10.5.27.1/24").as_bytes(), "host bits"),
            (GOLDEN.replace("72:35", "01:35").as_bytes(), "not a unicast address"),
            (GOLDEN.replace("72:35", "72-x").as_bytes(), "MAC"),
        ] {
            let found = loaded(bytes);
            assert_eq!(found.state, None, "{reason}");
            let warning = found.warning.unwrap();
            assert!(warning.contains(reason) && warning.contains("state.json"), "{warning}");
        }
    }

    #[test]
    fn every_truncation_is_a_warning() {
        for length in 0..GOLDEN.trim_end().len() {
            let found = loaded(&GOLDEN[..length]);
            assert!(found.state.is_none() && found.warning.is_some(), "{length} bytes");
        }
    }

    #[test]
    fn a_directory_in_its_place_is_no_state() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(path(directory.path())).unwrap();
        assert!(load(directory.path()).warning.is_some());
        let inside = path(directory.path()).join("file");
        std::fs::write(&inside, "").unwrap();
        let error = store(directory.path(), &state()).unwrap_err();
        assert_eq!(error.step, "renaming into place");
        std::fs::remove_file(inside).unwrap();
        store(directory.path(), &state()).unwrap();
        assert_eq!(load(directory.path()).state, Some(state()));
    }
}
