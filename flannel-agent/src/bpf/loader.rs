//! Loaded programs: the real [`Datapath`].

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use flannel_core::envelope::{Inlet, Keep, PodVeth};
use flannel_core::peer::Peer;
use flannel_core::status::Attachment;
use flannel_ebpf::abi::{self, Config, Exemption, MAX_EXEMPTIONS, Outcome, flag, program};
use ipnetwork::Ipv4Network;

use super::answers::TcxAnswers;
use super::attach::{Attacher, Form};
use super::attendance::SignOfLife;
use super::clock::monotonic_ns;
use super::cpus::possible_cpus;
use super::glance::Glance;
use super::hook::Hook;
use super::maps::{Maps, Pinnable};
use super::others::Others;
use super::owner::Ownership;
use super::pin::PinDir;
use super::programs::Programs;
use super::round::Round;
use super::settings::{ConfigMap, contents, nanoseconds};
use super::sys::TcxHook;
use super::teller::{RealTeller, tunnel_end};
use super::xdp::{Site, XdpHalf};
use super::{
    Ahead, BpfError, Datapath, DatapathConfig, Device, HookChanges, Meter, Needs, Places,
    ProgramOptions, Stranger, Teller, filter, object, program_log,
};

/// What has failed, where that is no hook.
const PROGRAMS: &str = "programs";

/// The programs, their maps and their hooks.
pub struct Loaded {
    programs: Programs,
    maps: Arc<Mutex<Maps>>,
    /// [`Config::tickets`] of the map that was made.
    tickets: abi::TicketNumbers,
    settings: ConfigMap,
    sign_of_life: SignOfLife,
    teller: RealTeller,
    attacher: Attacher,
    xdp: XdpHalf,
    /// The pins, or why there are none.
    pins: Result<PinDir, String>,
    /// The pins that were there, where they have gone and cannot be made anew.
    lost: Option<PinDir>,
    /// Other ABI versions' programs run until ours do, hook by hook.
    others: Others,
    /// Holds the pin directory.
    claim: Option<Ownership>,
    pinnable: Pinnable,
    /// At the pins.
    glance: Glance<()>,
    round: Round,
}

impl Loaded {
    /// Loads the programs, with the maps that an earlier run pinned if they
    /// fit. Attaches nothing. Where the pin directory cannot be used, goes on
    /// without pins, and says so. Programs that the node does not need at
    /// once may come later; `ahead`: who loads them.
    ///
    /// # Errors
    /// A map cannot be created, or the verifier refuses a program.
    pub fn open(
        options: &ProgramOptions,
        needs: Needs,
        ahead: Option<Ahead>,
    ) -> Result<Self, BpfError> {
        let bytes = object::bytes()?;
        let dir = PinDir::new(&options.pin_dir);
        let claim = dir.create();
        // What is not ours alone is neither used nor removed.
        let filters_remain = claim.is_ok() && dir.has_maps_without_links();
        let (claim, pins) = match claim {
            Ok(claim) => (Some(claim), dir.discard_unfit_maps(&bytes, options.flow_table_size)),
            Err(error) => (None, Err(error)),
        };
        let others = match (&claim, &pins) {
            (Some(_), Ok(_)) => Others::new(dir.other_versions()),
            // Nothing can be pinned in our own version: it goes like the others.
            (Some(_), Err(_)) => Others::new(dir.versions()),
            (None, _) => Others::default(),
        };
        let pins = pins.map(|same| (dir, same)).map_err(|error| error.to_string());
        let same = pins.as_ref().is_ok_and(|(_, same)| *same);
        let pins = pins.map(|(dir, _)| dir);
        let tickets = abi::TicketNumbers::of(possible_cpus()?);
        let mut programs =
            Programs::open(&bytes, options, (needs, ahead), pins.as_ref().ok(), same)?;
        let links = match (&claim, &pins) {
            (Some(_), Ok(dir)) => dir.links_of_all_versions(),
            _ => BTreeSet::new(),
        };
        programs.object().map(program_log::forward);
        let pinnable = Pinnable::of(&programs)?;
        let maps = Arc::new(Mutex::new(Maps::take(&mut programs)?));
        let settings = ConfigMap::take(&mut programs)?;
        let answers = TcxAnswers::default();
        let known = (links, answers.clone());
        let teller = RealTeller::take(&mut programs, settings.clone(), Arc::clone(&maps), known)?;
        let sign_of_life = SignOfLife::take(&mut programs)?;
        let mut loaded = Self {
            programs,
            maps,
            tickets,
            settings,
            sign_of_life,
            teller,
            attacher: Attacher::new(
                (options.attach, options.grace_periods),
                pins.clone().ok(),
                filters_remain,
                answers,
            ),
            xdp: XdpHalf::new(options.xdp, pins.clone().ok()),
            pins,
            lost: None,
            others,
            claim,
            pinnable,
            glance: Glance::default(),
            round: Round::default(),
        };
        loaded.know_programs()?;
        Ok(loaded)
    }

