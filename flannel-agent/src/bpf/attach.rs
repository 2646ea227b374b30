//! Hooks: tcx links, or clsact filters where the kernel has no tcx.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::{fs, io};

use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::tc::{SchedClassifierLink, TcAttachOptions};
use aya::programs::{LinkOrder, SchedClassifier, TcAttachType};
use nix::errno::Errno;

use super::answers::TcxAnswers;
use super::glance::Glance;
use super::grace::GracePeriods;
use super::hook::Hook;
use super::others::Others;
use super::pin::PinDir;
use super::pinned::{self, LinkPin};
use super::sys::{self, Attached, TcxHook, tcx_programs};
use super::{AttachMode, BpfError, GracePeriodMode, filter};

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
    /// Ids of the programs that are attached.
    ids: BTreeMap<&'static str, u32>,
    /// Hooks that this process attached or took over; the link is kept open
    /// only while there is no pin to keep it alive.
    ours: BTreeMap<Hook, Option<FdLink>>,
    /// Why hooks have no pin.
    unpinned: BTreeMap<Hook, String>,
    /// Filters of an earlier run may hang where none is wanted.
    filters_remain: bool,
    filters: filter::Running,
    answers: TcxAnswers,
    grace: GracePeriods,
    /// At the links' pins, with the hooks that stay, and whether those are filters.
    glance: Glance<(BTreeSet<(u32, &'static str)>, bool)>,
}

impl Attacher {
    /// `filters_remain`: an earlier run attached clsact filters.
    pub(super) fn new(
        (mode, grace): (AttachMode, GracePeriodMode),
        pins: Option<PinDir>,
        filters_remain: bool,
        answers: TcxAnswers,
    ) -> Self {
        let ids = BTreeMap::new();
        let (ours, unpinned) = (BTreeMap::new(), BTreeMap::new());
        let glance = Glance::default();
        let (filters, grace) = (filter::Running::default(), GracePeriods::new(grace));
        Self {
            mode,
            form: None,
            pins,
            ids,
            ours,
            unpinned,
            filters_remain,
            filters,
            answers,
            grace,
            glance,
        }
    }

    /// These are the programs that are to be attached.
    pub(super) fn know(&mut self, ids: BTreeMap<&'static str, u32>) {
        self.ids = ids;
    }

    /// Nothing is attached for a while.
    pub(super) fn rest(&mut self) {
        self.grace.restore();
        self.answers.forget();
    }

    pub(super) fn form(&self) -> Option<Form> {
        self.form
    }

    /// Touches no pins any more.
    pub(super) fn renounce_pins(&mut self) {
        self.pins = None;
    }

    /// Pins there again, also the links that are held open.
    pub(super) fn reclaim_pins(&mut self, pins: &PinDir) {
        self.pins = Some(pins.clone());
        for (hook, open) in &mut self.ours {
            let Some(link) = open.take() else { continue };
            // aya closes a link that it cannot pin: the hook is attached anew.
            if let Err(error) = link.pin(pins.link(hook.ifindex, hook.program)) {
                tracing::warn!(%error, interface = hook.interface, "hook's link not pinned");
            }
        }
        self.unpinned.clear();
    }

    /// Whether this process attached this hook, or took it over.
    pub(super) fn holds(&self, hook: &Hook) -> bool {
        self.ours.contains_key(hook)
    }

    /// Why a hook goes with this process.
    pub(super) fn unpinned(&self) -> Option<&str> {
        self.unpinned.values().next().map(String::as_str)
    }

    /// Makes `program` run at `hook`, and nothing else of ours, of whatever
    /// version. Returns whether it had to be attached: taking over the link of
    /// an earlier run is not attaching.
    pub(super) fn ensure(
        &mut self,
        hook: &Hook,
        program: &mut SchedClassifier,
        others: &mut Others,
    ) -> Result<bool, BpfError> {
        match self.form {
            Some(Form::Tcx) => self.ensure_tcx(hook, program, others),
            Some(Form::Clsact) => self.ensure_clsact(hook, program, others),
            None => self.ensure_first(hook, program, others),
        }
    }

    fn ensure_first(
        &mut self,
        hook: &Hook,
        program: &mut SchedClassifier,
        others: &mut Others,
    ) -> Result<bool, BpfError> {
        let done = match self.mode {
            AttachMode::Tcx => (self.ensure_tcx(hook, program, others)?, Form::Tcx),
            AttachMode::Clsact => (self.ensure_clsact(hook, program, others)?, Form::Clsact),
            AttachMode::Auto => match self.ensure_tcx(hook, program, others) {
                Ok(attached) => (attached, Form::Tcx),
                Err(refused) => match self.ensure_clsact(hook, program, others) {
                    Ok(attached) => {
                        tracing::info!(reason = %refused, "tcx unavailable; clsact filters are attached");
                        (attached, Form::Clsact)
                    }
                    Err(_) => return Err(refused),
                },
            },
        };
        self.form = Some(done.1);
        Ok(done.0)
    }

    fn ensure_tcx(
        &mut self,
        hook: &Hook,
        program: &mut SchedClassifier,
        others: &mut Others,
    ) -> Result<bool, BpfError> {
        let id = self.ids.get(hook.program);
        let running = self
            .answers
            .take(hook.ifindex, hook.tcx())
            .map_err(|error| hook.failed("query tcx hook", &error))?;
        let mut attached = false;
        if !running.iter().any(|at| Some(&at.program) == id) {
            self.ours.remove(hook);
            self.unpinned.remove(hook);
            if !self.take_over(hook, program, &running, others) {
                self.attach_tcx(hook, program)?;
                attached = true;
            }
        }
        for old in others.links_at(hook.ifindex, hook.program) {
            others.remove(&old);
        }
        if self.filters_remain {
            filter::remove(&hook.interface, hook.direction());
        }
        Ok(attached)
    }

    fn pin_of(&self, hook: &Hook) -> Option<PathBuf> {
        self.pins.as_ref().map(|pins| pins.link(hook.ifindex, hook.program))
    }

    /// Lets the link of an earlier run carry `program`, in one step: there is no
    /// moment with both programs, and none with neither.
    fn take_over(
        &mut self,
        hook: &Hook,
        program: &mut SchedClassifier,
        running: &[Attached],
        others: &mut Others,
    ) -> bool {
        let own = self.pin_of(hook).filter(|path| path.exists());
        let old = others.links_at(hook.ifindex, hook.program);
        for path in own.iter().chain(&old) {
            let link = match update(path, hook, program, running) {
                Ok(link) => link,
                Err(why) => {
                    tracing::info!(pin = %path.display(), why, "pinned link not reused");
                    continue;
                }
            };
            let open =
                if own.as_ref() == Some(path) { None } else { self.move_pin(hook, path, link) };
            self.ours.insert(hook.clone(), open);
            return true;
        }
        false
    }

    /// Moves another version's pin to its place in this one. Returns the link if
    /// it has none.
    fn move_pin(&mut self, hook: &Hook, from: &Path, link: FdLink) -> Option<FdLink> {
        let moved = self.pin_of(hook).map(|to| fs::rename(from, to));
        match moved {
            Some(Ok(())) => return None,
            Some(Err(error)) => {
                self.unpinned.insert(hook.clone(), hook.failed("pin link of", &error).to_string());
            }
            None => {}
        }
        Some(link)
    }

    fn attach_tcx(&mut self, hook: &Hook, program: &mut SchedClassifier) -> Result<(), BpfError> {
        self.grace.shorten(self.pins.as_ref().map(PinDir::expedited));
        let link = link_tcx(hook, program);
        // Its place is needed; and the old program goes even if the new one
        // could not come.
        let path = self.pin_of(hook);
        let cleared = path.as_deref().map_or(Ok(()), pinned::remove);
        let pinned = match (path, link?, cleared) {
            (None, link, _) => Err((None, link)),
            (Some(_), link, Err(error)) => Err((Some(error), link)),
            (Some(path), link, Ok(())) => match link.pin(&path) {
                Ok(_) => Ok(()),
                // aya has closed the link: it is attached once more.
                Err(error) => {
                    Err((Some(hook.failed("pin link of", &error)), link_tcx(hook, program)?))
                }
            },
        };
        let open = match pinned {
            Ok(()) => None,
            Err((why, link)) => {
                self.unpinned.extend(why.map(|why| (hook.clone(), why.to_string())));
                Some(link)
            }
        };
        self.ours.insert(hook.clone(), open);
        Ok(())
    }

    fn ensure_clsact(
        &mut self,
        hook: &Hook,
        program: &mut SchedClassifier,
        others: &mut Others,
    ) -> Result<bool, BpfError> {
        // The filter of an earlier run is replaced once.
        let replace = !self.ours.contains_key(hook);
        let id = self.ids.get(hook.program).copied();
        let attached = (replace || !self.filters.is(hook, id))
            .then(|| filter::ensure(hook, program, replace))
            .transpose()?
            .unwrap_or(false);
        self.ours.insert(hook.clone(), None);
        // The links of a run that attached otherwise.
        for old in others.links_at(hook.ifindex, hook.program) {
            others.remove(&old);
        }
        if let Some(path) = self.pin_of(hook).filter(|path| replace && path.exists()) {
            pinned::remove(&path)?;
        }
        Ok(attached)
    }

    /// Detaches every hook of ours that is not among `keep`: of devices that
    /// have gone, and of veths that are not to be served any more. The pins are
    /// this network namespace's, so an index can mean no other's device.
    ///
    /// Returns the names of those that this process held.
    pub(super) fn retain(&mut self, keep: &[Hook]) -> Vec<String> {
        let lost = self.review_pins(keep);
        for hook in lost {
            match self.pin_running(hook) {
                Ok(()) => self.unpinned.remove(hook),
                Err(error) => self.unpinned.insert(hook.clone(), error.to_string()),
            };
        }
        let keep: BTreeSet<(u32, &'static str)> =
            keep.iter().map(|hook| (hook.ifindex, hook.program)).collect();
        let wanted = |ifindex: u32, program: &'static str| keep.contains(&(ifindex, program));
        let form = self.form;
        let mut gone = Vec::new();
        self.ours.retain(|hook, _| {
            let stays = wanted(hook.ifindex, hook.program);
            gone.extend((!stays).then(|| hook.name()));
            if !stays && form == Some(Form::Clsact) {
                filter::remove(&hook.interface, hook.direction());
            }
            stays
        });
        self.unpinned.retain(|hook, _| wanted(hook.ifindex, hook.program));
        self.sweep_filters();
        gone
    }

    /// Removes the pins of links that are not wanted. Returns hooks whose link has lost
    /// its pin and runs on.
    fn review_pins<'a>(&mut self, wanted: &'a [Hook]) -> Vec<&'a Hook> {
        let Some(pins) = &self.pins else { return Vec::new() };
        let clsact = self.form == Some(Form::Clsact);
        let places = wanted.iter().map(|hook| (hook.ifindex, hook.program)).collect();
        let mut lost = Vec::new();
        self.glance.look((&pins.links(), pins.is_untouched()), (places, clsact), || {
            let is_at = |link: &LinkPin, hook: &Hook| {
                (link.ifindex, link.program.as_str()) == (hook.ifindex, hook.program)
            };
            let pinned = pins.pinned_links();
            let stays = |link: &&LinkPin| !clsact && wanted.iter().any(|hook| is_at(link, hook));
            let mut right = true;
            for link in pinned.iter().filter(|link| !stays(link)) {
                right = false;
                if let Err(error) = pinned::remove(&link.path) {
                    tracing::warn!(%error, "hook not detached");
                }
            }
            let is_pinned =
                |hook: &Hook| pinned.iter().any(|link| is_at(link, hook) && !link.path.is_dir());
            let was_pinned = |hook: &Hook| self.ours.get(hook).is_none_or(Option::is_none);
            if !clsact {
                lost.extend(wanted.iter().filter(|hook| was_pinned(hook) && !is_pinned(hook)));
            }
            right && lost.is_empty()
        });
        lost
    }

    /// Pins the link that runs at a hook: its pin was moved, or its file system is mounted
    /// elsewhere only.
    fn pin_running(&self, hook: &Hook) -> Result<(), BpfError> {
        let Some(path) = self.pin_of(hook) else { return Ok(()) };
        let running = tcx_programs(hook.ifindex, hook.tcx())
            .map_err(|error| hook.failed("query tcx hook", &error))?;
        let id = self.ids.get(hook.program);
        match running.iter().find(|at| Some(&at.program) == id && at.link != 0) {
            Some(at) => {
                sys::pin_link(at.link, &path).map_err(|error| hook.failed("pin link of", &error))
            }
            // It could not be attached, which is told.
            None => Ok(()),
        }
    }

    /// Removes, once, the filters of an earlier run that this one did not
    /// replace.
    fn sweep_filters(&mut self) {
        if !std::mem::take(&mut self.filters_remain) {
            return;
        }
        let replaced: BTreeSet<(&str, bool)> = match self.form {
            Some(Form::Clsact) => self
                .ours
                .keys()
                .map(|hook| (hook.interface.as_str(), hook.tcx() == TcxHook::Egress))
                .collect(),
            _ => BTreeSet::new(),
        };
        filter::remove_all(|interface, direction| {
            replaced.contains(&(interface, direction == TcAttachType::Egress))
        });
    }
}

