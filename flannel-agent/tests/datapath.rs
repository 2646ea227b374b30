//! Loading, pinning and attaching, in network namespaces of their own.

mod place;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::process::Command;
use std::time::Duration;

use flannel_agent::bpf::{AttachMode, Datapath as _, DatapathConfig, FastPath, VerifySource};
use flannel_agent::desired::Peer;
use flannel_agent::mac::MacAddr;
use flannel_ebpf::abi::ABI_VERSION;
use ipnetwork::Ipv4Network;
use nix::net::if_::if_nametoindex;

use place::{ensure, ip, isolated, open, peer, places, veth};

fn settings() -> DatapathConfig {
    DatapathConfig {
        window: Duration::from_secs(5),
        verify_source: VerifySource::Drop,
        fast_path: FastPath::Confirmed,
        tcp: true,
        vni: 1,
        gbp: false,
        port: 8472,
        underlay: if_nametoindex("eth0").unwrap(),
        overlay: if_nametoindex("flannel.1").unwrap(),
        local: Ipv4Addr::new(192, 0, 2, 1),
        network: "10.5.0.0/16".parse().unwrap(),
        subnet: "10.5.1.0/24".parse().unwrap(),
        mtu: 1450,
        direct_mtu: None,
        vtep_mac: MacAddr([2, 0, 0, 0, 0, 1]),
        source_ports: (32_768, 60_999),
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
        assert_eq!(datapath.peer_counters().unwrap().len(), 1);
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
        let generation = || {
            let map =
                aya::maps::MapData::from_pin(pins.join(format!("v{ABI_VERSION}/fl_cfg"))).unwrap();
            let map = aya::maps::Map::Array(map);
            let array: aya::maps::Array<_, flannel_ebpf::abi::Config> = map.try_into().unwrap();
            array.get(&0, 0).unwrap().generation
        };
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
