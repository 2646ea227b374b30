//! Loading, pinning and attaching, in network namespaces of their own.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use flannel_agent::bpf::{
    AttachMode, Datapath as _, DatapathConfig, Device, FastPath, OTHERS, Places, VerifySource,
};
use flannel_agent::metrics::{Exporter, Format, MetricsOptions};
use flannel_agent::status::{Shared, SharedDatapath, lock};
use flannel_core::envelope::{Inlet, Inward, Keep, PodVeth, VethEntry};
use flannel_core::mac::MacAddr;
use flannel_core::peer::Peer;
use flannel_core::schedule::HOOKS_REST;
use flannel_ebpf::abi::{
    ABI_VERSION, Config, Exemption, MAX_EXEMPTIONS, MAX_PEER_STATS, MAX_PEERS, MAX_VETHS, Veth,
    flag,
};
use ipnetwork::Ipv4Network;
use nix::net::if_::if_nametoindex;

use crate::place::{device, ensure, ip, isolated, open, peer, places, veth};

fn settings() -> DatapathConfig {
    DatapathConfig {
        window: Duration::from_secs(5),
        udp_window: Duration::from_secs(2),
        verify_source: VerifySource::Drop,
        fast_path: FastPath::Confirmed,
        tcp: true,
        vni: 1,
        gbp: false,
        port: 8472,
        underlay: if_nametoindex("eth0").unwrap(),
        underlay_vrf: None,
        overlay: if_nametoindex("flannel.1").unwrap(),
        local: Ipv4Addr::new(192, 0, 2, 1),
        network: "10.5.0.0/16".parse().unwrap(),
        subnet: "10.5.1.0/24".parse().unwrap(),
        mtu: 1450,
        direct_mtu: None,
        vtep_mac: MacAddr([2, 0, 0, 0, 0, 1]),
        source_ports: (32_768, 60_999),
        ttl: 64,
    }
}

const HOOKS: [&str; 5] = [
    "flannel.1/to_overlay",
    "veth0/to_pod",
    "flannel.1/from_overlay",
    "eth0/from_underlay",
    "veth0/from_pod",
];

fn survives_a_restart(attach: AttachMode) {
    isolated(move |pins| {
        let mut first = open(pins, attach);
        let veths = [veth("veth0")];
        assert_eq!(ensure(&mut first, &veths), HOOKS, "exit hooks first");
        assert_eq!(ensure(&mut first, &veths), [""; 0], "nothing to do");
        first.put_peers(&[peer(2)]).unwrap();
        drop(first);
        let mut second = open(pins, attach);
        assert_eq!(second.peers().unwrap(), BTreeMap::from([(peer(2).subnet, peer(2))]));
        assert_eq!(ensure(&mut second, &veths), [""; 0], "taken over, not attached anew");
        assert_eq!(ensure(&mut second, &veths), [""; 0]);
    });
}

#[test]
fn tcx_hooks_survive_a_restart() {
    survives_a_restart(AttachMode::Tcx);
}

#[test]
fn clsact_hooks_survive_a_restart() {
    survives_a_restart(AttachMode::Clsact);
}

#[test]
fn a_removed_tcx_hook_comes_back() {
    isolated(|pins| {
        let mut datapath = open(pins, AttachMode::Tcx);
        ensure(&mut datapath, &[veth("veth0")]);
        for program in ["from_pod", "to_pod"] {
            let pin = format!("v{ABI_VERSION}/links/{}-{program}", veth("veth0").ifindex);
            std::fs::remove_file(pins.join(pin)).unwrap();
        }
        // The kernel frees a link some time after its last reference.
        let mut attached = Vec::new();
        for _ in 0..100 {
            attached.extend(ensure(&mut datapath, &[veth("veth0")]));
            std::thread::sleep(Duration::from_millis(20));
        }
        // Whichever it frees first.
        attached.sort();
        assert_eq!(attached, ["veth0/from_pod", "veth0/to_pod"]);
    });
}

#[test]
fn a_removed_clsact_filter_comes_back() {
    isolated(|pins| {
        let mut datapath = open(pins, AttachMode::Clsact);
        ensure(&mut datapath, &[veth("veth0")]);
        let status =
            Command::new("tc").args(["qdisc", "del", "dev", "veth0", "clsact"]).status().unwrap();
        assert!(status.success());
        std::thread::sleep(HOOKS_REST);
        assert_eq!(ensure(&mut datapath, &[veth("veth0")]), ["veth0/to_pod", "veth0/from_pod"]);
    });
}