    /// Tells of the programs that there are now.
    fn know_programs(&mut self) -> Result<(), BpfError> {
        let ids = self.programs.ids()?;
        self.teller.know(ids.values().copied());
        self.attacher.know(ids);
        self.round.end();
        Ok(())
    }

    /// Takes in programs that were loaded after the first ones, and waits for them so long.
    fn take_later(&mut self, within: Duration, report: &mut HookChanges) {
        let taken = self.programs.take_later(self.pins.as_ref().ok(), within);
        let known = taken.and_then(|taken| if taken { self.know_programs() } else { Ok(()) });
        if let Some(error) = known.err().filter(|_| report.failed.is_empty()) {
            report.failed.push((PROGRAMS.to_owned(), error));
        }
    }

    fn maps(&self) -> MutexGuard<'_, Maps> {
        self.maps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it had to be attached, or its program has yet to come.
    fn ensure(&mut self, hook: &Hook, turn: Duration, report: &mut HookChanges) -> bool {
        if self.round.has(hook) {
            *report.running.entry(hook.program).or_default() += 1;
            return false;
        }
        if !self.programs.has(hook.program) {
            self.take_later(turn, report);
        }
        if !self.programs.has(hook.program) {
            // What cannot be loaded keeps nobody waiting.
            report.unfinished = report.failed.is_empty();
            return true;
        }
        let held = self.attacher.holds(hook);
        let ensured = self
            .programs
            .classifier(hook.program)
            .and_then(|program| self.attacher.ensure(hook, program, &mut self.others));
        let attached = match ensured {
            Ok(attached) => attached,
            Err(error) => {
                // A pod may have ended since its veth was listed: an event tells of that.
                if !hook.is_pods() || hook.is_there() {
                    report.failed.push((hook.name(), error));
                }
                return true;
            }
        };
        if attached {
            report.attached.push(hook.name());
            report.restored += u64::from(held);
        }
        self.round.note(hook);
        *report.running.entry(hook.program).or_default() += 1;
        attached
    }
}

impl Loaded {
    /// The XDP half strips nothing that the TC half would not take: it is told
    /// to when both run, and told not to before either goes.
    fn ensure_xdp(&mut self, site: Site<'_>, report: &mut HookChanges) {
        let ensured = self.xdp.ensure(&mut self.programs, site);
        if ensured.attached {
            report.attached.push(format!("{}/{}", site.name, program::FROM_WIRE));
        }
        if ensured.runs {
            report.running.insert(program::FROM_WIRE, 1);
        }
        let told = self.settings.mark(|flags| match ensured.runs && flags & flag::KEEP_IN == 0 {
            true => flags | flag::XDP,
            false => flags & !flag::XDP,
        });
        match told {
            Ok(()) => self.xdp.settle(site),
            Err(error) => report.failed.push((site.name.to_owned(), error)),
        }
    }

