//! Cases that this machine cannot run.

use std::io::Write;

/// Says that a case is not run, so that `cargo xtask test` counts it.
///
/// Written past libtest's capture, which would hide it for a case that passes. On a line
/// of its own: libtest may have begun one.
pub fn skip(case: &str, reason: &str) {
    // A closed standard error is nobody to tell.
    let _ = writeln!(std::io::stderr(), "\nSKIP {case}: {reason}");
}