#[test]
fn hooks_follow_the_veths() {
    isolated(|pins| {
        let mut datapath = open(pins, AttachMode::Auto);
        ensure(&mut datapath, &[veth("veth0")]);
        ip("link add veth1 type veth peer name pod1");
        let both = [veth("veth0"), veth("veth1")];
        assert_eq!(ensure(&mut datapath, &both), ["veth1/to_pod", "veth1/from_pod"]);
        // Not wanted any more, and gone altogether.
        ip("link del veth1");
        ensure(&mut datapath, &[]);
        let left: Vec<String> = std::fs::read_dir(pins.join(format!("v{ABI_VERSION}/links")))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        assert_eq!(left.len(), 3, "{left:?}");
        assert!(left.iter().all(|name| !name.ends_with("_pod")), "{left:?}");
    });
}

#[test]
fn a_missing_device_is_reported() {
    isolated(|pins| {
        let mut datapath = open(pins, AttachMode::Auto);
        let report = datapath.ensure_hooks(places("flannel.9", &[]));
        assert_eq!(report.failed.len(), 1);
        assert!(report.failed[0].1.to_string().contains("flannel.9"));
        assert_eq!(report.attached, [""; 0], "nothing without the tunnel's device");
    });
}

#[test]
fn a_pod_that_ended_since_it_was_listed_is_no_failure() {
    isolated(|pins| {
        for attach in [AttachMode::Tcx, AttachMode::Clsact] {
            let mut datapath = open(pins, attach);
            ip("link add veth9 type veth peer name pod9");
            let listed = [veth("veth9"), veth("veth0")];
            ip("link del veth9");
            let attached = ensure(&mut datapath, &listed);
            let pods: Vec<_> = attached.iter().filter(|name| name.contains("_pod")).collect();
            assert_eq!(pods, ["veth0/to_pod", "veth0/from_pod"], "{attached:?}");
        }
    });
}

/// Nothing is attached to a device that took the name since it was looked up.
#[test]
fn a_device_that_only_bears_the_name_is_left_alone() {
    isolated(|pins| {
        let mut datapath = open(pins, AttachMode::Auto);
        ip("link add eth1 type veth peer name wire1");
        let underlay = device("eth0");
        let renamed = Device { name: "eth1", ..underlay };
        let report =
            datapath.ensure_hooks(Places { underlay: renamed, ..places("flannel.1", &[]) });
        let failed: Vec<String> =
            report.failed.iter().map(|(_, error)| error.to_string()).collect();
        assert_eq!(failed.len(), 1, "{failed:?}");
        assert!(failed[0].contains("eth1/from_underlay"), "{failed:?}");
        let teller = datapath.teller();
        assert!(teller.tcx(if_nametoindex("eth1").unwrap()).unwrap().ingress.is_empty());
        ensure(&mut datapath, &[]);
        assert_eq!(teller.tcx(underlay.ifindex).unwrap().ingress.len(), 1);
    });
}

#[test]
fn a_pinned_map_of_another_shape_is_not_reused() {
    isolated(|pins| {
        drop(open(pins, AttachMode::Auto));
        let stats = pins.join(format!("v{ABI_VERSION}/fl_stats"));
        std::fs::remove_file(&stats).unwrap();
        let status = Command::new("bpftool")
            .args(["map", "create", stats.to_str().unwrap(), "type", "hash", "key", "4"])
            .args(["value", "8", "entries", "3", "name", "fl_stats"])
            .status()
            .unwrap();
        assert!(status.success());
        let datapath = open(pins, AttachMode::Auto);
        assert!(datapath.outcomes().unwrap().values().all(|&count| count == 0));
    });
}

