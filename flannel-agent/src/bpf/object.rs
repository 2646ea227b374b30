//! The compiled programs.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use super::BpfError;

/// Names another object file to load instead of the embedded one: for testing
/// an object that another compiler built.
pub const OBJECT_ENV: &str = "FLANNEL_EBPF_OBJECT";

static EMBEDDED: &[u8] = aya::include_bytes_aligned!(concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../flannel-ebpf/prebuilt/flannel-ebpf.bpf.o"
));

/// The object to load: the embedded one, or the one that [`OBJECT_ENV`] names.
///
/// # Errors
/// The named file cannot be read.
pub fn bytes() -> Result<Cow<'static, [u8]>, BpfError> {
    match std::env::var_os(OBJECT_ENV).map(PathBuf::from) {
        Some(path) => read(&path).map(Cow::Owned),
        None => Ok(Cow::Borrowed(EMBEDDED)),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, BpfError> {
    std::fs::read(path).map_err(|error| {
        BpfError::new("read object", path.display().to_string(), &error)
            .with_hint(format!("{OBJECT_ENV} names it; unset it to use the embedded programs"))
    })
}
