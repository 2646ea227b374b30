//! A place for programs: a network namespace with the devices of a node, and a
//! pin directory.

use std::net::Ipv4Addr;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use flannel_agent::bpf;
use flannel_agent::bpf::loader::Loaded;
use flannel_agent::bpf::{
    AttachMode, Datapath as _, Device, GracePeriodMode, Needs, Places, ProgramOptions,
    VerifySource, XdpMode,
};
use flannel_core::envelope::{Inward, PodVeth, VethEntry};
use flannel_core::mac::MacAddr;
use flannel_core::peer::Peer;
use ipnetwork::Ipv4Network;
use nix::net::if_::if_nametoindex;
use nix::sched::{CloneFlags, unshare};

/// Runs a test in a network namespace and with a pin directory of its own.
pub(crate) fn isolated(test: impl FnOnce(&Path) + Send + 'static) {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let pins = PathBuf::from(format!("/sys/fs/bpf/flannel-unit-{}-{number}", std::process::id()));
    elsewhere(move || {
        let result = catch_unwind(AssertUnwindSafe(|| test(&pins)));
        let cleaned = bpf::cleanup(&pins, false);
        if let Err(panic) = result {
            resume_unwind(panic);
        }
        cleaned.unwrap();
        assert!(!pins.exists(), "cleanup leaves {} behind", pins.display());
    });
}

/// Runs `work` in a network namespace of its own, with the same devices as all.
pub(crate) fn elsewhere(work: impl FnOnce() + Send + 'static) {
    let result = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        for command in [
            "link set lo up",
            "link add eth0 type veth peer name wire",
            "link set eth0 up",
            "link set wire up",
            "addr add 192.0.2.1/24 dev eth0",
            "link add flannel.1 type vxlan id 1 local 192.0.2.1 dev eth0 dstport 8472 nolearning",
            "link set flannel.1 up",
            "link add veth0 type veth peer name pod0",
            "link set veth0 up",
        ] {
            ip(command);
        }
        work();
    })
    .join();
    if let Err(panic) = result {
        resume_unwind(panic);
    }
}

pub(crate) fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().unwrap();
    assert!(status.success(), "ip {arguments}");
}

pub(crate) fn open(pins: &Path, attach: AttachMode) -> Loaded {
    Loaded::open(&options(pins, attach), Needs::default(), None).unwrap()
}

/// With a small flow table.
pub(crate) fn options(pins: &Path, attach: AttachMode) -> ProgramOptions {
    ProgramOptions {
        flow_table_size: 4096,
        verify_source: VerifySource::default(),
        attach,
        grace_periods: GracePeriodMode::default(),
        xdp: XdpMode::Auto,
        attach_iface: None,
        pin_dir: pins.to_owned(),
    }
}

pub(crate) fn veth(name: &str) -> PodVeth {
    PodVeth {
        ifindex: if_nametoindex(name).unwrap(),
        name: name.to_owned(),
        mtu: 1450,
        entry: Some(VethEntry { inward: Inward::Peer, keep_out: false }),
    }
}

/// Ensures the hooks; what had to be attached.
pub(crate) fn ensure(datapath: &mut Loaded, veths: &[PodVeth]) -> Vec<String> {
    datapath.keep_pins();
    let report = datapath.ensure_hooks(places("flannel.1", veths));
    assert!(report.failed.is_empty(), "{:?}", report.failed);
    report.attached
}

pub(crate) fn peer(third: u8) -> Peer {
    Peer {
        subnet: Ipv4Network::new(Ipv4Addr::new(10, 5, third, 0), 24).unwrap(),
        vtep_mac: MacAddr([2, 0, 0, 0, 0, third]),
        public_ip: Ipv4Addr::new(192, 0, 2, third),
    }
}

/// A device that is there, or has gone.
pub(crate) fn device(name: &str) -> Device<'_> {
    Device { ifindex: if_nametoindex(name).unwrap_or(u32::MAX >> 1), name }
}

pub(crate) fn places<'a>(overlay: &'a str, veths: &'a [PodVeth]) -> Places<'a> {
    Places {
        underlay: device("eth0"),
        underlay_kind: "veth",
        inlets: &[],
        overlay: Some(device(overlay)),
        direct: false,
        veths,
        turn: std::time::Duration::MAX,
    }
}
