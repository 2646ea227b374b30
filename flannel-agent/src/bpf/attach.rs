//! Hooks: tcx links, or clsact filters where the kernel has no tcx.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::tc::{
    NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle, qdisc_add_clsact,
};
use aya::programs::{LinkOrder, SchedClassifier, TcAttachType};
use flannel_ebpf::abi::program;

use super::pin::{self, PinDir};
use super::sys::{TcxHook, tcx_programs};
use super::{AttachMode, BpfError};

/// Priority of our clsact filters: the same for all, so that they are found
/// again, and not one that people choose.
pub const CLSACT_PRIORITY: u16 = 0xf1a0;
/// Handle of our clsact filters.
const CLSACT_HANDLE: TcHandle = TcHandle::new(0, CLSACT_PRIORITY);

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

    fn direction(&self) -> TcAttachType {
        match self.program {
            program::TO_OVERLAY | program::TO_POD | program::TO_UNDERLAY => TcAttachType::Egress,
            _ => TcAttachType::Ingress,
        }
    }

    fn tcx(&self) -> TcxHook {
        match self.direction() {
            TcAttachType::Egress => TcxHook::Egress,
            _ => TcxHook::Ingress,
        }
    }
}

/// How hooks are attached on this kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Tcx,
    Clsact,
}

/// Attaches programs, and knows which hooks it attached.
pub(super) struct Attacher {
    mode: AttachMode,
    /// Decided at the first hook.
    form: Option<Form>,
    pins: Option<PinDir>,
    /// Hooks that this process attached or took over; the link is kept open
    /// only while there is no pin to keep it alive.
    ours: BTreeMap<Hook, Option<FdLink>>,
}

impl Attacher {
    pub(super) fn new(mode: AttachMode, pins: Option<PinDir>) -> Self {
        Self { mode, form: None, pins, ours: BTreeMap::new() }
    }

    pub(super) fn form(&self) -> Option<Form> {
        self.form
    }

    /// Makes `program` run at `hook`. Returns whether it had to be attached:
    /// taking over the link of an earlier run is not attaching.
    pub(super) fn ensure(
        &mut self,
        hook: &Hook,
        program: &mut SchedClassifier,
    ) -> Result<bool, BpfError> {
        match self.form {
            Some(Form::Tcx) => self.ensure_tcx(hook, program),
            Some(Form::Clsact) => self.ensure_clsact(hook, program),
            None => self.ensure_first(hook, program),
        }
    }

    fn ensure_first(
        &mut self,
        hook: &Hook,
        program: &mut SchedClassifier,
    ) -> Result<bool, BpfError> {
        let done = match self.mode {
            AttachMode::Tcx => (self.ensure_tcx(hook, program)?, Form::Tcx),
            AttachMode::Clsact => (self.ensure_clsact(hook, program)?, Form::Clsact),
            AttachMode::Auto => match self.ensure_tcx(hook, program) {
                Ok(attached) => (attached, Form::Tcx),
                Err(refused) => match self.ensure_clsact(hook, program) {
                    Ok(attached) => {
                        tracing::info!(reason = %refused, "no tcx here; attaching clsact filters");
                        (attached, Form::Clsact)
                    }
                    Err(_) => return Err(refused),
                },
            },
        };
        self.form = Some(done.1);
        Ok(done.0)
    }

    fn ensure_tcx(&mut self, hook: &Hook, program: &mut SchedClassifier) -> Result<bool, BpfError> {
        let failed = |step, error: &(dyn std::error::Error + 'static)| {
            BpfError::new(step, hook.name(), error)
        };
        let id = program.info().map_err(|error| failed("inspect program", &error))?.id();
        let running = tcx_programs(hook.ifindex, hook.tcx())
            .map_err(|error| failed("query tcx hook", &error))?;
        if running.contains(&id) {
            return Ok(false);
        }
        self.ours.remove(hook);
        let pin = self.pins.as_ref().map(|pins| pins.link(hook.ifindex, hook.program));
        if let Some(path) = &pin
            && path.exists()
        {
            match take_over(path, program) {
                Ok(()) if is_running(hook, id) => {
                    self.ours.insert(hook.clone(), None);
                    return Ok(false);
                }
                // The link's device has gone, or somebody detached it.
                _ => pin::remove(path)?,
            }
        }
        let link = program
            .attach_with_options(
                &hook.interface,
                hook.direction(),
                TcAttachOptions::TcxOrder(LinkOrder::default()),
            )
            .and_then(|id| program.take_link(id))
            .map_err(|error| failed("attach tcx", &error))?;
        let link = FdLink::try_from(link).map_err(|error| failed("attach tcx", &error))?;
        let open = match pin {
            Some(path) => {
                link.pin(&path).map_err(|error| failed("pin link of", &error))?;
                None
            }
            None => Some(link),
        };
        self.ours.insert(hook.clone(), open);
        Ok(true)
    }

