//! Temporary files of writes that were killed. Each is named after the file that it was
//! to become, so that nobody else's is taken for ours.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

/// Beginning of all their names.
const PREFIX: &str = ".flannel-";
/// Random letters and digits at the end of their names.
const RANDOM: usize = 6;
/// So much of the file's name is in theirs.
const NAME: usize = 100;
/// Earlier versions left names that tell of no file: of those, what is older.
const OLD: Duration = Duration::from_secs(60);

/// How the name of a temporary file for `path` begins.
pub(super) fn prefix(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    format!("{PREFIX}{}-", name.chars().take(NAME).collect::<String>())
}

/// Removes what killed writes of `path` left, at a start: nobody writes it then.
pub fn remove(path: &Path) {
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    // One that is not there yet has none.
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(name) = name.to_str().filter(|name| name.starts_with(PREFIX)) else { continue };
        let Ok(found) = entry.metadata() else { continue };
        if is_left(name, &found, &prefix(path)) {
            match std::fs::remove_file(entry.path()) {
                Ok(()) => tracing::debug!(path = %entry.path().display(), "temporary file removed"),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    let path = entry.path();
                    tracing::warn!(%error, path = %path.display(), "temporary file not removed");
                }
            }
        }
    }
}

fn is_left(name: &str, found: &Metadata, prefix: &str) -> bool {
    let is_random =
        |end: &str| end.len() == RANDOM && end.bytes().all(|byte| byte.is_ascii_alphanumeric());
    // A word in small letters is somebody's.
    let is_no_word = |end: &str| end.bytes().any(|byte| !byte.is_ascii_lowercase());
    let is_old = || found.modified().is_ok_and(|at| at.elapsed().is_ok_and(|age| age >= OLD));
    let named = name.strip_prefix(prefix).is_some_and(is_random);
    let unnamed = name.strip_prefix(PREFIX).is_some_and(|end| is_random(end) && is_no_word(end));
    found.is_file()
        && found.uid() == nix::unistd::geteuid().as_raw()
        && (named || (unnamed && is_old()))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn what_a_killed_write_left_goes_and_other_files_stay() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let old = SystemTime::now() - 2 * OLD;
        let mut stay = vec!["subnet.env"];
        for (name, age_matters, goes) in [
            ("subnet.env", false, false),
            (".flannel-subnet.env-aB3dE6", false, true),
            (".flannel-subnet.env-abcdef", false, true),
            (".flannel-other.env-aB3dE6", false, false),
            (".flannel-subnet.env-aB3dE", false, false),
            (".flannel-aB3dE6", true, true),
            (".flannel-aB3dE7", false, false),
            (".flannel-backup", true, false),
            (".flannel-aB3d.6", true, false),
            ("flannel-aB3dE6", true, false),
        ] {
            let file = File::create(path(name)).unwrap();
            if age_matters {
                file.set_modified(old).unwrap();
            }
            if !goes {
                stay.push(name);
            }
        }
        std::fs::create_dir(path(".flannel-subnet.env-folder")).unwrap();
        std::os::unix::fs::symlink(path("subnet.env"), path(".flannel-subnet.env-symlin")).unwrap();
        stay.extend([".flannel-subnet.env-folder", ".flannel-subnet.env-symlin"]);
        remove(&path("subnet.env"));
        let mut left: Vec<String> = std::fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        stay.sort_unstable();
        stay.dedup();
        assert_eq!(left, stay);
        remove(&path("none/subnet.env"));
    }

    #[test]
    fn a_write_takes_such_a_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x".repeat(250));
        super::super::write_atomically(&path, b"1").unwrap();
        let file = super::super::temporary(&path, folder.path()).unwrap();
        let name = file.path().file_name().unwrap().to_str().unwrap();
        assert!(is_left(name, &file.as_file().metadata().unwrap(), &prefix(&path)), "{name}");
    }
}
