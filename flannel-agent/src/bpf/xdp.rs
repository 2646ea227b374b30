//! The XDP half of `from_underlay`: whether it may run, and its link.

use std::fs;
use std::time::{Duration, Instant};

use aya::Ebpf;
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::xdp::{self, XdpLink};
use aya::programs::{ProgramError, Xdp};
use flannel_ebpf::abi::{flag, program};

use super::attach::has_errno;
use super::pin::{self, PinDir};
use super::{BpfError, XdpMode, XdpStatus};

/// How long an attempt that met somebody else's program stands.
const RETRY: Duration = Duration::from_secs(10);

/// How the program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Native,
    Generic,
}

impl Form {
    fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
        }
    }

    fn flag(self) -> u32 {
        match self {
            Self::Native => flag::XDP_NATIVE,
            Self::Generic => flag::XDP_GENERIC,
        }
    }

    fn aya(self) -> xdp::XdpMode {
        match self {
            Self::Native => xdp::XdpMode::Driver,
            Self::Generic => xdp::XdpMode::Skb,
        }
    }
}

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

/// Attaches `from_wire`, and knows whether it runs.
pub(super) struct XdpHalf {
    mode: XdpMode,
    pins: Option<PinDir>,
    loaded: bool,
    running: Option<Form>,
    /// The link, where there is no pin to keep it alive.
    open: Option<FdLink>,
    refusal: Option<Refusal>,
    status: XdpStatus,
}

/// What [`XdpHalf::ensure`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ensured {
    /// Bits of [`flag`] that have to be set.
    pub(super) flags: u32,
    /// The program was not there and is now.
    pub(super) attached: bool,
}

impl XdpHalf {
    /// Bits of [`flag`] that this module decides.
    pub(super) const FLAGS: u32 = flag::XDP_NATIVE | flag::XDP_GENERIC;

    pub(super) fn new(mode: XdpMode, pins: Option<PinDir>) -> Self {
        Self {
            mode,
            pins,
            loaded: false,
            running: None,
            open: None,
            refusal: None,
            status: XdpStatus::default(),
        }
    }

    pub(super) fn status(&self) -> XdpStatus {
        self.status.clone()
    }

    /// Makes the program run at the underlay device if it may; otherwise says
    /// why not, and leaves everything to TC. Programs of ours elsewhere go.
    pub(super) fn ensure(&mut self, ebpf: &mut Ebpf, site: Site<'_>) -> Ensured {
        let wanted = wanted(self.mode, site);
        if let Ok(form) = wanted {
            // Of another mode or device: this one would be refused.
            self.detach_all_but(Some((site.ifindex, form)));
        }
        let attached = match &wanted {
            Ok(form) => self.attach(ebpf, site, *form),
            Err(_) => Ok(false),
        };
        self.running = match (&wanted, &attached) {
            (Ok(form), Ok(_)) => Some(*form),
            _ => None,
        };
        let refused = match (wanted, &attached) {
            (Err(reason), _) => reason.map(|reason| (reason, false)),
            (Ok(_), Err(refusal)) => Some((refusal.reason.clone(), refusal.occupied)),
            (Ok(_), Ok(_)) => None,
        };
        let asked = matches!(self.mode, XdpMode::Native | XdpMode::Generic);
        self.status = XdpStatus {
            mode: self.running.map_or("off", Form::name),
            complaint: refused
                .as_ref()
                .filter(|(_, occupied)| *occupied || asked)
                .map(|(reason, _)| format!("{reason}; TC does its work")),
            reason: refused.map(|(reason, _)| reason),
        };
        Ensured {
            flags: self.running.map_or(0, Form::flag),
            attached: matches!(attached, Ok(true)),
        }
    }

    /// Detaches what must not run. To be called when the settings tell the
    /// programs so.
    pub(super) fn settle(&mut self, site: Site<'_>) {
        if self.running.is_none() {
            self.open = None;
        }
        self.detach_all_but(self.running.map(|form| (site.ifindex, form)));
    }

