//! The pin directory: what may be reused of an earlier run, and what not.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use aya::maps::MapInfo;
use flannel_ebpf::abi::{self, ABI_VERSION};
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::BpfError;

/// Where the kernel's convention has the bpf file system.
const BPFFS: &str = "/sys/fs/bpf";

/// Paths below `--pin-dir`.
#[derive(Clone, Debug)]
pub struct PinDir {
    root: PathBuf,
    version: PathBuf,
}

impl PinDir {
    /// The paths of this ABI version; touches nothing.
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned(), version: root.join(format!("v{ABI_VERSION}")) }
    }

    /// Pin of a map.
    pub fn map(&self, name: &str) -> PathBuf {
        self.version.join(name)
    }

    /// Directory of the link pins.
    pub fn links(&self) -> PathBuf {
        self.version.join("links")
    }

    /// Pin of a hook's link.
    pub fn link(&self, ifindex: u32, program: &str) -> PathBuf {
        self.links().join(format!("{ifindex}-{program}"))
    }

    /// Directory of the pins of XDP links.
    pub fn xdp_links(&self) -> PathBuf {
        self.version.join("xdp")
    }

    /// Pin of an interface's XDP link.
    pub fn xdp_link(&self, ifindex: u32) -> PathBuf {
        self.xdp_links().join(ifindex.to_string())
    }

    /// Makes the directories, and mounts the bpf file system where it belongs
    /// if nobody did.
    ///
    /// # Errors
    /// The file system is not a bpf one and cannot be mounted.
    pub fn create(&self) -> Result<(), BpfError> {
        if self.root.starts_with(BPFFS) && !is_bpffs(Path::new(BPFFS)) {
            mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), None::<&str>).map_err(
                |errno| {
                    BpfError::new("mount bpf file system at", BPFFS, &io::Error::from(errno))
                        .with_hint(
                            "mount it beforehand (systemd does so by itself), or give the agent \
                             CAP_SYS_ADMIN",
                        )
                },
            )?;
            tracing::info!(path = BPFFS, "mounted the bpf file system");
        }
        for folder in [self.links(), self.xdp_links()] {
            fs::create_dir_all(&folder)
                .map_err(|error| BpfError::new("create", folder.display().to_string(), &error))?;
        }
        if !is_bpffs(&self.version) {
            return Err(BpfError::plain(
                "use pin directory",
                self.version.display().to_string(),
                "it is not on a bpf file system",
            )
            .with_hint(format!("choose --pin-dir below {BPFFS}, or another bpf mount")));
        }
        Ok(())
    }

    /// Removes the pins of maps that are not what `object` defines, with a flow
    /// table of `flows` entries: a map is reused by name, and neither the kernel
    /// nor aya compares it.
    ///
    /// # Errors
    /// The object cannot be parsed, or a wrong pin cannot be removed.
    pub fn discard_unfit_maps(&self, object: &[u8], flows: u32) -> Result<(), BpfError> {
        let object = aya_obj::Object::parse(object)
            .map_err(|error| BpfError::new("parse object", "flannel-ebpf.bpf.o", &error))?;
        for name in abi::map::ALL {
            let path = self.map(name);
            let Some(wanted) = object.maps.get(name) else {
                return Err(BpfError::plain("find map in object", name, "it is not there"));
            };
            if !path.exists() {
                continue;
            }
            let found = MapInfo::from_pin(&path);
            let unfit = match &found {
                Ok(info) => {
                    let entries =
                        if name == abi::map::FLOWS4 { flows } else { wanted.max_entries() };
                    differs(info, wanted, entries)
                }
                Err(error) => Some(error.to_string()),
            };
            if let Some(why) = unfit {
                tracing::warn!(map = name, path = %path.display(), why, "not reusing a pinned map");
                remove(&path)?;
            }
        }
        Ok(())
    }

    /// Link pins that are there: path, interface index and program name.
    pub fn pinned_links(&self) -> Vec<(PathBuf, u32, String)> {
        let Ok(entries) = fs::read_dir(self.links()) else { return Vec::new() };
        entries
            .flatten()
            .filter_map(|entry| {
                let name = entry.file_name().into_string().ok()?;
                let (ifindex, program) = name.split_once('-')?;
                Some((entry.path(), ifindex.parse().ok()?, program.to_owned()))
            })
            .collect()
    }

    /// Removes the directories of other ABI versions: their programs have been
    /// replaced by ours.
    ///
    /// # Errors
    /// A pin cannot be removed.
    pub fn remove_other_versions(&self) -> Result<Vec<String>, BpfError> {
        self.remove_where(|path| path != self.version)
    }

    /// Removes everything below `--pin-dir`; returns what was there.
    ///
    /// # Errors
    /// A pin cannot be removed.
    pub fn remove_all(&self) -> Result<Vec<String>, BpfError> {
        let removed = self.remove_where(|_| true)?;
        match fs::remove_dir(&self.root) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(BpfError::new("remove", self.root.display().to_string(), &error))
            }
            _ => Ok(removed),
        }
    }

    fn remove_where(&self, wanted: impl Fn(&Path) -> bool) -> Result<Vec<String>, BpfError> {
        let mut removed = Vec::new();
        let Ok(entries) = fs::read_dir(&self.root) else { return Ok(removed) };
        for path in entries.flatten().map(|entry| entry.path()) {
            let version = path.file_name().and_then(|name| name.to_str()).is_some_and(|name| {
                name.strip_prefix('v').is_some_and(|number| number.parse::<u32>().is_ok())
            });
            if version && wanted(&path) {
                // Links first: the hooks fall silent before their maps go; and
                // XDP's before those that take over from it.
                for folder in [path.join("xdp"), path.join("links"), path] {
                    remove_folder(&folder, &mut removed)?;
                }
            }
        }
        Ok(removed)
    }
}

fn remove_folder(folder: &Path, removed: &mut Vec<String>) -> Result<(), BpfError> {
    let Ok(entries) = fs::read_dir(folder) else { return Ok(()) };
    for path in entries.flatten().map(|entry| entry.path()) {
        remove(&path)?;
        removed.push(path.display().to_string());
    }
    fs::remove_dir(folder)
        .map_err(|error| BpfError::new("remove", folder.display().to_string(), &error))
}

/// Removes a pin; one that has gone already is no error.
pub(super) fn remove(path: &Path) -> Result<(), BpfError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(BpfError::new("unpin", path.display().to_string(), &error))
        }
        _ => Ok(()),
    }
}

fn is_bpffs(path: &Path) -> bool {
    statfs(path).is_ok_and(|stat| stat.filesystem_type() == BPF_FS_MAGIC)
}

fn differs(found: &MapInfo, wanted: &aya_obj::Map, entries: u32) -> Option<String> {
    let is = [
        ("type", found.map_type().map_or(0, |kind| kind as u32), wanted.map_type()),
        ("key size", found.key_size(), wanted.key_size()),
        ("value size", found.value_size(), wanted.value_size()),
        ("entries", found.max_entries(), entries),
        ("flags", found.map_flags(), wanted.map_flags()),
    ];
    let (what, is, should) = is.into_iter().find(|(_, is, should)| is != should)?;
    Some(format!("its {what} is {is}, ours {should}"))
}
