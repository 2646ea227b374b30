//! What the receiving pod is made to do.

use std::net::SocketAddrV4;

use aya::programs::{Xdp, XdpMode};
use aya::{Ebpf, EbpfLoader};
use object::write::{Object, Symbol, SymbolSection};
use object::{
    Architecture, BinaryFormat, Endianness, SectionKind, SymbolFlags, SymbolKind, SymbolScope,
};

use super::device;
use crate::netns::Netns;
use crate::packet::Wire;
use crate::pair::Pair;
use crate::pod::{self, PORT};
use crate::process::Process;

/// A namespace behind the pod `server`, which routes to it: a pod that is a
/// router, a virtual machine or a container engine for others.
pub struct Behind {
    // First, so that it ends before its namespace goes.
    _server: Process,
    /// The namespace.
    pub netns: Netns,
    /// Its traffic server.
    pub target: SocketAddrV4,
}

impl Behind {
    /// Makes it, with an address of the node's subnet that the node reaches
    /// through the pod.
    ///
    /// # Panics
    /// A command fails.
    pub fn new(pair: &Pair) -> Self {
        let (pod, node) = (&pair.server, &pair.right);
        let address = node.subnet().nth(77).expect("an address of the subnet");
        let netns = Netns::new(&format!("{}-b", pod.netns.name()));
        let mtu = node.mtu();
        pod.netns.ip(&format!(
            "link add inner mtu {mtu} type veth peer name eth0 mtu {mtu} netns {}",
            netns.name()
        ));
        pod.netns
            .ip_batch(&["link set inner up".into(), format!("route add {address}/32 dev inner")]);
        netns.ip_batch(&[
            format!("address add {address}/32 dev eth0"),
            "link set eth0 up".into(),
            // The pod's own address is its gateway.
            format!("route add {} dev eth0", pod.address),
            format!("route add default via {}", pod.address),
        ]);
        pod.netns.sysctl("net.ipv4.ip_forward=1");
        // Else the pod tells the node to go elsewhere than to itself.
        pod.netns.sysctl("net.ipv4.conf.all.send_redirects=0");
        pod.netns.sysctl("net.ipv4.conf.eth0.send_redirects=0");
        node.netns.ip(&format!("route add {address}/32 via {} dev cni0", pod.address));
        device::cut(&pod.netns, "inner");
        device::cut(&netns, "eth0");
        let server = pod::serve(&netns, &pair.lab.dir().join("behind.log"), &[]);
        Self { _server: server, netns, target: SocketAddrV4::new(address, PORT) }
    }
}

/// An AF_PACKET socket in a pod, which sees what comes to it.
pub struct Capture(Wire);

impl Capture {
    /// Opens it.
    pub fn open(netns: &Netns) -> Self {
        Self(Wire::open(netns, "eth0"))
    }

    /// What it saw: the largest frame in bytes (cut off at 70,000), and the
    /// first whose IPv4 length is not its own.
    pub fn end(self) -> (usize, Option<String>) {
        let (mut largest, mut wrong) = (0, None);
        self.0.waiting(|frame| {
            largest = largest.max(frame.len());
            // Beyond 64 KiB the header says 0.
            if frame.len() > 65_535 + 14 || frame.len() < 34 || frame[12..14] != [8, 0] {
                return;
            }
            let said = usize::from(u16::from_be_bytes([frame[16], frame[17]]));
            if said + 14 != frame.len() && wrong.is_none() {
                wrong = Some(format!("in the pod: length {said} of {}", frame.len() - 14));
            }
        });
        (largest, wrong)
    }
}

/// An XDP program that passes everything, on `eth0` of a namespace until it is
/// dropped.
pub struct Passing {
    _ebpf: Ebpf,
}

impl Passing {
    /// Loads and attaches it, in the driver's own mode.
    ///
    /// # Panics
    /// The kernel refuses it.
    pub fn attach(netns: &Netns) -> Self {
        netns.inside(|| {
            let mut ebpf = EbpfLoader::new().load(&passing()).expect("an object with XDP_PASS");
            let program: &mut Xdp =
                ebpf.program_mut("pass").expect("the program").try_into().expect("an XDP program");
            program.load().expect("load XDP_PASS");
            program.attach("eth0", XdpMode::Driver).expect("attach XDP_PASS to eth0");
            Self { _ebpf: ebpf }
        })
    }
}

/// An object file with the program `r0 = XDP_PASS; exit`.
fn passing() -> Vec<u8> {
    const CODE: [u8; 16] = [0xb7, 0, 0, 0, 2, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0];
    let mut file = Object::new(BinaryFormat::Elf, Architecture::Bpf, Endianness::Little);
    let text = file.add_section(Vec::new(), b"xdp".to_vec(), SectionKind::Text);
    let value = file.append_section_data(text, &CODE, 8);
    let license = file.add_section(Vec::new(), b"license".to_vec(), SectionKind::Data);
    file.append_section_data(license, b"GPL\0", 1);
    file.add_symbol(Symbol {
        name: b"pass".to_vec(),
        value,
        size: CODE.len() as u64,
        kind: SymbolKind::Text,
        scope: SymbolScope::Dynamic,
        weak: false,
        section: SymbolSection::Section(text),
        flags: SymbolFlags::None,
    });
    file.write().expect("an object file in memory")
}