/// aya finds the device by its name, which another one may bear by now.
fn link_tcx(hook: &Hook, program: &mut SchedClassifier) -> Result<FdLink, BpfError> {
    if !hook.is_there() {
        return Err(hook.failed("find interface", &io::Error::from(Errno::ENODEV)));
    }
    let options = TcAttachOptions::TcxOrder(LinkOrder::default());
    let link = program
        .attach_with_options(&hook.interface, hook.direction(), options)
        .and_then(|id| program.take_link(id))
        .map_err(|error| hook.failed("attach tcx", &error))?;
    FdLink::try_from(link).map_err(|error| hook.failed("attach tcx", &error))
}

/// Lets a pinned link run `program`: atomically, by BPF_LINK_UPDATE. Only if it
/// is this hook's.
fn update(
    path: &Path,
    hook: &Hook,
    program: &mut SchedClassifier,
    running: &[Attached],
) -> Result<FdLink, String> {
    fn text(error: impl std::fmt::Display) -> String {
        error.to_string()
    }
    let link = sys::pinned_link(path).map_err(text)?;
    // That says type, device, network namespace and direction in one.
    if !running.iter().any(|at| at.link == link.id) {
        return Err("it is not attached to this hook".to_owned());
    }
    // Tags differ from build to build. Without CAP_SYS_ADMIN the kernel tells no
    // names; the place is right then, and the pin's name.
    if let Ok(name) = sys::program_name(link.program)
        && name != hook.program
    {
        return Err(format!("its program is {name}"));
    }
    let link = FdLink::from(PinnedLink::from_pin(path).map_err(text)?);
    let id =
        program.attach_to_link(SchedClassifierLink::try_from(link).map_err(text)?).map_err(text)?;
    let link = program.take_link(id).map_err(text)?;
    FdLink::try_from(link).map_err(text)
}
