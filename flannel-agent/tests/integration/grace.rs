//! Grace periods of RCU while programs are attached.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, Instant};

use flannel_agent::bpf::loader::Loaded;
use flannel_agent::bpf::{
    AttachMode, Datapath as _, GracePeriodMode, Needs, ProgramOptions, cleanup,
};
use flannel_ebpf::abi::ABI_VERSION;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use crate::place::{ensure, ip, isolated, open, options, veth};

const SETTING: &str = "/sys/kernel/rcu_expedited";

/// Waits until the setting is 0: other tests change it for moments too.
fn is_restored() -> bool {
    let end = Instant::now() + Duration::from_secs(2);
    while fs::read_to_string(SETTING).unwrap().trim() != "0" {
        if Instant::now() > end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    true
}

fn runs_any(datapath: &Loaded, ifindex: u32) -> bool {
    let there = datapath.teller().tcx(ifindex).unwrap();
    !(there.ingress.is_empty() && there.egress.is_empty())
}

/// As an agent leaves them that is killed while it attaches.
fn leave_short(pins: &Path) -> std::path::PathBuf {
    let record = pins.join(format!("v{ABI_VERSION}/expedited"));
    symlink("rcu_expedited", &record).unwrap();
    fs::write(SETTING, "1").unwrap();
    record
}

#[test]
fn many_programs_are_attached_in_a_fraction_of_the_time() {
    isolated(|pins| {
        let names: Vec<_> = (1..=8).map(|number| format!("veth{number}")).collect();
        for name in &names {
            ip(&format!("link add {name} type veth peer name {name}p"));
        }
        let veths: Vec<_> = names.iter().map(|name| veth(name)).collect();
        let took = |grace_periods| {
            let options = ProgramOptions { grace_periods, ..options(pins, AttachMode::Tcx) };
            let mut datapath = Loaded::open(&options, Needs::default(), None).unwrap();
            ensure(&mut datapath, &[]);
            let began = Instant::now();
            assert_eq!(ensure(&mut datapath, &veths).len(), 2 * veths.len());
            let took = began.elapsed();
            ensure(&mut datapath, &[]);
            // The kernel ends links beside what asked for it, with a grace period for each.
            let end = Instant::now() + Duration::from_secs(10);
            while veths.iter().any(|veth| runs_any(&datapath, veth.ifindex)) {
                assert!(Instant::now() < end, "programs remain");
                std::thread::sleep(Duration::from_millis(5));
            }
            took
        };
        // Other tests may make them short meanwhile.
        let normal = (0..3).map(|_| took(GracePeriodMode::Normal)).max().unwrap();
        let short = (0..3).map(|_| took(GracePeriodMode::Expedited)).min().unwrap();
        assert!(short * 3 < normal, "normal {normal:?}, expedited {short:?}");
        assert!(is_restored());
    });
}

#[test]
fn an_agent_that_was_killed_leaves_them_to_the_next() {
    isolated(|pins| {
        drop(open(pins, AttachMode::Tcx));
        let record = leave_short(pins);
        drop(open(pins, AttachMode::Tcx));
        assert!(is_restored());
        assert!(fs::symlink_metadata(record).is_err());
    });
}

#[test]
fn cleanup_restores_them() {
    isolated(|pins| {
        drop(open(pins, AttachMode::Tcx));
        leave_short(pins);
        cleanup(pins, false).unwrap();
        assert!(is_restored());
    });
}

/// Does it where the setting cannot be written.
fn where_it_is_read_only(work: impl FnOnce() + Send) {
    let bind = |from: Option<&str>, to: &str, flags: MsFlags| {
        mount(from, to, None::<&str>, flags, None::<&str>).unwrap();
    };
    let alone = || {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        bind(None, "/", MsFlags::MS_REC | MsFlags::MS_PRIVATE);
        bind(Some(SETTING), SETTING, MsFlags::MS_BIND);
        bind(None, SETTING, MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY);
        work();
    };
    std::thread::scope(|scope| scope.spawn(alone).join().unwrap());
}

#[test]
fn a_cleanup_that_cannot_restore_them_says_so_and_leaves_that_to_the_next() {
    isolated(|pins| {
        let mut datapath = open(pins, AttachMode::Tcx);
        ensure(&mut datapath, &[veth("veth0")]);
        drop(datapath);
        let record = leave_short(pins);
        // Another version's, whichever of both is looked at first.
        let other = pins.join("v1");
        fs::create_dir(&other).unwrap();
        symlink("rcu_expedited", other.join("expedited")).unwrap();
        fs::create_dir(other.join("links")).unwrap();
        where_it_is_read_only(|| {
            let said = cleanup(pins, false).unwrap_err().to_string();
            assert!(said.contains(SETTING) && said.contains("write 0"), "{said}");
        });
        for links in [record.with_file_name("links"), other.join("links")] {
            assert!(!links.exists(), "{} is removed all the same", links.display());
        }
        assert!(fs::symlink_metadata(&record).is_ok());
        cleanup(pins, false).unwrap();
        assert!(is_restored());
    });
}
