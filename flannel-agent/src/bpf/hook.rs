//! One place where a program runs.

use std::io;

use aya::programs::TcAttachType;
use flannel_ebpf::abi::program;
use nix::net::if_::if_nametoindex;

use super::BpfError;
use super::sys::TcxHook;

/// One place where a program runs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Hook {
    pub(super) ifindex: u32,
    pub(super) interface: String,
    pub(super) program: &'static str,
}

impl Hook {
    /// `<interface>/<program>`.
    pub(super) fn name(&self) -> String {
        format!("{}/{}", self.interface, self.program)
    }

    pub(super) fn direction(&self) -> TcAttachType {
        match self.program {
            program::TO_OVERLAY | program::TO_POD | program::TO_UNDERLAY => TcAttachType::Egress,
            _ => TcAttachType::Ingress,
        }
    }

    pub(super) fn tcx(&self) -> TcxHook {
        match self.direction() {
            TcAttachType::Egress => TcxHook::Egress,
            _ => TcxHook::Ingress,
        }
    }

    /// Whether it is on the host side of a pod's veth.
    pub(super) fn is_pods(&self) -> bool {
        [program::FROM_POD, program::TO_POD].contains(&self.program)
    }

    /// Whether its interface still has its name.
    pub(super) fn is_there(&self) -> bool {
        if_nametoindex(self.interface.as_str()) == Ok(self.ifindex)
    }

    pub(super) fn failed(
        &self,
        step: &'static str,
        error: &(dyn std::error::Error + 'static),
    ) -> BpfError {
        BpfError::new(step, self.name(), error)
    }
}

pub(super) fn has_errno(error: &(dyn std::error::Error + 'static), errno: i32) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error) == Some(errno) {
            return true;
        }
        next = error.source();
    }
    false
}
