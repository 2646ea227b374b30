//! What other ABI versions left in the pin directory: it goes, hook by hook, as
//! soon as this version is in its place.
//!
//! Nobody keeps the maps of those programs true any more. One that goes on alone
//! would decide by peers and flows of yesterday; the kernel's path is right.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::pinned::{self, LinkPin};
use super::sys::{self, TcxHook};

/// How long a packet that a driver's XDP program has stripped may be on its way
/// to the TC program that takes it (GRO holds it until the end of a poll).
pub(super) const IN_FLIGHT: Duration = Duration::from_millis(20);

/// Directories of other versions that are still there.
#[derive(Debug, Default)]
pub(super) struct Others {
    versions: Vec<PathBuf>,
    /// It was said that something of them stays.
    said: bool,
}

impl Others {
    /// Those in these directories.
    pub(super) fn new(versions: Vec<PathBuf>) -> Self {
        Self { versions, said: false }
    }

    /// Pins of a hook's links.
    pub(super) fn links_at(&self, ifindex: u32, program: &str) -> Vec<PathBuf> {
        let path = |version: &PathBuf| version.join("links").join(format!("{ifindex}-{program}"));
        self.versions.iter().map(path).filter(|path| fs::symlink_metadata(path).is_ok()).collect()
    }

    /// Pins of XDP links, with the interface that their names tell.
    pub(super) fn xdp_links(&self) -> Vec<(PathBuf, Option<u32>)> {
        let ifindex = |path: &Path| path.file_name()?.to_str()?.parse().ok();
        let pins = self.versions.iter().flat_map(|version| pinned::entries(&version.join("xdp")));
        pins.map(|path| (path.clone(), ifindex(&path))).collect()
    }

    /// Removes one pin, and with it the program from its hook.
    pub(super) fn remove(&mut self, path: &Path) {
        match pinned::remove(path) {
            Ok(()) => tracing::debug!(pin = %path.display(), "pin of another version removed"),
            Err(error) => self.say(&error),
        }
    }

    /// Removes all links of one direction.
    pub(super) fn retire(&mut self, direction: TcxHook) {
        let pins =
            self.versions.iter().flat_map(|version| pinned::links_in(&version.join("links")));
        let paths: Vec<PathBuf> = pins.map(|LinkPin { path, .. }| path).collect();
        for path in paths {
            let link = sys::pinned_link(&path).ok();
            if link.and_then(|link| TcxHook::of(&link)) == Some(direction) {
                self.remove(&path);
            }
        }
    }

    /// Removes all that is left: links, then maps, then the directories.
    pub(super) fn end(&mut self) {
        let stripping = self.xdp_links();
        for (path, _) in &stripping {
            self.remove(path);
        }
        if !stripping.is_empty() {
            std::thread::sleep(IN_FLIGHT);
        }
        for version in std::mem::take(&mut self.versions) {
            match pinned::remove_version(&version, &mut Vec::new()) {
                Ok(()) => {
                    tracing::info!(path = %version.display(), "pins of another version removed");
                }
                Err(error) => {
                    self.say(&error);
                    self.versions.push(version);
                }
            }
        }
    }

    fn say(&mut self, error: &super::BpfError) {
        if !self.said {
            tracing::warn!(%error, "pin of another version not removed");
        }
        self.said = true;
    }
}
