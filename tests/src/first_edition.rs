//! The programs of ABI 1, as the first edition's agent left them on a node: maps
//! and links pinned below `v1`, settings, peers and veths written.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use aya::maps::lpm_trie::Key;
use aya::maps::{Array, HashMap, LpmTrie, Map, MapData, PerCpuArray};
use aya::programs::links::FdLink;
use aya::programs::tc::{NlOptions, TcAttachOptions, TcHandle, qdisc_add_clsact};
use aya::programs::{LinkOrder, SchedClassifier, TcAttachType, Xdp, xdp};
use aya::{Ebpf, EbpfLoader};
use flannel_agent::bpf::unless_interrupted;
use flannel_core::envelope::CLSACT_PRIORITY;
use nix::net::if_::if_nametoindex;

use crate::node::Node;

const OBJECT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/flannel-ebpf.v1.bpf.o");
const MAPS: [&str; 7] =
    ["fl_cfg", "fl_subnets4", "fl_peers4", "fl_flows4", "fl_veths", "fl_stats", "fl_peer_stats"];
const PROGRAMS: [&str; 5] = ["to_overlay", "to_pod", "from_overlay", "from_underlay", "from_pod"];
/// Programs of a node's devices.
const DEVICES: [(&str, &str); 3] =
    [("flannel.1", "to_overlay"), ("flannel.1", "from_overlay"), ("eth0", "from_underlay")];
const FAST_PATH: u32 = 1;
const TCP: u32 = 2;
const VERIFY_DROP: u32 = 4;
const XDP: u32 = 128;
/// Long enough that what it has confirmed stays confirmed.
const WINDOW: u64 = 60_000_000_000;

/// `struct Config` of ABI 1.
type Config = [u8; 72];

/// How they were attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Links, pinned.
    Tcx,
    /// Filters.
    Clsact,
}

/// What to leave on a node.
#[derive(Clone, Copy, Debug)]
pub struct Edition<'a> {
    /// Form of the TC hooks.
    pub form: Form,
    /// With `from_wire` in the driver of `eth0`.
    pub xdp: bool,
    /// Host-side veths that are served.
    pub veths: &'a [&'a str],
    /// Programs at hooks that they are not made for: interface, hook's program,
    /// program that is attached and pinned there.
    pub misplaced: &'a [(&'a str, &'a str, &'static str)],
}

impl Edition<'_> {
    /// Loads, attaches and pins it on `node`, with `peer` as the only other node.
    ///
    /// # Panics
    /// Something refuses.
    pub fn leave_on(&self, node: &Node, peer: &Node) {
        let dir = version(node.pin_dir());
        for folder in ["links", "xdp"] {
            fs::create_dir_all(dir.join(folder)).expect("a pin directory");
        }
        let object = fs::read(OBJECT).expect("the fixture");
        let mut loader = EbpfLoader::new();
        loader.map_max_entries("fl_flows4", 65_536);
        for name in MAPS {
            loader.map_pin_path(name, dir.join(name));
        }
        let mut ebpf = loader.load(&object).expect("the maps of the first edition");
        for name in PROGRAMS {
            let program = classifier(&mut ebpf, name);
            unless_interrupted(|| program.load()).expect("the verifier's consent");
        }
        let program = driver(&mut ebpf);
        unless_interrupted(|| program.load()).expect("the verifier's consent");
        node.netns.inside(|| {
            self.fill(&mut ebpf, node, peer);
            let veths = self.veths.iter();
            let of_pods = veths.flat_map(|veth| [(*veth, "to_pod"), (*veth, "from_pod")]);
            for (interface, program) in DEVICES.into_iter().chain(of_pods) {
                let misplaced =
                    self.misplaced.iter().find(|at| (at.0, at.1) == (interface, program));
                let runs = misplaced.map_or(program, |at| at.2);
                self.attach(&mut ebpf, &dir, interface, (program, runs));
            }
            if self.xdp {
                attach_xdp(&mut ebpf, &dir);
            }
        });
    }

    fn fill(&self, ebpf: &mut Ebpf, node: &Node, peer: &Node) {
        let index =
            |name: &str| if_nametoindex(name).unwrap_or_else(|error| panic!("{name}: {error}"));
        let (subnet, other) = (node.subnet(), peer.subnet());
        let flags = FAST_PATH | TCP | VERIFY_DROP | if self.xdp { XDP } else { 0 };
        let config: Vec<u8> = [
            &1_u32.to_ne_bytes()[..],
            &1_u32.to_ne_bytes(),
            &WINDOW.to_ne_bytes(),
            &flags.to_ne_bytes(),
            &1_u32.to_ne_bytes(),
            &index("eth0").to_ne_bytes(),
            &index("flannel.1").to_ne_bytes(),
            &node.address.octets(),
            &[10, 244, 0, 0],
            &[255, 255, 0, 0],
            &subnet.network().octets(),
            &subnet.mask().octets(),
            &8472_u16.to_be_bytes(),
            &1450_u16.to_ne_bytes(),
            &mac(&node.vtep_mac()),
            &32_768_u16.to_ne_bytes(),
            &60_999_u16.to_ne_bytes(),
            &[0; 6],
        ]
        .concat();
        let config: Config = config.try_into().expect("72 bytes");
        let mut settings: Array<MapData, Config> = map(ebpf, "fl_cfg");
        settings.set(0, config, 0).expect("settings");
        let mut value = [0_u8; 16];
        value[..6].copy_from_slice(&mac(&peer.vtep_mac()));
        value[8..12].copy_from_slice(&peer.address.octets());
        let mut subnets: LpmTrie<MapData, [u8; 4], [u8; 16]> = map(ebpf, "fl_subnets4");
        let key = Key::new(u32::from(other.prefix()), other.network().octets());
        subnets.insert(&key, value, 0).expect("a subnet");
        let mut peers: HashMap<MapData, [u8; 4], u32> = map(ebpf, "fl_peers4");
        peers.insert(peer.address.octets(), 0, 0).expect("a peer");
        let mut veths: HashMap<MapData, u32, [u32; 2]> = map(ebpf, "fl_veths");
        for veth in self.veths {
            // By bpf_redirect_peer.
            veths.insert(index(veth), [2, 1450], 0).expect("a veth");
        }
    }

    fn attach(
        &self,
        ebpf: &mut Ebpf,
        dir: &Path,
        interface: &str,
        (hook, runs): (&str, &'static str),
    ) {
        let program = classifier(ebpf, runs);
        let direction = match hook {
            "to_overlay" | "to_pod" => TcAttachType::Egress,
            _ => TcAttachType::Ingress,
        };
        let options = match self.form {
            Form::Tcx => TcAttachOptions::TcxOrder(LinkOrder::default()),
            Form::Clsact => {
                // There already for the second direction.
                let _ = qdisc_add_clsact(interface);
                TcAttachOptions::Netlink(NlOptions {
                    priority: CLSACT_PRIORITY,
                    handle: TcHandle::new(0, CLSACT_PRIORITY),
                    ..NlOptions::default()
                })
            }
        };
        let id = program.attach_with_options(interface, direction, options).expect(hook);
        let link = program.take_link(id).expect("the link");
        match self.form {
            Form::Tcx => {
                let ifindex = if_nametoindex(interface).expect("an interface");
                let path = dir.join(format!("links/{ifindex}-{hook}"));
                FdLink::try_from(link).expect("a tcx link").pin(path).expect("a pin");
            }
            // Dropping it would delete the filter.
            Form::Clsact => std::mem::forget(link),
        }
    }
}

