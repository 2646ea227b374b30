//! Which build of the agent is tested.

use std::path::PathBuf;

use crate::process::own_program;

/// Path of the agent: `FLANNEL_AGENT`, else beside the running program.
pub fn program() -> PathBuf {
    std::env::var_os("FLANNEL_AGENT").map_or_else(|| own_program("flannel-agent"), PathBuf::from)
}