    fn ensure_places(&mut self, places: Places<'_>, report: &mut HookChanges) {
        let Places { underlay, underlay_kind, inlets, overlay, direct, veths, turn } = places;
        let hook = |device: Device<'_>, program| Hook {
            ifindex: device.ifindex,
            interface: device.name.to_owned(),
            program,
        };
        let pod = |veth: &PodVeth, program| {
            hook(Device { ifindex: veth.ifindex, name: &veth.name }, program)
        };
        let mut exits = Vec::new();
        exits.extend(overlay.map(|overlay| hook(overlay, program::TO_OVERLAY)));
        exits.extend(direct.then(|| hook(underlay, program::TO_UNDERLAY)));
        exits.extend(veths.iter().map(|veth| pod(veth, program::TO_POD)));
        let mut entries = Vec::new();
        entries.extend(overlay.map(|overlay| hook(overlay, program::FROM_OVERLAY)));
        entries.push(hook(underlay, program::FROM_UNDERLAY));
        entries.extend(inlets.iter().map(|Inlet { ifindex, name }| {
            hook(Device { ifindex: *ifindex, name }, program::FROM_UNDERLAY)
        }));
        entries.extend(veths.iter().map(|veth| pod(veth, program::FROM_POD)));
        let flags = self.settings.get().map_or(0, |now| now.flags);
        let Device { ifindex, name } = underlay;
        let site = Site {
            ifindex,
            name,
            kind: underlay_kind,
            tunnel: overlay.is_some(),
            fast_path: flags & flag::FAST_PATH != 0,
            kept: flags & flag::KEEP_IN != 0,
            tc: true,
        };
        self.xdp.relieve(&mut self.programs, site, &mut self.others);
        self.ensure_all(&exits, &entries, turn, report);
        if report.unfinished || report.lacks_device {
            return;
        }
        let tc = format!("{name}/{}", program::FROM_UNDERLAY);
        let tc = !report.failed.iter().any(|(hook, _)| *hook == tc);
        self.ensure_xdp(Site { tc, ..site }, report);
        let hooks: Vec<Hook> = exits.into_iter().chain(entries).collect();
        report.detached = self.attacher.retain(&hooks);
    }

    /// Exit hooks first: a packet noted at an entry hook finds its exit hook in
    /// place. Hooks of other versions that have no successor go with the others of
    /// their direction.
    fn ensure_all(
        &mut self,
        exits: &[Hook],
        entries: &[Hook],
        turn: Duration,
        report: &mut HookChanges,
    ) {
        let mut spent = Duration::ZERO;
        for (hooks, direction) in [(exits, TcxHook::Egress), (entries, TcxHook::Ingress)] {
            for hook in hooks {
                if spent >= turn {
                    report.unfinished = true;
                    return;
                }
                let began = Instant::now();
                let failed = report.failed.len();
                if self.ensure(hook, turn, report) {
                    spent += began.elapsed();
                }
                if report.unfinished {
                    return;
                }
                // No other hook is of use without the tunnel's device.
                if hook.program == program::TO_OVERLAY
                    && report.failed.len() > failed
                    && !hook.is_there()
                {
                    report.lacks_device = true;
                    return;
                }
            }
            self.others.retire(direction);
        }
    }
}

impl Datapath for Loaded {
    fn configure(&mut self, config: &DatapathConfig) -> Result<(), BpfError> {
        let tickets = self.tickets;
        let before = self.settings.get()?;
        self.settings.replace(|old| {
            let new = contents(config);
            // What an earlier run set holds until the hooks have been looked at.
            let flags = new.flags | old.flags & (flag::XDP | Keep::MASK);
            Config { flags, tickets, exemptions: old.exemptions, ..new }
        })?;
        if tunnel_end(&before) != tunnel_end(&self.settings.get()?) {
            self.maps().ask_again();
        }
        Ok(())
    }

    fn exempt(&mut self, exemptions: &[Exemption]) -> Result<(), BpfError> {
        let count = u32::try_from(exemptions.len()).unwrap_or(u32::MAX);
        if count > MAX_EXEMPTIONS {
            let reason = format!("{count} exemptions, room for {MAX_EXEMPTIONS}");
            return Err(BpfError::plain("write map", abi::map::EXEMPTIONS, reason));
        }
        // The entries before their number: what was confirmed between the two is void
        // with the next generation.
        let used = self.settings.get()?.exemptions;
        if self.maps().set_exemptions(used, exemptions)? {
            self.settings.replace(|old| Config { exemptions: count, ..old })?;
            self.settings.raise_generation()?;
        }
        Ok(())
    }

    fn attend(&mut self) -> Result<(), BpfError> {
        self.sign_of_life.give()
    }

    fn leave(&mut self) -> Result<(), BpfError> {
        self.sign_of_life.end()
    }

    fn raise_generation(&mut self) -> Result<(), BpfError> {
        self.settings.raise_generation()
    }

    fn peers(&mut self) -> Result<BTreeMap<Ipv4Network, Peer>, BpfError> {
        self.maps().mend_all()?;
        Ok(self.maps().peers())
    }

    fn mend(&mut self) -> Result<u64, BpfError> {
        let others = u64::from(self.settings.mend()?) + u64::from(self.sign_of_life.mend()?);
        let mended = self.maps().mend()? + others;
        if mended > 0 {
            self.settings.raise_generation()?;
        }
        Ok(mended)
    }

