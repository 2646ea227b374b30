//! How many files may be open at once.

use nix::sys::resource::{Resource, getrlimit, rlim_t, setrlimit};

/// More than the agent ever has open. Programs that it runs have this limit, too, and some
/// close all that they might have.
const ENOUGH: rlim_t = 65_536;

/// Raises the soft limit, as Go does at the start of every program.
pub(super) fn raise() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        let wanted = hard.min(ENOUGH);
        if soft < wanted { setrlimit(Resource::RLIMIT_NOFILE, wanted, hard) } else { Ok(()) }
    });
    if let Err(error) = raised {
        tracing::warn!(%error, "limit of open files not raised");
    }
}
