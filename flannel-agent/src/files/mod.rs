//! Files that outlive the agent or that others read.

pub mod kept;
pub mod leftovers;
pub mod lock;
pub mod rules;
pub mod stamp;
pub mod state;
pub mod subnet_env;
pub mod watched;

use std::fs::{DirBuilder, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

/// A file could not be written. The one that was there before is as it was,
/// unless [`WriteError::step`] is the last: then it is replaced, but the
/// replacement may not survive a power cut.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {}: {step}: {source}", path.display())]
pub struct WriteError {
    /// The file.
    pub path: PathBuf,
    /// What failed.
    pub step: &'static str,
    /// Why.
    pub source: io::Error,
}

/// Replaces `path` by a file with `contents`, whose readers see the old or the
/// new contents and nothing between, also after a power cut. One that has them stays.
///
/// An empty directory in its place goes: docker makes one for a volume whose file is
/// not there yet.
///
/// The file gets mode 0644 and a missing directory 0755, whatever the umask:
/// flannel's CNI plugin and docker's start-up read the files as other users.
pub fn write_atomically(path: &Path, contents: &[u8]) -> Result<(), WriteError> {
    let failed = |step| move |source| WriteError { path: path.to_owned(), step, source };
    if has(path, contents) {
        return Ok(());
    }
    let directory = match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => {
            return Err(failed("no directory to write in")(io::ErrorKind::InvalidInput.into()));
        }
    };
    make_directory(directory).map_err(failed("making its directory"))?;
    let mut file = temporary(path, directory)
        .map_err(|error| failed("making a temporary file in its directory")(plain(error)))?;
    // Not by the library's own `Write`: its errors name the temporary file.
    file.as_file_mut().write_all(contents).map_err(failed("writing"))?;
    file.as_file()
        .set_permissions(Permissions::from_mode(0o644))
        .map_err(failed("setting its mode"))?;
    file.as_file().sync_all().map_err(failed("syncing"))?;
    // What is not empty stays, and the file cannot be written.
    if path.is_dir() {
        let _ = std::fs::remove_dir(path);
    }
    file.persist(path).map_err(|error| failed("renaming into place")(error.error))?;
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(failed("syncing its directory"))
}

/// What becomes `path` when all is written.
fn temporary(path: &Path, directory: &Path) -> io::Result<NamedTempFile> {
    tempfile::Builder::new().prefix(&leftovers::prefix(path)).tempfile_in(directory)
}

fn has(path: &Path, contents: &[u8]) -> bool {
    std::fs::metadata(path).is_ok_and(|found| {
        found.is_file()
            && found.len() == contents.len() as u64
            && std::fs::read(path).is_ok_and(|found| found == contents)
    })
}

/// Without the name of the temporary file, which is another one each time: what is said
/// twice has to be the same.
fn plain(error: io::Error) -> io::Error {
    if error.raw_os_error().is_some() {
        return error;
    }
    let (kind, text) = (error.kind(), error.to_string());
    match text.split_once(" at path ") {
        Some((cause, _)) => io::Error::new(kind, cause),
        None => kind.into(),
    }
}

/// Makes a directory and its parents, with mode 0755 whatever the umask; the mode of
/// directories that are there already is left alone.
pub(crate) fn make_directory(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        make_directory(parent)?;
    }
    match DirBuilder::new().mode(0o755).create(path) {
        // The mode given to mkdir(2) is cut by the umask.
        Ok(()) => std::fs::set_permissions(path, Permissions::from_mode(0o755)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn an_error_keeps_its_words_and_not_the_temporary_name() {
        let wrapped = NamedTempFile::new_in("/proc/no/such/place").unwrap_err();
        assert!(wrapped.raw_os_error().is_none(), "{wrapped:?}");
        assert_eq!(plain(wrapped).to_string(), "No such file or directory (os error 2)");
        assert_eq!(plain(io::ErrorKind::Other.into()).to_string(), "other error");
    }

    #[test]
    fn contents_and_modes() {
        let top = tempfile::tempdir().unwrap();
        let path = top.path().join("a/b/file");
        write_atomically(&path, b"one").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"one");
        assert_eq!(mode(&path), 0o644);
        assert_eq!(mode(path.parent().unwrap()), 0o755);
        assert_eq!(mode(&top.path().join("a")), 0o755);
        assert_eq!(names(path.parent().unwrap()), ["file"]);
    }

    #[test]
    fn a_file_is_replaced_not_rewritten() {
        let top = tempfile::tempdir().unwrap();
        let path = top.path().join("file");
        write_atomically(&path, b"old contents").unwrap();
        let mut reader = File::open(&path).unwrap();
        write_atomically(&path, b"new").unwrap();
        let seen = io::read_to_string(&mut reader).unwrap();
        assert_eq!(seen, "old contents", "an open reader keeps what it opened");
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
    }

    #[test]
    fn the_mode_of_a_directory_that_is_there_stays() {
        let top = tempfile::tempdir().unwrap();
        let directory = top.path().join("private");
        std::fs::create_dir(&directory).unwrap();
        std::fs::set_permissions(&directory, Permissions::from_mode(0o700)).unwrap();
        write_atomically(&directory.join("file"), b"").unwrap();
        assert_eq!(mode(&directory), 0o700);
    }

    #[test]
    fn a_failure_names_file_and_step_and_leaves_nothing() {
        let top = tempfile::tempdir().unwrap();
        let target = top.path().join("target");
        std::fs::create_dir_all(target.join("full")).unwrap();
        let error = write_atomically(&target, b"x").unwrap_err();
        assert_eq!(error.step, "renaming into place");
        assert!(error.to_string().contains(target.to_str().unwrap()), "{error}");
        assert_eq!(names(top.path()), ["target"], "the temporary file is gone");

        let file = top.path().join("file");
        std::fs::write(&file, "").unwrap();
        let error = write_atomically(&file.join("below"), b"x").unwrap_err();
        assert_eq!(error.step, "making its directory");
        assert!(write_atomically(Path::new("/"), b"x").is_err());
        // The same words each time, or each try would be told in the log.
        let nowhere = || write_atomically(Path::new("/proc/file"), b"x").unwrap_err().to_string();
        assert_eq!(nowhere(), nowhere());
    }
}
