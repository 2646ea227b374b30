//! The pin directory: what may be reused of an earlier run, and what not.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use aya::maps::{MapData, MapInfo};
use flannel_ebpf::abi::{self, ABI_VERSION};
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::owner::{self, Owner, Ownership};
use super::pinned::{LinkPin, entries, links_in, remove, remove_version};
use super::{BpfError, census, flow_table, grace, peer_stats, sys};
use crate::files::watched::WatchedDirectories;

/// Where the kernel's convention has the bpf file system.
const BPFFS: &str = "/sys/fs/bpf";

/// Paths below `--pin-dir`.
#[derive(Clone, Debug)]
pub struct PinDir {
    root: PathBuf,
    version: PathBuf,
    news: Arc<News>,
}

/// Whether something has happened to the pins.
#[derive(Debug, Default)]
struct News {
    directories: Mutex<WatchedDirectories>,
    none: AtomicBool,
}

impl PinDir {
    /// The paths of this ABI version; touches nothing.
    pub fn new(root: &Path) -> Self {
        let version = root.join(format!("v{ABI_VERSION}"));
        Self { root: root.to_owned(), version, news: Arc::default() }
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

    /// Says that grace periods are short until somebody restores them.
    pub(super) fn expedited(&self) -> PathBuf {
        self.version.join(grace::RECORD)
    }

    /// Directory of all pins of this ABI version.
    pub(super) fn version(&self) -> &Path {
        &self.version
    }

    /// Makes the directories and takes them for this process. Mounts the bpf
    /// file system where it belongs if nobody did.
    ///
    /// # Errors
    /// The file system is not a bpf one and cannot be mounted; or the directory
    /// is in use by another agent or network namespace.
    pub fn create(&self) -> Result<Ownership, BpfError> {
        self.mount()?;
        make(&self.root)?;
        if !is_bpffs(&self.root) {
            return Err(BpfError::plain(
                "use pin directory",
                self.root.display().to_string(),
                "it is not on a bpf file system",
            )
            .with_hint(format!("choose --pin-dir below {BPFFS}, or another bpf mount")));
        }
        let claim = owner::claim(&self.root)?;
        for version in self.versions() {
            // Whosever it is: it runs no longer.
            if let Err(error) = grace::restore_after_crash(&version) {
                tracing::warn!(%error, "grace periods stay short");
            }
            match owner::of(&version)? {
                Owner::Ours => {}
                Owner::Other(other) => return Err(owner::foreign(&self.root, &other)),
                Owner::Gone => {
                    tracing::info!(
                        path = %version.display(),
                        "pins of a network namespace that has gone removed"
                    );
                    remove_version(&version, &mut Vec::new())?;
                }
            }
        }
        make(&self.links())?;
        make(&self.xdp_links())?;
        owner::record(&self.version)?;
        Ok(claim)
    }

    /// Asks whether something has happened to the pins since the last call.
    pub(super) fn look_for_news(&self) {
        let mut directories = self.news.directories.lock().unwrap_or_else(PoisonError::into_inner);
        let untouched = directories.are_untouched(&[
            &self.root,
            &self.version,
            &self.links(),
            &self.xdp_links(),
        ]);
        self.news.none.store(untouched, Ordering::Relaxed);
    }

    /// Nothing had happened to them by the last [`PinDir::look_for_news`].
    pub(super) fn is_untouched(&self) -> bool {
        self.news.none.load(Ordering::Relaxed)
    }

    /// Makes the directories anew that somebody has removed, and takes them for
    /// this process.
    ///
    /// # Errors
    /// As [`PinDir::create`].
    pub(super) fn renew(&self, claim: Option<Ownership>) -> Result<Ownership, BpfError> {
        let Some(claim) = claim.filter(|claim| claim.is_of(&self.root)) else {
            return self.create();
        };
        make(&self.links())?;
        make(&self.xdp_links())?;
        owner::record(&self.version)?;
        Ok(claim)
    }

    fn mount(&self) -> Result<(), BpfError> {
        if self.root.starts_with(BPFFS) && !is_bpffs(Path::new(BPFFS)) {
            // The kernel's default lets everybody write.
            mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), Some("mode=0700")).map_err(
                |errno| {
                    BpfError::new("mount bpf file system at", BPFFS, &io::Error::from(errno))
                        .with_hint(
                            "mount it beforehand (systemd does so by itself), or give the agent \
                             CAP_SYS_ADMIN",
                        )
                },
            )?;
            tracing::info!(path = BPFFS, "bpf file system mounted");
        }
        Ok(())
    }

    /// Removes the pins of maps that are not what `object` defines, with a flow
    /// table for `flows` flows: a map is reused by name, and neither the kernel
    /// nor aya compares it.
    ///
    /// Gives whether all were there and stay.
    ///
    /// # Errors
    /// The object cannot be parsed, or a wrong pin cannot be removed.
    pub fn discard_unfit_maps(&self, object: &[u8], flows: u32) -> Result<bool, BpfError> {
        if !self.has_maps() {
            return Ok(false);
        }
        let object = aya_obj::Object::parse(object)
            .map_err(|error| BpfError::new("parse object", "flannel-ebpf.bpf.o", &error))?;
        let mut same = true;
        for name in abi::map::ALL {
            let path = self.map(name);
            let Some(wanted) = object.maps.get(name) else {
                return Err(BpfError::plain("find map in object", name, "it is not there"));
            };
            if !path.exists() {
                same = false;
                continue;
            }
            let found = MapData::from_pin(&path).and_then(|map| Ok((map.info()?, map)));
            let unfit = match &found {
                // Nothing could be written into it, for as long as it is there.
                Ok((_, map)) if census::is_frozen(map.fd().as_fd()).unwrap_or(false) => {
                    Some("it is frozen".to_owned())
                }
                Ok((info, _)) => {
                    let entries = match name {
                        abi::map::FLOWS4 => flow_table::entries(flows)?,
                        abi::map::PEER_STATS => peer_stats::entries()?,
                        _ => wanted.max_entries(),
                    };
                    differs(info, wanted, entries)
                }
                Err(error) => Some(error.to_string()),
            };
            if let Some(why) = unfit {
                tracing::warn!(map = name, path = %path.display(), why, "pinned map not reused");
                remove(&path)?;
                same = false;
            }
        }
        Ok(same)
    }

    /// Whether an earlier run has left any map.
    pub(super) fn has_maps(&self) -> bool {
        abi::map::ALL.into_iter().any(|name| self.map(name).exists())
    }

    /// Link pins that are there.
    pub(super) fn pinned_links(&self) -> Vec<LinkPin> {
        links_in(&self.links())
    }

    /// Ids of the links that runs before have pinned, those of other ABI versions too.
    pub(super) fn links_of_all_versions(&self) -> BTreeSet<u32> {
        let pinned =
            self.versions().into_iter().flat_map(|version| links_in(&version.join("links")));
        pinned.filter_map(|link| Some(sys::pinned_link(&link.path).ok()?.id)).collect()
    }

    /// Directories of other ABI versions.
    pub(super) fn other_versions(&self) -> Vec<PathBuf> {
        self.versions().into_iter().filter(|version| *version != self.version).collect()
    }

    /// Whether programs of an earlier run may hang on clsact filters: its maps
    /// are there, and no links.
    pub(super) fn has_maps_without_links(&self) -> bool {
        let without_links = |version: &PathBuf| {
            version.join(abi::map::CFG).exists() && links_in(&version.join("links")).is_empty()
        };
        self.versions().iter().any(without_links)
    }

    /// Takes the directory for this process, if it is there.
    ///
    /// # Errors
    /// Another agent uses it.
    pub(super) fn claim(&self) -> Result<Option<Ownership>, BpfError> {
        self.root.exists().then(|| owner::claim(&self.root)).transpose()
    }

    /// Removes everything below `--pin-dir`, all ABI versions; returns what was
    /// there. With `force` even if it is another network namespace's.
    ///
    /// # Errors
    /// A pin cannot be removed, or is another network namespace's.
    pub(super) fn remove_all(&self, force: bool) -> Result<Vec<String>, BpfError> {
        for version in self.versions() {
            match owner::of(&version)? {
                Owner::Other(other) if !force => return Err(owner::foreign(&self.root, &other)),
                _ => {}
            }
        }
        let mut removed = Vec::new();
        // One that cannot be removed keeps no other's programs.
        let versions = self.versions();
        let ends = versions.iter().map(|version| remove_version(version, &mut removed));
        ends.fold(Ok(()), Result::and)?;
        match fs::remove_dir(&self.root) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(BpfError::new("remove", self.root.display().to_string(), &error))
            }
            _ => Ok(removed),
        }
    }

    /// Directories of all ABI versions.
    pub(super) fn versions(&self) -> Vec<PathBuf> {
        let is_version = |path: &PathBuf| {
            path.file_name().and_then(|name| name.to_str()).is_some_and(|name| {
                name.strip_prefix('v').is_some_and(|number| number.parse::<u32>().is_ok())
            })
        };
        entries(&self.root).into_iter().filter(is_version).collect()
    }
}

/// Nobody else may read it, nor lock it.
fn make(folder: &Path) -> Result<(), BpfError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(|error| BpfError::new("create", folder.display().to_string(), &error))
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
