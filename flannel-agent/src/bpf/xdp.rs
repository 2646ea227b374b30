//! The XDP half of `from_underlay`: whether it may run, and its link.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::xdp::{self, XdpLink};
use aya::programs::{ProgramError, Xdp};
use flannel_core::status::{XdpPlace, XdpStatus};
use flannel_ebpf::abi::program;

use super::glance::Glance;
use super::hook::has_errno;
use super::others::{IN_FLIGHT, Others};
use super::pin::PinDir;
use super::pinned;
use super::programs::Programs;
use super::sys::{self, LINK_XDP};
use super::{BpfError, XdpMode, XdpReport};

/// How long an attempt that met somebody else's program stands.
const RETRY: Duration = Duration::from_secs(10);

/// What the decision hangs on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Site<'a> {
    /// Interface index of the underlay device.
    pub(super) ifindex: u32,
    /// Its name.
    pub(super) name: &'a str,
    /// Its kind (`veth`, `bond`...), empty for hardware.
    pub(super) kind: &'a str,
    /// Peers may be reached through a tunnel.
    pub(super) tunnel: bool,
    /// Confirmed flows are used.
    pub(super) fast_path: bool,
    /// Something else acts on what comes in, and has to see all of it.
    pub(super) kept: bool,
    /// The TC half runs.
    pub(super) tc: bool,
}

/// Why the program does not run.
#[derive(Clone, Debug)]
struct Refusal {
    ifindex: u32,
    reason: String,
    /// Somebody else's program is there: worth another attempt later, and
    /// somebody's attention.
    occupied: bool,
    since: Instant,
}

/// Attaches `from_wire`, and knows whether it may strip packets.
pub(super) struct XdpHalf {
    mode: XdpMode,
    pins: Option<PinDir>,
    /// A link of ours is on the device.
    attached: bool,
    /// At the pins, with the one that stays.
    glance: Glance<Option<PathBuf>>,
    /// The link, where there is no pin to keep it alive.
    open: Option<FdLink>,
    refusal: Option<Refusal>,
    report: XdpReport,
}

/// What [`XdpHalf::ensure`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ensured {
    /// The program runs: [`flannel_ebpf::abi::flag::XDP`] is to be set.
    pub(super) runs: bool,
    /// It did not, and does now.
    pub(super) attached: bool,
}

impl XdpHalf {
    pub(super) fn new(mode: XdpMode, pins: Option<PinDir>) -> Self {
        Self {
            mode,
            pins,
            attached: false,
            glance: Glance::default(),
            open: None,
            refusal: None,
            report: XdpReport::default(),
        }
    }

    pub(super) fn report(&self) -> XdpReport {
        self.report.clone()
    }

    /// Touches no pins any more.
    pub(super) fn renounce_pins(&mut self) {
        self.pins = None;
    }

    /// Pins there again what is attached from now on.
    pub(super) fn reclaim_pins(&mut self, pins: &PinDir) {
        self.pins = Some(pins.clone());
    }

    /// Makes the program run at the underlay device if it may; otherwise says
    /// why not, and leaves everything to TC. Programs of ours elsewhere go.
    pub(super) fn ensure(&mut self, programs: &mut Programs, site: Site<'_>) -> Ensured {
        let mut occupied = false;
        let held = held(site);
        let attached = match (unwanted(self.mode, site), &held) {
            (Some(reason), _) => Err(reason),
            (None, Some(reason)) if !self.is_attached(site) => Err(Some(reason.clone())),
            (None, _) => self.attach(programs, site).map_err(|refusal| {
                occupied = refusal.occupied;
                Some(refusal.reason)
            }),
        };
        self.attached = attached.is_ok();
        let runs = attached.is_ok() && held.is_none();
        let reason = attached.as_ref().err().cloned().unwrap_or(held);
        let asked = matches!(self.mode, XdpMode::Native | XdpMode::Generic);
        self.report = XdpReport {
            complaint: reason
                .as_ref()
                .filter(|_| occupied || asked)
                .map(|reason| format!("{reason}; TC does its work")),
            status: XdpStatus { mode: if runs { XdpPlace::Native } else { XdpPlace::Off }, reason },
        };
        Ensured { runs, attached: attached == Ok(true) }
    }