#[test]
fn peers_are_put_moved_and_removed() {
    isolated(|pins| {
        let mut datapath = open(pins, AttachMode::Auto);
        let many: Vec<Peer> = (0..2000u32)
            .map(|index| Peer {
                subnet: Ipv4Network::new(Ipv4Addr::from(0x0a06_0000 + index * 16), 28).unwrap(),
                vtep_mac: MacAddr([2, 0, 0, 1, (index >> 8) as u8, index as u8]),
                public_ip: Ipv4Addr::from(0xc633_0000 + index),
            })
            .collect();
        datapath.put_peers(&many).unwrap();
        assert_eq!(datapath.peers().unwrap().into_values().collect::<Vec<_>>(), many);
        let moved = Peer { public_ip: Ipv4Addr::new(192, 0, 2, 9), ..many[0] };
        datapath.put_peers(&[moved]).unwrap();
        assert_eq!(datapath.peers().unwrap()[&moved.subnet], moved);
        let subnets: Vec<Ipv4Network> = many[1..].iter().map(|peer| peer.subnet).collect();
        datapath.remove_peers(&subnets).unwrap();
        datapath.remove_peers(&subnets).unwrap();
        assert_eq!(datapath.peers().unwrap(), BTreeMap::from([(moved.subnet, moved)]));
        assert_eq!(datapath.meter().peer_counters().unwrap().len(), 1);
    });
}

/// Within 20 ms when built for release; without optimisation, and on a busy
/// machine, the order of magnitude only.
#[test]
fn a_scrape_of_5000_peers_is_quick() {
    isolated(|pins| {
        let mut datapath = open(pins, AttachMode::Auto);
        let many = (0..5000u32).map(|index| Peer {
            subnet: Ipv4Network::new(Ipv4Addr::from(0x0a06_0000 + index * 16), 28).unwrap(),
            vtep_mac: MacAddr([2, 0, 0, 1, (index >> 8) as u8, index as u8]),
            public_ip: Ipv4Addr::from(0xc633_0000 + index),
        });
        datapath.put_peers(&many.collect::<Vec<_>>()).unwrap();
        let shared = SharedDatapath::default();
        *lock(&shared) = Some(Box::new(datapath));
        let (options, checks) = (MetricsOptions::default(), VerifySource::default());
        let exporter = Exporter::new(Shared::default(), shared, options, checks);
        let times = (0..10).map(|_| {
            let began = std::time::Instant::now();
            let text = exporter.scrape(Format::OpenMetrics);
            assert!(text.contains("flannel_packets_total{path=\"fast\",direction=\"in\"} 0"));
            began.elapsed()
        });
        let best = times.min().unwrap();
        println!("{best:?}");
        let limit = if cfg!(debug_assertions) { 200 } else { 20 };
        assert!(best < Duration::from_millis(limit), "{best:?}");
    });
}

#[test]
fn bpftool_prints_the_names_of_the_fields() {
    isolated(|pins| {
        let mut datapath = open(pins, AttachMode::Auto);
        datapath.put_peers(&[peer(2)]).unwrap();
        let output = Command::new("bpftool")
            .args(["map", "dump", "pinned"])
            .arg(pins.join(format!("v{ABI_VERSION}/fl_subnets4")))
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        for field in ["vtep_mac", "public_ip", "peer_id", "prefix_len"] {
            assert!(text.contains(field), "{field} in {text}");
        }
    });
}

#[test]
fn the_generation_rises_only_when_something_changed() {
    isolated(|pins| {
        let mut datapath = open(pins, AttachMode::Auto);
        let generation = || config(pins).generation;
        datapath.configure(&settings()).unwrap();
        let configured = generation();
        datapath.configure(&settings()).unwrap();
        assert_eq!(generation(), configured);
        datapath.configure(&DatapathConfig { tcp: false, ..settings() }).unwrap();
        assert_eq!(generation(), configured + 2);
        datapath.raise_generation().unwrap();
        assert_eq!(generation(), configured + 3);
    });
}

fn config(pins: &Path) -> flannel_ebpf::abi::Config {
    let map = aya::maps::MapData::from_pin(pins.join(format!("v{ABI_VERSION}/fl_cfg"))).unwrap();
    let array: aya::maps::Array<_, _> = aya::maps::Map::Array(map).try_into().unwrap();
    array.get(&0, 0).unwrap()
}

#[test]
fn settings_and_ways_of_the_kernel_do_not_undo_each_other() {
    isolated(|pins| {
        let mut datapath = open(pins, AttachMode::Auto);
        let mut teller = datapath.teller();
        datapath.configure(&settings()).unwrap();
        let before = config(pins);
        teller.set_keep(Keep { inward: true, tunnel: true, ..Keep::default() }).unwrap();
        let kept = config(pins);
        assert_eq!(kept.flags, before.flags | flag::KEEP_IN | flag::KEEP_TUNNEL);
        assert_ne!(kept.generation, before.generation);
        datapath.configure(&settings()).unwrap();
        assert_eq!(config(pins), kept, "nothing changed");
        datapath.configure(&DatapathConfig { tcp: false, ..settings() }).unwrap();
        assert_eq!(config(pins).flags, kept.flags & !flag::TCP);
        teller.set_keep(Keep::default()).unwrap();
        assert_eq!(config(pins).flags, before.flags & !flag::TCP);
        let generation = config(pins).generation;
        teller.set_keep(Keep::default()).unwrap();
        teller.raise_generation().unwrap();
        assert_eq!(config(pins).generation, generation + 1);
    });
}

