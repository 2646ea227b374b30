//! What may be reused of an earlier run, and whose it is.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use aya::maps::MapInfo;
use aya::programs::links::FdLink;
use aya::programs::tc::TcAttachOptions;
use aya::programs::{LinkOrder, SchedClassifier, TcAttachType};
use flannel_agent::bpf::loader::Loaded;
use flannel_agent::bpf::{
    self, AttachMode, Datapath as _, Needs, ProgramOptions, flow_table, unless_interrupted,
};
use flannel_ebpf::abi::ABI_VERSION;

use crate::place::{elsewhere, ensure, ip, isolated, open, options, peer, veth};

/// Programs on a hook: tcx's, then filters'.
fn running(interface: &str, direction: TcAttachType) -> Vec<String> {
    let (_, programs) = SchedClassifier::query_tcx(interface, direction).unwrap();
    let mut names: Vec<String> =
        programs.iter().map(|program| program.name_as_str().unwrap().to_owned()).collect();
    let word = if direction == TcAttachType::Egress { "egress" } else { "ingress" };
    let output =
        Command::new("tc").args(["filter", "show", "dev", interface, word]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let filters = text.lines().filter_map(|line| line.split("handle ").nth(1));
    names.extend(filters.map(|line| line.split(' ').nth(1).unwrap().to_owned()));
    names
}

fn of_the_pod() -> [Vec<String>; 2] {
    [TcAttachType::Ingress, TcAttachType::Egress].map(|direction| running("veth0", direction))
}

/// The kernel frees a link some time after its last reference.
#[track_caller]
fn soon(holds: impl Fn() -> bool) {
    for _ in 0..250 {
        if holds() {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("{:?}", of_the_pod());
}

fn pin(pins: &Path, program: &str) -> std::path::PathBuf {
    pins.join(format!("v{ABI_VERSION}/links/{}-{program}", veth("veth0").ifindex))
}

/// Whoever moves a link's pin, or mounts something over it, does not detach the program.
#[test]
fn a_link_that_runs_on_without_its_pin_gets_it_back() {
    isolated(|pins| {
        let mut agent = open(pins, AttachMode::Tcx);
        ensure(&mut agent, &[veth("veth0")]);
        let before = of_the_pod();
        let (here, elsewhere) = (pin(pins, "from_pod"), pins.join("elsewhere"));
        fs::rename(&here, &elsewhere).unwrap();
        assert_eq!(ensure(&mut agent, &[veth("veth0")]), [""; 0], "it runs");
        assert!(here.exists(), "pinned again");
        assert_eq!(agent.unpinned(), None);
        fs::remove_file(&elsewhere).unwrap();
        assert_eq!(ensure(&mut agent, &[veth("veth0")]), [""; 0]);
        assert_eq!(of_the_pod(), before, "the same link");
        // A place that is taken is told.
        fs::rename(&here, &elsewhere).unwrap();
        fs::create_dir(&here).unwrap();
        ensure(&mut agent, &[veth("veth0")]);
        let why = agent.unpinned().unwrap();
        assert!(why.contains("veth0/from_pod"), "{why}");
        fs::remove_dir(&here).unwrap();
        ensure(&mut agent, &[veth("veth0")]);
        assert_eq!(agent.unpinned(), None, "recovered");
        fs::remove_file(&elsewhere).unwrap();
        assert_eq!(of_the_pod(), before);
    });
}

#[test]
fn one_agent_at_a_time() {
    isolated(|pins| {
        let mut first = open(pins, AttachMode::Tcx);
        ensure(&mut first, &[veth("veth0")]);
        assert_eq!(first.unpinned(), None);
        let mode = fs::metadata(pins).unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode, 0o700, "who may read a directory may lock it");
        let second = open(pins, AttachMode::Tcx);
        let why = second.unpinned().unwrap();
        assert!(why.contains("another agent uses it") && why.contains("--pin-dir"), "{why}");
        let refused = bpf::cleanup(pins, false).unwrap_err().to_string();
        assert!(refused.contains("another agent uses it"), "{refused}");
        assert_eq!(of_the_pod(), [["from_pod"], ["to_pod"]]);
        drop((first, second));
        assert_eq!(open(pins, AttachMode::Tcx).unpinned(), None);
    });
}

#[test]
fn a_directory_that_somebody_removed_is_made_anew() {
    isolated(|pins| {
        let mut agent = open(pins, AttachMode::Tcx);
        ensure(&mut agent, &[veth("veth0")]);
        agent.put_peers(&[peer(2)]).unwrap();
        let all = |folder: &Path| {
            let entries = fs::read_dir(folder).into_iter().flatten().flatten();
            let mut names: Vec<_> = entries.map(|entry| entry.file_name()).collect();
            names.sort();
            names
        };
        let version = pins.join(format!("v{ABI_VERSION}"));
        let before = (all(&version), all(&version.join("links")));
        // One pin, all of them with their directories, and all again.
        fs::remove_file(version.join("fl_cfg")).unwrap();
        ensure(&mut agent, &[veth("veth0")]);
        assert_eq!(all(&version), before.0);
        for _ in 0..2 {
            for folder in [version.join("links"), version.join("xdp"), version.clone()] {
                for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
                    let _ = fs::remove_file(entry.path());
                }
                fs::remove_dir(&folder).unwrap();
            }
            fs::remove_dir(pins).unwrap();
            // The kernel lists a link's program for a moment after its end.
            for _ in 0..50 {
                ensure(&mut agent, &[veth("veth0")]);
                std::thread::sleep(Duration::from_millis(20));
            }
            assert_eq!((all(&version), all(&version.join("links"))), before);
            assert_eq!(agent.unpinned(), None);
        }
        let second = open(pins, AttachMode::Tcx);
        assert!(second.unpinned().unwrap().contains("another agent uses it"));
        // The same maps: another start has the peers.
        drop(agent);
        let mut again = open(pins, AttachMode::Tcx);
        assert_eq!(again.peers().unwrap().len(), 1);
        drop(again);
        // Somebody else takes the place meanwhile.
        let mut agent = open(pins, AttachMode::Tcx);
        ensure(&mut agent, &[veth("veth0")]);
        let gone = &pins.with_file_name(format!("flannel-gone-{}", std::process::id()));
        fs::rename(pins, gone).unwrap();
        let other = open(pins, AttachMode::Tcx);
        assert_eq!(other.unpinned(), None);
        fs::remove_file(version.join("fl_cfg")).unwrap();
        ensure(&mut agent, &[veth("veth0")]);
        assert!(agent.unpinned().unwrap().contains("another agent uses it"));
        drop((agent, other));
        bpf::cleanup(gone, true).unwrap();
    });
}

#[test]
fn cleanup_by_force_asks_nobody() {
    isolated(|pins| {
        let mut agent = open(pins, AttachMode::Tcx);
        ensure(&mut agent, &[]);
        assert!(!bpf::cleanup(pins, true).unwrap().is_empty());
        assert!(!pins.exists());
    });
}

/// All devices have the same indexes there.
#[test]
fn another_network_namespaces_links_are_left_alone() {
    isolated(|pins| {
        let mut first = open(pins, AttachMode::Tcx);
        ensure(&mut first, &[veth("veth0")]);
        first.put_peers(&[peer(2)]).unwrap();
        drop(first);
        let there = pins.to_owned();
        elsewhere(move || {
            let mut second = open(&there, AttachMode::Tcx);
            let why = second.unpinned().unwrap();
            assert!(why.contains("programs of another network namespace"), "{why}");
            assert_eq!(second.peers().unwrap().len(), 0);
            // Hooks come and go here without a change there.
            ensure(&mut second, &[veth("veth0")]);
            ensure(&mut second, &[]);
            drop(second);
            let refused = bpf::cleanup(&there, false).unwrap_err().to_string();
            assert!(refused.contains("programs of another network namespace"), "{refused}");
        });
        assert_eq!(of_the_pod(), [["from_pod"], ["to_pod"]]);
        let mut again = open(pins, AttachMode::Tcx);
        assert_eq!(ensure(&mut again, &[veth("veth0")]), [""; 0], "taken over");
        assert_eq!(again.peers().unwrap().len(), 1);
    });
}

fn a_namespace_that_has_gone(attach: AttachMode) {
    isolated(move |pins| {
        let there = pins.to_owned();
        elsewhere(move || {
            let mut first = open(&there, attach);
            ensure(&mut first, &[veth("veth0")]);
            first.put_peers(&[peer(2)]).unwrap();
        });
        // The kernel ends a namespace some time after its last thread.
        for _ in 0..500 {
            let mut second = open(pins, attach);
            if second.unpinned().is_none() {
                assert_eq!(second.peers().unwrap().len(), 0, "its maps are not ours");
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("{:?}", open(pins, attach).unpinned());
    });
}

#[test]
fn the_links_of_a_namespace_that_has_gone_are_removed() {
    a_namespace_that_has_gone(AttachMode::Tcx);
}

#[test]
fn the_maps_of_a_namespace_that_has_gone_are_removed() {
    a_namespace_that_has_gone(AttachMode::Clsact);
}

#[test]
fn a_link_is_reused_only_where_it_is_attached() {
    isolated(|pins| {
        let mut first = open(pins, AttachMode::Tcx);
        ip("link add veth1 type veth peer name pod1");
        ensure(&mut first, &[veth("veth0"), veth("veth1")]);
        drop(first);
        // As if veth0 had become veth1 meanwhile: the link's device is another.
        let other = pin(pins, "x").with_file_name(format!("{}-from_pod", veth("veth1").ifindex));
        fs::rename(other, pin(pins, "from_pod")).unwrap();
        let mut second = open(pins, AttachMode::Tcx);
        assert_eq!(ensure(&mut second, &[veth("veth0")]), ["veth0/from_pod"]);
        // The kernel lets go of a closed link a little later.
        soon(|| of_the_pod() == [["from_pod"], ["to_pod"]]);
        soon(|| running("veth1", TcAttachType::Ingress).is_empty());
    });
}

#[test]
fn a_link_with_another_program_is_not_reused() {
    isolated(|pins| {
        let mut first = open(pins, AttachMode::Tcx);
        ensure(&mut first, &[]);
        drop(first);
        let object = bpf::object().unwrap();
        let mut ebpf = aya::Ebpf::load(&object).unwrap();
        let program: &mut SchedClassifier = ebpf.program_mut("to_pod").unwrap().try_into().unwrap();
        unless_interrupted(|| program.load()).unwrap();
        let options = TcAttachOptions::TcxOrder(LinkOrder::default());
        let id = program.attach_with_options("veth0", TcAttachType::Ingress, options).unwrap();
        let link = FdLink::try_from(program.take_link(id).unwrap()).unwrap();
        drop(link.pin(pin(pins, "from_pod")).unwrap());
        assert_eq!(running("veth0", TcAttachType::Ingress), ["to_pod"]);
        let mut second = open(pins, AttachMode::Tcx);
        assert_eq!(ensure(&mut second, &[veth("veth0")]), ["veth0/to_pod", "veth0/from_pod"]);
        soon(|| of_the_pod() == [["from_pod"], ["to_pod"]]);
    });
}

#[test]
fn what_is_no_link_makes_way() {
    isolated(|pins| {
        drop(open(pins, AttachMode::Tcx));
        let path = pin(pins, "from_pod");
        let status = Command::new("bpftool")
            .args(["map", "create", path.to_str().unwrap(), "type", "hash", "key", "4"])
            .args(["value", "8", "entries", "3", "name", "other"])
            .status()
            .unwrap();
        assert!(status.success());
        let mut datapath = open(pins, AttachMode::Tcx);
        ensure(&mut datapath, &[veth("veth0")]);
        drop(datapath);
        let mut again = open(pins, AttachMode::Tcx);
        assert_eq!(ensure(&mut again, &[veth("veth0")]), [""; 0], "it was pinned");
    });
}

#[test]
fn where_nothing_can_be_pinned_the_old_programs_go() {
    isolated(|pins| {
        let mut first = open(pins, AttachMode::Tcx);
        ensure(&mut first, &[veth("veth0")]);
        drop(first);
        let stats = pins.join(format!("v{ABI_VERSION}/fl_stats"));
        fs::remove_file(&stats).unwrap();
        // An empty one would make way.
        fs::create_dir_all(stats.join("other")).unwrap();
        let mut second = open(pins, AttachMode::Tcx);
        assert!(second.unpinned().unwrap().contains("fl_stats"), "{:?}", second.unpinned());
        assert_eq!(ensure(&mut second, &[veth("veth0")]), [""; 0], "in place");
        assert_eq!(of_the_pod(), [["from_pod"], ["to_pod"]]);
        assert!(!pin(pins, "from_pod").exists());
        drop(second);
        soon(|| of_the_pod() == [[""; 0], [""; 0]]);
        fs::remove_dir(stats.join("other")).unwrap();
        assert_eq!(open(pins, AttachMode::Tcx).unpinned(), None);
    });
}

#[test]
fn the_form_of_the_hooks_can_change() {
    isolated(|pins| {
        let veths = [veth("veth0")];
        for attach in [AttachMode::Tcx, AttachMode::Clsact, AttachMode::Tcx, AttachMode::Clsact] {
            ensure(&mut open(pins, attach), &veths);
            soon(|| of_the_pod() == [["from_pod"], ["to_pod"]]);
        }
        // A veth that is not served any more.
        ensure(&mut open(pins, AttachMode::Clsact), &[]);
        assert_eq!(of_the_pod(), [[""; 0], [""; 0]]);
    });
}

#[test]
fn the_flow_table_has_head_room_and_is_kept() {
    isolated(|pins| {
        let table = || MapInfo::from_pin(pins.join(format!("v{ABI_VERSION}/fl_flows4"))).unwrap();
        drop(open(pins, AttachMode::Tcx));
        let first = table();
        assert_eq!(first.max_entries(), flow_table::entries(4096).unwrap());
        drop(open(pins, AttachMode::Tcx));
        assert_eq!(table().id(), first.id(), "it fits");
        let larger = ProgramOptions { flow_table_size: 4608, ..options(pins, AttachMode::Tcx) };
        drop(Loaded::open(&larger, Needs::default(), None).unwrap());
        assert_eq!(table().max_entries(), flow_table::entries(4608).unwrap());
    });
}

/// The first edition unlinks what it finds in other versions' directories.
#[test]
fn a_frozen_map_is_made_anew() {
    isolated(|pins| {
        let map = pins.join(format!("v{ABI_VERSION}/fl_peers4"));
        let id = || MapInfo::from_pin(&map).unwrap().id();
        let mut first = open(pins, AttachMode::Tcx);
        first.put_peers(&[peer(7)]).unwrap();
        let before = id();
        let frozen =
            Command::new("bpftool").args(["map", "freeze", "pinned"]).arg(&map).status().unwrap();
        assert!(frozen.success());
        let error = first.put_peers(&[peer(8)]).unwrap_err().to_string();
        assert!(error.contains("fl_peers4"), "{error}");
        drop(first);
        let mut next = open(pins, AttachMode::Tcx);
        assert_ne!(id(), before);
        next.put_peers(&[peer(8)]).unwrap();
    });
}

#[test]
fn a_version_holds_nothing_that_cannot_be_unlinked() {
    isolated(|pins| {
        let mut datapath = open(pins, AttachMode::Tcx);
        ensure(&mut datapath, &[veth("veth0")]);
        let version = pins.join(format!("v{ABI_VERSION}"));
        assert_eq!(fs::read_dir(pins).unwrap().count(), 1, "beside versions there is nothing");
        for folder in [version.join("xdp"), version.join("links"), version] {
            for entry in fs::read_dir(&folder).unwrap() {
                fs::remove_file(entry.unwrap().path()).unwrap();
            }
            fs::remove_dir(&folder).unwrap();
        }
    });
}