    fn put_peers(&mut self, peers: &[Peer]) -> Result<(), BpfError> {
        self.maps().put_peers(peers)
    }

    fn remove_peers(&mut self, subnets: &[Ipv4Network]) -> Result<(), BpfError> {
        self.maps().remove_peers(subnets)
    }

    fn set_direct(&mut self, subnets: &BTreeSet<Ipv4Network>) -> Result<(), BpfError> {
        self.maps().set_direct(subnets)
    }

    /// Links went with their pins: the hooks are attached anew.
    ///
    /// What cannot be made is tried again: it may be another agent's by now.
    fn keep_pins(&mut self) {
        let dir = match (&self.pins, &self.lost) {
            (Ok(dir), _) => {
                dir.look_for_news();
                let place = (dir.version(), dir.is_untouched());
                if self.glance.look(place, (), || self.pinnable.is_whole(dir)) {
                    return;
                }
                tracing::warn!("pins removed or replaced by somebody; they are made again");
                dir.clone()
            }
            (Err(_), Some(dir)) => dir.clone(),
            (Err(_), None) => return,
        };
        let renewed = dir.renew(self.claim.take()).and_then(|claim| {
            self.pinnable.pin(&dir)?;
            self.programs.pin_again(&dir)?;
            Ok(claim)
        });
        match renewed {
            Ok(claim) => {
                self.claim = Some(claim);
                self.lost = None;
                // A link that was attached while the pins went could not be pinned.
                self.round.end();
                self.attacher.reclaim_pins(&dir);
                self.xdp.reclaim_pins(&dir);
                self.pins = Ok(dir);
            }
            Err(error) => {
                self.attacher.renounce_pins();
                self.xdp.renounce_pins();
                self.pins = Err(error.to_string());
                self.lost = Some(dir);
            }
        }
    }

    fn ensure_hooks(&mut self, places: Places<'_>) -> HookChanges {
        let mut report = HookChanges::default();
        self.round.turn(Instant::now());
        self.take_later(Duration::ZERO, &mut report);
        self.ensure_places(places, &mut report);
        self.attacher.rest();
        // Whatever failed: nobody keeps the maps of other versions true.
        if !report.unfinished {
            self.others.end();
        }
        // What was detached may be wanted again.
        if !report.detached.is_empty() {
            self.round.end();
        }
        report.attachment = match self.attacher.form() {
            Some(Form::Tcx) => Attachment::Tcx,
            Some(Form::Clsact) => Attachment::Clsact,
            None => Attachment::None,
        };
        report.xdp = self.xdp.report();
        report
    }

    fn teller(&self) -> Box<dyn Teller> {
        Box::new(self.teller.clone())
    }

    fn seen_from_underlay(&self) -> Result<u64, BpfError> {
        self.maps().outcome(Outcome::SeenFromUnderlay)
    }

    fn flows_entered(&self) -> Result<u64, BpfError> {
        self.maps().outcome(Outcome::FlowNew)
    }

    fn outcomes(&self) -> Result<BTreeMap<&'static str, u64>, BpfError> {
        self.maps().outcomes()
    }

    fn meter(&self) -> Box<dyn Meter> {
        Box::new(self.maps().meter())
    }

    fn bounds(&self) -> BTreeMap<Ipv4Network, u16> {
        self.maps().bounds()
    }

    fn strangers(&self, within: std::time::Duration) -> Result<Vec<Stranger>, BpfError> {
        self.maps().strangers(monotonic_ns()?.saturating_sub(nanoseconds(within)))
    }

    fn unpinned(&self) -> Option<String> {
        let hook = || self.attacher.unpinned().map(str::to_owned);
        self.pins.as_ref().err().cloned().or_else(hook)
    }
}

/// Detaches all programs of ours in this network namespace, of all versions, and
/// removes all pins below `pin_dir`. Returns what was removed. With `force` even
/// if an agent, or another network namespace's programs, use them.
///
/// # Errors
/// A pin cannot be removed, or others use them.
pub fn cleanup(pin_dir: &Path, force: bool) -> Result<Vec<String>, BpfError> {
    let pins = PinDir::new(pin_dir);
    let claim = pins.claim();
    if !force && let Err(error) = claim {
        return Err(error);
    }
    let removed = pins.remove_all(force);
    // Those hang in this namespace, whosever the pins are.
    filter::remove_all(|_, _| false);
    removed
}
