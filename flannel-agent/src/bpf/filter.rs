//! clsact filters: hooks where the kernel has no tcx.

use std::io;

use aya::programs::tc::{
    NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle, qdisc_add_clsact,
};
use aya::programs::{ProgramError, SchedClassifier, TcAttachType};
use flannel_core::envelope::CLSACT_PRIORITY;

use super::BpfError;
use super::hook::{Hook, has_errno};
use super::sys::TcxHook;
use crate::kernel::clsact::Filters;

/// Handle of our clsact filters.
const CLSACT_HANDLE: TcHandle = TcHandle::new(0, CLSACT_PRIORITY);

/// Tells which programs the filters run.
#[derive(Default)]
pub(super) struct Running(Option<Filters>);

impl Running {
    /// Whether the filter at `hook` runs the program with this id. Not so where that cannot
    /// be learnt.
    pub(super) fn is(&mut self, hook: &Hook, id: Option<u32>) -> bool {
        if self.0.is_none() {
            self.0 = Filters::open().ok();
        }
        let Some(filters) = &mut self.0 else { return false };
        let egress = hook.tcx() == TcxHook::Egress;
        let found = filters.program(hook.ifindex, egress, CLSACT_HANDLE.into());
        found.is_some() && found == id
    }
}

/// Makes `program` the filter at `hook`; with `replace` in place of one of an
/// earlier run, whatever its version. Returns whether there was none.
pub(super) fn ensure(
    hook: &Hook,
    program: &mut SchedClassifier,
    replace: bool,
) -> Result<bool, BpfError> {
    let failed =
        |step, error: &(dyn std::error::Error + 'static)| BpfError::new(step, hook.name(), error);
    match qdisc_add_clsact(&hook.interface) {
        Err(error) if !has_errno(&error, libc::EEXIST) => {
            return Err(failed("add clsact qdisc for", &error));
        }
        _ => {}
    }
    if replace {
        let replaced = link(&hook.interface, hook.direction())
            .map_err(|error| failed("find interface of", &error))
            .map(|link| program.attach_to_link(link).and_then(|id| program.take_link(id)))?;
        if let Ok(link) = replaced {
            keep(link);
            return Ok(false);
        }
    }
    match attach(hook, program) {
        Ok(()) => Ok(true),
        Err(error) if has_errno(&error, libc::EEXIST) && replace => {
            // It could not be replaced, and must not go on.
            remove(&hook.interface, hook.direction());
            attach(hook, program).map_err(|error| failed("attach clsact filter", &error))?;
            Ok(true)
        }
        Err(error) if has_errno(&error, libc::EEXIST) => Ok(false),
        Err(error) => Err(failed("attach clsact filter", &error)),
    }
}

fn attach(hook: &Hook, program: &mut SchedClassifier) -> Result<(), ProgramError> {
    let options =
        NlOptions { priority: CLSACT_PRIORITY, handle: CLSACT_HANDLE, ..NlOptions::default() };
    let options = TcAttachOptions::Netlink(options);
    let id = program.attach_with_options(&hook.interface, hook.direction(), options)?;
    keep(program.take_link(id)?);
    Ok(())
}

/// Removes our filter, if there is one.
pub(super) fn remove(interface: &str, direction: TcAttachType) {
    // Dropping a link of this kind deletes its filter. An error says that filter
    // or device have gone already.
    drop(link(interface, direction));
}

/// Removes our filters from every interface of this network namespace, but for
/// those that `keep` names.
pub(super) fn remove_all(keep: impl Fn(&str, TcAttachType) -> bool) {
    for interface in nix::net::if_::if_nameindex().iter().flat_map(|all| all.iter()) {
        let Ok(name) = interface.name().to_str() else { continue };
        for direction in [TcAttachType::Ingress, TcAttachType::Egress] {
            if !keep(name, direction) {
                remove(name, direction);
            }
        }
    }
}

fn link(interface: &str, direction: TcAttachType) -> io::Result<SchedClassifierLink> {
    SchedClassifierLink::attached(interface, direction, CLSACT_PRIORITY, CLSACT_HANDLE, None)
}

/// Lets the filter outlive this process: dropping the link would delete it,
/// and traffic has to go on without us.
fn keep(link: SchedClassifierLink) {
    std::mem::forget(link);
}
