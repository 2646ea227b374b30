//! An agent that runs.

use std::os::unix::net::UnixDatagram;

use crate::process::Process;

/// An agent that was started.
pub(crate) struct Running {
    pub(crate) process: Process,
    pub(crate) notify: UnixDatagram,
}