    fn attach(&mut self, ebpf: &mut Ebpf, site: Site<'_>, form: Form) -> Result<bool, Refusal> {
        if let Some(refusal) = &self.refusal
            && refusal.ifindex == site.ifindex
            && !(refusal.occupied && refusal.since.elapsed() > RETRY)
        {
            return Err(refusal.clone());
        }
        self.try_attach(ebpf, site, form).inspect(|_| self.refusal = None).map_err(|error| {
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

    fn try_attach(&mut self, ebpf: &mut Ebpf, site: Site<'_>, form: Form) -> Result<bool, Failure> {
        let program: &mut Xdp = ebpf
            .program_mut(program::FROM_WIRE)
            .ok_or_else(|| Failure::plain("the object has no XDP program"))?
            .try_into()
            .map_err(|error: ProgramError| {
                Failure::of("open program", program::FROM_WIRE, &error)
            })?;
        if !self.loaded {
            program
                .load()
                .map_err(|error| Failure::of("load program", program::FROM_WIRE, &error))?;
            self.loaded = true;
        }
        let pin = self.pins.as_ref().map(|pins| pins.xdp_link(site.ifindex, form.name()));
        // A link that the kernel lets run our program is a link that is attached.
        let held = match &pin {
            Some(path) if path.exists() => PinnedLink::from_pin(path).ok().map(FdLink::from),
            _ => self.open.take(),
        };
        if let Some(link) = held
            && let Ok(link) = XdpLink::try_from(link)
            && let Ok(id) = program.attach_to_link(link)
            && let Ok(link) = program.take_link(id)
        {
            self.open = FdLink::try_from(link).ok().filter(|_| pin.is_none());
            return Ok(false);
        }
        if let Some(path) = &pin {
            pin::remove(path).map_err(|error| Failure::plain(error.to_string()))?;
        }
        let hook = format!("{}/{}", site.name, program::FROM_WIRE);
        let link = program
            .attach_to_if_index(site.ifindex, form.aya())
            .and_then(|id| program.take_link(id))
            .map_err(|error| Failure::of_attach(site.name, form, &error))?;
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

    fn detach_all_but(&self, keep: Option<(u32, Form)>) {
        let Some(pins) = &self.pins else { return };
        let keep = keep.map(|(ifindex, form)| pins.xdp_link(ifindex, form.name()));
        let entries = fs::read_dir(pins.xdp_links()).into_iter().flatten().flatten();
        for path in entries.map(|entry| entry.path()).filter(|path| Some(path) != keep.as_ref()) {
            match pin::remove(&path) {
                Ok(()) => tracing::info!(pin = %path.display(), "detached the XDP program"),
                Err(error) => tracing::warn!(%error, "an XDP program of ours stays"),
            }
        }
    }
}

/// Whether the program is to run; if not, why, unless nobody asks.
fn wanted(mode: XdpMode, site: Site<'_>) -> Result<Form, Option<String>> {
    let form = match mode {
        XdpMode::Off => return Err(None),
        XdpMode::Generic => Form::Generic,
        XdpMode::Native | XdpMode::Auto => Form::Native,
    };
    let reason = if !site.tunnel {
        "this backend has no tunnel".to_owned()
    } else if !site.fast_path {
        "the fast path is off".to_owned()
    } else if !site.tc {
        format!("the TC program on {} is missing", site.name)
    } else if mode == XdpMode::Auto && !site.kind.is_empty() {
        format!("{} is a device of the kind {}, not a network card", site.name, site.kind)
    } else {
        return Ok(form);
    };
    Err(Some(reason))
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

    fn of_attach(name: &str, form: Form, error: &ProgramError) -> Self {
        if has_errno(error, libc::EBUSY) || has_errno(error, libc::EEXIST) {
            return Self {
                reason: format!("another XDP program runs on {name} and is left alone"),
                occupied: true,
            };
        }
        if has_errno(error, libc::EOPNOTSUPP) {
            return Self::plain(format!("the driver of {name} has no {} XDP", form.name()));
        }
        Self::of("attach XDP", &format!("{name}/{}", program::FROM_WIRE), error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CARD: Site<'_> =
        Site { ifindex: 2, name: "eth0", kind: "", tunnel: true, fast_path: true, tc: true };

    #[test]
    fn auto_takes_network_cards_only_and_never_generic() {
        assert_eq!(wanted(XdpMode::Auto, CARD), Ok(Form::Native));
        for kind in ["veth", "bridge", "bond", "vlan"] {
            let site = Site { kind, ..CARD };
            let reason = wanted(XdpMode::Auto, site).unwrap_err().unwrap();
            assert!(reason.contains(kind), "{reason}");
            assert_eq!(wanted(XdpMode::Native, site), Ok(Form::Native));
            assert_eq!(wanted(XdpMode::Generic, site), Ok(Form::Generic));
        }
        assert_eq!(wanted(XdpMode::Off, CARD), Err(None));
    }

    #[test]
    fn without_its_tc_half_or_work_it_does_not_run() {
        for site in [
            Site { tunnel: false, ..CARD },
            Site { fast_path: false, ..CARD },
            Site { tc: false, ..CARD },
        ] {
            for mode in [XdpMode::Auto, XdpMode::Native, XdpMode::Generic] {
                assert!(wanted(mode, site).unwrap_err().is_some());
            }
        }
    }
}