fn attach_xdp(ebpf: &mut Ebpf, dir: &Path) {
    let program = driver(ebpf);
    let id = program.attach("eth0", xdp::XdpMode::Driver).expect("a free driver hook");
    let link = program.take_link(id).expect("the link");
    let ifindex = if_nametoindex("eth0").expect("an interface");
    let path = dir.join(format!("xdp/{ifindex}"));
    FdLink::try_from(link).expect("an XDP link").pin(path).expect("a pin");
}

fn classifier<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> &'a mut SchedClassifier {
    ebpf.program_mut(name).expect(name).try_into().expect("a classifier")
}

fn driver(ebpf: &mut Ebpf) -> &mut Xdp {
    ebpf.program_mut("from_wire").expect("from_wire").try_into().expect("an XDP program")
}

fn version(pin_dir: &Path) -> PathBuf {
    pin_dir.join("v1")
}

fn map<T: TryFrom<Map, Error: std::fmt::Debug>>(ebpf: &mut Ebpf, name: &str) -> T {
    ebpf.take_map(name).expect(name).try_into().expect(name)
}

fn mac(text: &str) -> [u8; 6] {
    let bytes: Vec<u8> =
        text.split(':').map(|byte| u8::from_str_radix(byte, 16).expect("a MAC")).collect();
    bytes.try_into().expect("six bytes")
}

/// What the first edition's programs have counted on the fast path: encapsulated,
/// decapsulated, and stripped in the driver.
///
/// # Panics
/// Its maps are not there.
pub fn carried(node: &Node) -> BTreeMap<&'static str, u64> {
    let data = MapData::from_pin(version(node.pin_dir()).join("fl_stats")).expect("fl_stats");
    let stats = PerCpuArray::<_, u64>::try_from(Map::PerCpuArray(data)).expect("counters");
    let read = |index| stats.get(&index, 0).expect("a counter").iter().sum();
    [("encap", 2), ("decap", 3), ("xdp", 4)].map(|(name, index)| (name, read(index))).into()
}

/// Removes every other version as the first edition's agent does: it unlinks all
/// entries of these directories, and removes the directories.
///
/// # Panics
/// Something of them cannot be removed so.
pub fn remove_others(pin_dir: &Path) {
    for entry in fs::read_dir(pin_dir).expect("the pin directory").flatten() {
        let path = entry.path();
        if path == version(pin_dir) || !entry.file_name().to_string_lossy().starts_with('v') {
            continue;
        }
        for folder in [path.join("xdp"), path.join("links"), path] {
            for pin in fs::read_dir(&folder).expect("a directory").flatten() {
                fs::remove_file(pin.path()).expect("unlink");
            }
            fs::remove_dir(&folder).expect("remove a directory");
        }
    }
}