    /// Ends the programs of other versions: what they strip, only the TC program of
    /// their own version takes. To be called while that is still there. On the
    /// device that is to be served ours comes in place, in one step, and strips
    /// nothing before it is told to: no driver has to be reset.
    pub(super) fn relieve(&mut self, programs: &mut Programs, site: Site<'_>, others: &mut Others) {
        let found = others.xdp_links();
        if found.is_empty() {
            return;
        }
        for (path, ifindex) in found {
            let stays = ifindex == Some(site.ifindex) && unwanted(self.mode, site).is_none();
            let moved = stays.then(|| self.take_over(programs, site, &path));
            if let Some(Err(failure)) = &moved {
                let why = failure.reason.as_str();
                tracing::info!(pin = %path.display(), why, "pinned link not reused");
            }
            if !matches!(moved, Some(Ok(()))) {
                others.remove(&path);
            }
        }
        std::thread::sleep(IN_FLIGHT);
    }

    /// Lets another version's link carry our program, and moves its pin to ours.
    fn take_over(
        &mut self,
        programs: &mut Programs,
        site: Site<'_>,
        from: &Path,
    ) -> Result<(), Failure> {
        let to = self.pins.as_ref().map(|pins| pins.xdp_link(site.ifindex));
        let to = to.filter(|to| !to.exists()).ok_or_else(|| Failure::plain("no place for it"))?;
        update(from, site.ifindex, loaded(programs)?)?;
        fs::rename(from, to).map_err(|error| Failure::of("pin link of", site.name, &error))
    }

    /// Detaches what must not run. To be called when the settings tell the
    /// programs so.
    pub(super) fn settle(&mut self, site: Site<'_>) {
        if !self.attached {
            self.open = None;
        }
        let Some(pins) = &self.pins else { return };
        let keep = self.attached.then(|| pins.xdp_link(site.ifindex));
        let folder = pins.xdp_links();
        self.glance.look((&folder, pins.is_untouched()), keep.clone(), || {
            let others = pinned::entries(&folder);
            others.iter().filter(|path| Some(*path) != keep.as_ref()).fold(true, |_, path| {
                match pinned::remove(path) {
                    Ok(()) => tracing::info!(pin = %path.display(), "XDP program detached"),
                    Err(error) => tracing::warn!(%error, "XDP program not detached"),
                }
                false
            })
        });
    }

    /// Whether a link is there, ours or an earlier run's.
    fn is_attached(&self, site: Site<'_>) -> bool {
        let pinned = self.pins.as_ref().map(|pins| pins.xdp_link(site.ifindex));
        self.open.is_some() || pinned.is_some_and(|path| path.exists())
    }

    fn attach(&mut self, programs: &mut Programs, site: Site<'_>) -> Result<bool, Refusal> {
        if let Some(refusal) = &self.refusal
            && refusal.ifindex == site.ifindex
            && !(refusal.occupied && refusal.since.elapsed() > RETRY)
        {
            return Err(refusal.clone());
        }
        self.try_attach(programs, site).inspect(|_| self.refusal = None).map_err(|error| {
            let refusal = Refusal {
                ifindex: site.ifindex,
                reason: error.reason,
                occupied: error.occupied,
                since: Instant::now(),
            };
            self.refusal = Some(refusal.clone());
            refusal
        })
    }

    fn try_attach(&mut self, programs: &mut Programs, site: Site<'_>) -> Result<bool, Failure> {
        let program = loaded(programs)?;
        let pin = self.pins.as_ref().map(|pins| pins.xdp_link(site.ifindex));
        let held = match &pin {
            Some(path) if path.exists() => update(path, site.ifindex, program).ok(),
            // A link that the kernel lets run our program is a link that is attached.
            _ => self.open.take().and_then(|link| run(link, program).ok()),
        };
        if let Some(link) = held {
            self.open = Some(link).filter(|_| pin.is_none());
            return Ok(false);
        }
        if let Some(path) = &pin {
            pinned::remove(path).map_err(|error| Failure::plain(error.to_string()))?;
        }
        let hook = format!("{}/{}", site.name, program::FROM_WIRE);
        let link = program
            .attach_to_if_index(site.ifindex, xdp::XdpMode::Driver)
            .and_then(|id| program.take_link(id))
            .map_err(|error| Failure::of_attach(site.name, &error))?;
        let link =
            FdLink::try_from(link).map_err(|error| Failure::of("attach XDP", &hook, &error))?;
        self.open = match pin {
            Some(path) => {
                link.pin(&path).map_err(|error| Failure::of("pin link of", &hook, &error))?;
                None
            }
            None => Some(link),
        };
        Ok(true)
    }
}