fn known_veths(pins: &Path) -> aya::maps::HashMap<aya::maps::MapData, u32, Veth> {
    let map = aya::maps::MapData::from_pin(pins.join(format!("v{ABI_VERSION}/fl_veths")));
    aya::maps::Map::HashMap(map.unwrap()).try_into().unwrap()
}

#[test]
fn veths_that_somebody_deleted_changed_or_added_are_put_right() {
    isolated(|pins| {
        let datapath = open(pins, AttachMode::Auto);
        let mut teller = datapath.teller();
        let entry = Some(VethEntry { inward: Inward::Peer, keep_out: false });
        let veths = |names: &[u32]| -> Vec<PodVeth> {
            let veth = |ifindex: &u32| PodVeth {
                ifindex: *ifindex,
                name: format!("veth{ifindex}"),
                mtu: 1450,
                entry,
            };
            names.iter().map(veth).collect()
        };
        let now =
            || -> BTreeMap<u32, Veth> { known_veths(pins).iter().map(Result::unwrap).collect() };
        teller.set_veths(&veths(&[1, 2, 3])).unwrap();
        let right = now();
        assert_eq!(right.keys().copied().collect::<Vec<_>>(), [1, 2, 3]);
        for _ in 0..6 {
            let mut map = known_veths(pins);
            map.remove(&1).unwrap();
            map.insert(2, Veth { mtu: 9000, ..right[&2] }, 0).unwrap();
            teller.set_veths(&veths(&[1, 2, 3])).unwrap();
            assert_eq!(now(), right, "at once");
        }
        known_veths(pins).insert(9, right[&1], 0).unwrap();
        (0..5).for_each(|_| teller.set_veths(&veths(&[1, 2, 3])).unwrap());
        assert_eq!(now(), right, "soon");
        for some in [&[3, 4][..], &[5], &[]] {
            teller.set_veths(&veths(some)).unwrap();
            assert_eq!(now().into_keys().collect::<Vec<_>>(), some, "at once");
        }
    });
}

#[test]
fn more_veths_than_the_table_holds_make_no_failure() {
    isolated(|pins| {
        let datapath = open(pins, AttachMode::Auto);
        let mut teller = datapath.teller();
        let entry = Some(VethEntry { inward: Inward::Peer, keep_out: false });
        let veths = |first: u32| -> Vec<PodVeth> {
            (first..first + MAX_VETHS + 1)
                .map(|ifindex| PodVeth {
                    ifindex,
                    name: format!("veth{ifindex}"),
                    mtu: 1450,
                    entry: entry.filter(|_| ifindex != first),
                })
                .collect()
        };
        let known = || {
            let keys: BTreeSet<u32> = known_veths(pins).keys().map(Result::unwrap).collect();
            keys
        };
        teller.set_veths(&veths(1000)).unwrap();
        assert_eq!(known(), (1001..=1000 + MAX_VETHS).collect());
        // All go, and as many come.
        teller.set_veths(&veths(9000)).unwrap();
        assert_eq!(known(), (9001..=9000 + MAX_VETHS).collect());
    });
}

#[test]
fn a_full_table_takes_a_peers_new_address_and_a_new_peer_for_an_old_one() {
    isolated(|pins| {
        let mut datapath = open(pins, AttachMode::Auto);
        let numbered = |number: u32| Peer {
            subnet: Ipv4Network::new(Ipv4Addr::from(0x0a00_0000 + number * 16), 28).unwrap(),
            vtep_mac: MacAddr([2, 0, 1, (number >> 16) as u8, (number >> 8) as u8, number as u8]),
            public_ip: Ipv4Addr::from(0xac10_0000 + number),
        };
        let many: Vec<Peer> = (0..MAX_PEERS).map(numbered).collect();
        datapath.put_peers(&many).unwrap();
        // Those that share a counter are counted once.
        let counters = datapath.meter().peer_counters().unwrap();
        assert_eq!(counters.len(), MAX_PEER_STATS as usize);
        assert!(counters.contains_key(&OTHERS) && counters.contains_key(&many[0].subnet));
        let moved = Peer { public_ip: Ipv4Addr::new(192, 0, 2, 9), ..many[7] };
        datapath.remove_peers(&[many[8].subnet]).unwrap();
        datapath.put_peers(&[moved, numbered(MAX_PEERS)]).unwrap();
        let peers = datapath.peers().unwrap();
        assert_eq!(peers.len(), MAX_PEERS as usize);
        assert_eq!(peers[&moved.subnet], moved);
        assert!(peers.contains_key(&numbered(MAX_PEERS).subnet));
    });
}

