//! What is pinned in a directory, and the end of it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::{BpfError, grace};

/// A pinned link of a TC hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LinkPin {
    pub(super) path: PathBuf,
    pub(super) ifindex: u32,
    pub(super) program: String,
}

/// What is pinned in a directory for links, as far as the names are ours.
pub(super) fn links_in(folder: &Path) -> Vec<LinkPin> {
    let parse = |path: PathBuf| {
        let (ifindex, program) = path.file_name()?.to_str()?.split_once('-')?;
        Some(LinkPin {
            ifindex: ifindex.parse().ok()?,
            program: program.to_owned(),
            path: path.clone(),
        })
    };
    entries(folder).into_iter().filter_map(parse).collect()
}

/// What is in a directory, if it is there.
pub(super) fn entries(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

/// Removes a version's directory with all that is pinned in it.
///
/// Links first: the hooks fall silent before their maps go; and XDP's before
/// those that take over from it. The directory stays as long as the node's grace periods
/// cannot be made what they were.
///
/// # Errors
/// A pin or a directory cannot be removed, or the grace periods stay short.
pub(super) fn remove_version(version: &Path, removed: &mut Vec<String>) -> Result<(), BpfError> {
    let restored = grace::restore_after_crash(version);
    for folder in [version.join("xdp"), version.join("links")] {
        remove_entries(&folder, removed)?;
        remove_folder(&folder)?;
    }
    remove_entries(version, removed)?;
    restored?;
    remove_folder(version)
}

fn remove_entries(folder: &Path, removed: &mut Vec<String>) -> Result<(), BpfError> {
    let is_record = |path: &Path| path.file_name().is_some_and(|name| name == grace::RECORD);
    for path in entries(folder).into_iter().filter(|path| !is_record(path)) {
        remove(&path)?;
        removed.push(path.display().to_string());
    }
    Ok(())
}

fn remove_folder(folder: &Path) -> Result<(), BpfError> {
    match fs::remove_dir(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(BpfError::new("remove", folder.display().to_string(), &error))
        }
        _ => Ok(()),
    }
}

/// Removes a pin, or an empty directory in its place; one that has gone already is no error.
pub(super) fn remove(path: &Path) -> Result<(), BpfError> {
    let removed = match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::IsADirectory => fs::remove_dir(path),
        removed => removed,
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(BpfError::new("unpin", path.display().to_string(), &error))
        }
        _ => Ok(()),
    }
}
