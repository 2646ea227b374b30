//! Files that outlive the agent.

pub mod lock;
pub mod state;
pub mod subnet_env;

use std::fs::{self, File, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// A file that could not be written.
#[derive(Debug, thiserror::Error)]
#[error("{call} {}: {source}", path.display())]
pub struct WriteError {
    /// The step.
    pub call: &'static str,
    /// The file.
    pub path: PathBuf,
    /// The kernel's answer.
    pub source: io::Error,
}

/// Writes a file so that a reader, and a machine that loses power, sees the old
/// or the new one: temporary file in the same directory, fsync, rename. Mode
/// 0644 whatever the umask, the directory is made with 0755.
///
/// # Errors
/// The step that failed; the old file is still there then.
fn write_atomically(path: &Path, contents: &[u8]) -> Result<(), WriteError> {
    let failed = |call| move |source| WriteError { call, path: path.to_owned(), source };
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    fs::create_dir_all(folder).map_err(failed("create directory of"))?;
    let mut file = tempfile::Builder::new()
        .prefix(".flannel-")
        .tempfile_in(folder)
        .map_err(failed("create temporary file beside"))?;
    file.write_all(contents).map_err(failed("write"))?;
    file.as_file()
        .set_permissions(Permissions::from_mode(0o644))
        .and_then(|()| file.as_file().sync_all())
        .map_err(failed("sync"))?;
    file.persist(path).map_err(|error| failed("replace")(error.error))?;
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed("sync directory of"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaces_whole_files_and_leaves_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/file");
        write_atomically(&path, b"a long first version").unwrap();
        write_atomically(&path, b"second").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"second");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn a_failure_names_the_file() {
        let error = write_atomically(Path::new("/proc/nowhere/file"), b"").unwrap_err();
        assert!(error.to_string().contains("/proc/nowhere/file"), "{error}");
    }
}