    fn ensure_clsact(
        &mut self,
        hook: &Hook,
        program: &mut SchedClassifier,
    ) -> Result<bool, BpfError> {
        let failed = |step, error: &(dyn std::error::Error + 'static)| {
            BpfError::new(step, hook.name(), error)
        };
        match qdisc_add_clsact(&hook.interface) {
            Err(error) if !has_errno(&error, libc::EEXIST) => {
                return Err(failed("add clsact qdisc for", &error));
            }
            _ => {}
        }
        // The filter of an earlier run is replaced in place, once.
        if !self.ours.contains_key(hook) {
            let replaced = clsact_link(&hook.interface, hook.direction())
                .map_err(|error| failed("find interface of", &error))
                .map(|link| program.attach_to_link(link).and_then(|id| program.take_link(id)))?;
            if let Ok(link) = replaced {
                keep(link);
                self.ours.insert(hook.clone(), None);
                return Ok(false);
            }
        }
        let options =
            NlOptions { priority: CLSACT_PRIORITY, handle: CLSACT_HANDLE, ..NlOptions::default() };
        let attached = program
            .attach_with_options(
                &hook.interface,
                hook.direction(),
                TcAttachOptions::Netlink(options),
            )
            .and_then(|id| program.take_link(id));
        match attached {
            Ok(link) => {
                keep(link);
                self.ours.insert(hook.clone(), None);
                Ok(true)
            }
            Err(error) if has_errno(&error, libc::EEXIST) => Ok(false),
            Err(error) => Err(failed("attach clsact filter", &error)),
        }
    }

    /// Detaches every hook of ours that is not among `keep`: of devices that
    /// have gone, and of veths that are not to be served any more.
    pub(super) fn retain(&mut self, keep: &[Hook]) {
        let wanted = |ifindex: u32, program: &str| {
            keep.iter().any(|hook| hook.ifindex == ifindex && hook.program == program)
        };
        if let Some(pins) = &self.pins {
            for (path, ifindex, program) in pins.pinned_links() {
                if !wanted(ifindex, &program)
                    && let Err(error) = pin::remove(&path)
                {
                    tracing::warn!(%error, "a hook of ours stays");
                }
            }
        }
        let form = self.form;
        self.ours.retain(|hook, _| {
            let stays = wanted(hook.ifindex, hook.program);
            if !stays && form == Some(Form::Clsact) {
                // An error says that filter or device have gone already.
                drop(clsact_link(&hook.interface, hook.direction()));
            }
            stays
        });
    }
}

/// Removes our clsact filters from every interface of this network namespace.
pub(super) fn remove_clsact_filters() {
    for interface in nix::net::if_::if_nameindex().iter().flat_map(|all| all.iter()) {
        let Ok(name) = interface.name().to_str() else { continue };
        for direction in [TcAttachType::Ingress, TcAttachType::Egress] {
            // Dropping a link of this kind deletes its filter; that none is
            // there is the usual case.
            drop(clsact_link(name, direction));
        }
    }
}

fn clsact_link(interface: &str, direction: TcAttachType) -> io::Result<SchedClassifierLink> {
    SchedClassifierLink::attached(interface, direction, CLSACT_PRIORITY, CLSACT_HANDLE, None)
}

/// Lets the filter outlive this process: dropping the link would delete it,
/// and traffic has to go on without us.
fn keep(link: SchedClassifierLink) {
    std::mem::forget(link);
}

/// Lets a pinned link run `program`: atomically, by BPF_LINK_UPDATE.
fn take_over(
    path: &Path,
    program: &mut SchedClassifier,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let link = FdLink::from(PinnedLink::from_pin(path)?);
    let id = program.attach_to_link(SchedClassifierLink::try_from(link)?)?;
    // The pin keeps the link alive.
    drop(program.take_link(id)?);
    Ok(())
}

fn is_running(hook: &Hook, id: u32) -> bool {
    tcx_programs(hook.ifindex, hook.tcx()).is_ok_and(|running| running.contains(&id))
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