/// Why the program is not to be on the device, if so; the inner `None` where nobody
/// asks.
fn unwanted(mode: XdpMode, site: Site<'_>) -> Option<Option<String>> {
    let reason = match mode {
        XdpMode::Off => return Some(None),
        // GRO comes before it; and where the kernel copies a packet for it, TC
        // (seen on Linux 6.18) does not recognise the packet any more: stripped,
        // it would be lost.
        XdpMode::Generic => "generic XDP does not go together with TC programs".to_owned(),
        _ if !site.tunnel => "this backend has no tunnel".to_owned(),
        _ if !site.fast_path => "the fast path is off".to_owned(),
        XdpMode::Auto if !site.kind.is_empty() => {
            format!("{} is a device of the kind {}, not a network card", site.name, site.kind)
        }
        XdpMode::Native | XdpMode::Auto => return None,
    };
    Some(Some(reason))
}

/// Why the program must not strip packets at the moment, if so. It stays where it is:
/// a driver may reset its queues when it goes or comes.
fn held(site: Site<'_>) -> Option<String> {
    if site.kept {
        return Some("the kernel has to see all that comes in".to_owned());
    }
    (!site.tc).then(|| format!("the TC program on {} is missing", site.name))
}

/// Lets a pinned link run `program`: atomically, by BPF_LINK_UPDATE. Only if it
/// is the XDP link of this interface, with our program.
fn update(path: &Path, ifindex: u32, program: &mut Xdp) -> Result<FdLink, Failure> {
    let object = path.display().to_string();
    let link = sys::pinned_link(path).map_err(|error| Failure::of("open link", &object, &error))?;
    if (link.kind, link.ifindex) != (LINK_XDP, ifindex) {
        return Err(Failure::plain(format!("{object} is not attached to this device")));
    }
    if let Ok(name) = sys::program_name(link.program)
        && name != program::FROM_WIRE
    {
        return Err(Failure::plain(format!("the program of {object} is {name}")));
    }
    let link =
        PinnedLink::from_pin(path).map_err(|error| Failure::of("open link", &object, &error))?;
    run(FdLink::from(link), program).map_err(|error| Failure::of("update link", &object, &*error))
}

fn run(link: FdLink, program: &mut Xdp) -> Result<FdLink, Box<dyn Error + Send + Sync>> {
    let id = program.attach_to_link(XdpLink::try_from(link)?)?;
    Ok(FdLink::try_from(program.take_link(id)?)?)
}

fn loaded(programs: &mut Programs) -> Result<&mut Xdp, Failure> {
    programs.xdp().map_err(|error| Failure::plain(error.to_string()))
}

struct Failure {
    reason: String,
    occupied: bool,
}

impl Failure {
    fn plain(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), occupied: false }
    }

    fn of(step: &'static str, object: &str, error: &(dyn std::error::Error + 'static)) -> Self {
        Self::plain(BpfError::new(step, object, error).to_string())
    }

    fn of_attach(name: &str, error: &ProgramError) -> Self {
        if has_errno(error, libc::EBUSY) || has_errno(error, libc::EEXIST) {
            return Self {
                reason: format!("another XDP program runs on {name} and is left alone"),
                occupied: true,
            };
        }
        if has_errno(error, libc::EOPNOTSUPP) {
            return Self::plain(format!("the driver of {name} has no native XDP"));
        }
        Self::of("attach XDP", &format!("{name}/{}", program::FROM_WIRE), error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CARD: Site<'_> = Site {
        ifindex: 2,
        name: "eth0",
        kind: "",
        tunnel: true,
        fast_path: true,
        kept: false,
        tc: true,
    };

    #[test]
    fn auto_takes_network_cards_only() {
        assert_eq!(unwanted(XdpMode::Auto, CARD), None);
        for kind in ["veth", "bridge", "bond", "vlan"] {
            let site = Site { kind, ..CARD };
            let reason = unwanted(XdpMode::Auto, site).unwrap().unwrap();
            assert!(reason.contains(kind), "{reason}");
            assert_eq!(unwanted(XdpMode::Native, site), None);
        }
        assert_eq!(unwanted(XdpMode::Off, CARD), Some(None));
        assert!(unwanted(XdpMode::Generic, CARD).unwrap().is_some());
    }

    #[test]
    fn without_its_tc_half_or_work_it_does_not_run() {
        for site in [Site { tunnel: false, ..CARD }, Site { fast_path: false, ..CARD }] {
            for mode in [XdpMode::Auto, XdpMode::Native] {
                assert!(unwanted(mode, site).unwrap().is_some());
            }
        }
        assert_eq!(held(CARD), None);
        for site in [Site { kept: true, ..CARD }, Site { tc: false, ..CARD }] {
            assert_eq!(unwanted(XdpMode::Native, site), None, "it stays");
            assert!(held(site).is_some());
        }
    }
}
