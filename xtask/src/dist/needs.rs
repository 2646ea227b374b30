//! What the agent is linked with.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::workspace::output;

/// Libraries of the system that the agent needs.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Needs {
    /// The oldest version of the C library that will do.
    pub(super) glibc: Option<(u32, u32)>,
    /// The compiler's own library.
    pub(super) libgcc: bool,
}

/// Reads the program's headers.
///
/// # Errors
/// objdump cannot read them.
pub(super) fn of(agent: &Path, objdump: &str) -> Result<Needs> {
    Ok(read(&output(Command::new(objdump).arg("--private-headers").arg(agent))?))
}

fn read(headers: &str) -> Needs {
    let number = |word: &str| -> Option<(u32, u32)> {
        let (major, minor) = word.strip_prefix("GLIBC_")?.split_once('.')?;
        Some((major.parse().ok()?, minor.split('.').next()?.parse().ok()?))
    };
    Needs {
        glibc: headers.split_whitespace().filter_map(number).max(),
        libgcc: headers.contains("libgcc_s.so.1"),
    }
}

#[cfg(test)]
mod tests {
    use super::{Needs, read};

    #[test]
    fn the_newest_symbol_decides() {
        let headers = "
  NEEDED               libgcc_s.so.1
  NEEDED               libc.so.6
Version References:
  required from libc.so.6:
    0x069691b4 0x00 13 GLIBC_2.34
    0x09691a75 0x00 12 GLIBC_2.2.5
    0x06969188 0x00 03 GLIBC_2.28
";
        assert_eq!(read(headers), Needs { glibc: Some((2, 34)), libgcc: true });
        assert_eq!(read(""), Needs { glibc: None, libgcc: false });
    }
}