#[test]
fn every_device_by_which_packets_may_come_has_its_hook() {
    isolated(|pins| {
        let mut datapath = open(pins, AttachMode::Auto);
        ip("link add eth1 type veth peer name wire1");
        let inlet = Inlet { ifindex: if_nametoindex("eth1").unwrap(), name: "eth1".to_owned() };
        let veths = [veth("veth0")];
        let inlets = [inlet];
        let with = Places { inlets: &inlets, ..places("flannel.1", &veths) };
        let attached = datapath.ensure_hooks(with).attached;
        assert_eq!(attached.len(), HOOKS.len() + 1, "{attached:?}");
        assert!(attached.contains(&"eth1/from_underlay".to_owned()));
        assert_eq!(datapath.teller().tcx(inlets[0].ifindex).unwrap().ingress.len(), 1);
        // It is one no more.
        ensure(&mut datapath, &veths);
        let gone = (0..100).any(|_| {
            std::thread::sleep(Duration::from_millis(20));
            datapath.teller().tcx(inlets[0].ifindex).unwrap().ingress.is_empty()
        });
        assert!(gone);
    });
}

#[test]
fn exemptions_stay_until_others_are_told() {
    isolated(|pins| {
        let mut datapath = open(pins, AttachMode::Auto);
        let array = |name: &str| {
            let path = pins.join(format!("v{ABI_VERSION}/{name}"));
            aya::maps::Map::Array(aya::maps::MapData::from_pin(path).unwrap())
        };
        let config = || {
            let map: aya::maps::Array<_, Config> = array("fl_cfg").try_into().unwrap();
            map.get(&0, 0).unwrap()
        };
        let told = || {
            let map: aya::maps::Array<_, Exemption> = array("fl_exemptions").try_into().unwrap();
            (0..config().exemptions).map(|index| map.get(&index, 0).unwrap()).collect::<Vec<_>>()
        };
        datapath.configure(&settings()).unwrap();
        assert_eq!(config().udp_window_ns, 2_000_000_000);
        let port = |dport_min: u16| Exemption { dport_min, proto: 17, ..Exemption::default() };
        let many: Vec<Exemption> = (0..u16::try_from(MAX_EXEMPTIONS).unwrap()).map(port).collect();
        for exemptions in [&many[..2], &many[1..3], &many[2..3], &many, &[]] {
            let before = config().generation;
            datapath.exempt(exemptions).unwrap();
            assert_eq!(told(), exemptions);
            let changed = config().generation;
            assert!(changed > before, "confirmations end");
            datapath.exempt(exemptions).unwrap();
            assert_eq!(config().generation, changed, "they are there already");
        }
        datapath.exempt(&many[..2]).unwrap();
        // Other settings leave them, and so does a restart.
        datapath.configure(&DatapathConfig { tcp: false, ..settings() }).unwrap();
        assert_eq!(told(), many[..2]);
        drop(datapath);
        let mut datapath = open(pins, AttachMode::Auto);
        datapath.configure(&settings()).unwrap();
        assert_eq!(told(), many[..2]);
        let too_many = [many.clone(), vec![Exemption::default()]].concat();
        assert!(datapath.exempt(&too_many).is_err());
        assert_eq!(told(), many[..2]);
    });
}

#[test]
fn a_pin_directory_elsewhere_means_no_pins() {
    isolated(|_| {
        let elsewhere = tempfile::tempdir().unwrap();
        let mut datapath = open(&elsewhere.path().join("pins"), AttachMode::Auto);
        assert_eq!(ensure(&mut datapath, &[veth("veth0")]), HOOKS);
        drop(datapath);
        let mut again = open(&elsewhere.path().join("pins"), AttachMode::Auto);
        assert_eq!(ensure(&mut again, &[veth("veth0")]), HOOKS, "gone with the agent");
    });
}
