//! What is known of the node before anything is judged.

use std::fmt;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use ipnetwork::Ipv4Network;

use crate::firewall::packet_rules::fate::Fate;
use crate::forwarding::Unforwarded;
use crate::mac::MacAddr;
use crate::probe::Answer;

/// A fact, or why it could not be learnt.
pub type Known<T> = Result<T, Unknown>;

/// Why something could not be learnt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unknown(String);

impl Unknown {
    /// For this reason.
    pub fn because(reason: impl ToString) -> Self {
        Self(reason.to_string())
    }
}

impl fmt::Display for Unknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// All facts.
#[derive(Clone, Debug)]
pub struct NodeFacts {
    /// The daemon.
    pub agent: Known<Agent>,
    /// What BPF can do here, by trying.
    pub features: Vec<(Feature, Known<bool>)>,
    /// What the daemon may do, or this process where none runs.
    pub capabilities: Known<Capabilities>,
    /// The pin directory's file system.
    pub bpffs: Bpffs,
    /// Other people's programs and filters on devices that have ours.
    pub foreign: Known<Vec<Foreign>>,
    /// The switches of forwarding that have to be on and are not.
    pub forwarding: Known<Vec<Unforwarded>>,
    /// Reverse path filters by device.
    pub rp_filters: Vec<RpFilter>,
    /// What becomes of packets by the node's rules.
    pub rules: Known<Vec<Ruled>>,
    /// Services that write rules.
    pub firewall_services: Vec<FirewallService>,
    /// What our network is; `None` if neither daemon nor state file tells.
    pub network: Option<Network>,
    /// The device by which peers are reached.
    pub underlay: Known<Underlay>,
    /// All VXLAN and TUN devices with names or ports like ours.
    pub devices: Known<Vec<TunnelDevice>>,
    /// Processes with a UDP socket on the tunnel's port.
    pub port_holders: Known<Vec<String>>,
    /// `subnet.env`.
    pub subnet_file: SubnetEnvFacts,
    /// IPsec policies about tunnel packets, as text.
    pub ipsec: Known<Vec<String>>,
    /// What became of packets to some peers.
    pub probes: Known<Vec<PeerProbe>>,
    /// What the store answers.
    pub store: Result<StoreAnswer, StoreFault>,
    /// Whose settings tell where the store is, if not the daemon's.
    pub store_settings: Option<String>,
    /// Seconds that the store's clock is ahead of ours.
    pub clock: Known<i64>,
    /// Certificates for the store.
    pub certificates: Vec<Certificate>,
}

/// What became of packets to a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerProbe {
    /// Its PublicIP.
    pub peer: Ipv4Addr,
    /// Its subnet.
    pub subnet: Ipv4Network,
    /// Echoes to its PublicIP.
    pub underlay: Sizes,
    /// Echoes to its address on the overlay, if it has one that leads through it.
    pub overlay: Option<Sizes>,
    /// TCP through the tunnel.
    pub tcp: Option<Handshakes>,
    /// The next hop to its PublicIP, if that was asked for its MAC and has not answered.
    pub mute: Option<Ipv4Addr>,
}

/// Echoes of two sizes that nobody may fragment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Length of the full one, in bytes.
    pub length: u16,
    /// One that passes everywhere.
    pub small: Answer,
    /// A full one.
    pub full: Answer,
}

/// The first packet of TCP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handshakes {
    /// With the checksum left to the device.
    pub offloaded: Answer,
    /// With its checksum.
    pub plain: Answer,
}

/// What the store answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoreAnswer {
    /// After this many milliseconds.
    pub millis: u64,
    /// All leases.
    pub leases: Vec<Held>,
}

impl NodeFacts {
    /// Our device, by the name that it should have; `None` where it is not there.
    pub(super) fn own_device(&self) -> Option<&TunnelDevice> {
        let own = self.network.as_ref()?.device.as_ref()?;
        self.devices.as_ref().ok()?.iter().find(|device| device.name == *own)
    }
}

/// Why the store gave no leases.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreFault {
    /// It does not answer, or refuses to.
    Unavailable(Unknown),
    /// It answers, and has no network config that can be used.
    Config(Unknown),
    /// No daemon and no flag tells where it is, and it is not at the default endpoints.
    NotNamed(Unknown),
}

impl fmt::Display for StoreFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Unavailable(why) | Self::Config(why) | Self::NotNamed(why)) = self;
        why.fmt(f)
    }
}

/// A lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// Its subnet.
    pub subnet: Ipv4Network,
    /// The node's PublicIP.
    pub public_ip: Ipv4Addr,
    /// MAC of its VTEP, with the backend that has one.
    pub vtep_mac: Option<MacAddr>,
}

/// A file with certificates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// The file.
    pub path: PathBuf,
    /// Seconds until the first of them ends.
    pub seconds_left: Known<i64>,
}

/// The daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Agent {
    /// It answers.
    Running {
        /// It has had its lease since it began.
        leased: bool,
        /// `ebpf`, `kernel`, `udp proxy`.
        datapath: String,
        /// Why it is not eBPF, if it was wanted.
        reason: Option<String>,
        /// What it complains about.
        complaints: Vec<String>,
    },
    /// None runs.
    Dead {
        /// One has run here.
        remembered: bool,
    },
}

/// What is tried of BPF.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    /// Programs of the type SCHED_CLS.
    Classifier,
    /// Programs of the type XDP.
    Xdp,
    /// Maps of the type HASH.
    Hash,
    /// Maps of the type LRU_HASH.
    LruHash,
    /// Maps of the type ARRAY.
    Array,
    /// Maps of the type PERCPU_ARRAY.
    PerCpuArray,
    /// Maps of the type LPM_TRIE.
    LpmTrie,
    /// Maps of the type RINGBUF.
    RingBuffer,
    /// tcx hooks.
    Tcx,
    /// The kernel's types.
    Btf,
}

impl Feature {
    /// What it is called.
    pub fn name(self) -> &'static str {
        match self {
            Self::Classifier => "programs of type SCHED_CLS",
            Self::Xdp => "programs of type XDP",
            Self::Hash => "maps of type HASH",
            Self::LruHash => "maps of type LRU_HASH",
            Self::Array => "maps of type ARRAY",
            Self::PerCpuArray => "maps of type PERCPU_ARRAY",
            Self::LpmTrie => "maps of type LPM_TRIE",
            Self::RingBuffer => "maps of type RINGBUF",
            Self::Tcx => "tcx hooks",
            Self::Btf => "BTF",
        }
    }

    /// What is done without it, where that is nearly as good.
    pub fn instead(self) -> Option<&'static str> {
        match self {
            Self::Xdp => Some("the tunnel is taken off by the TC program"),
            Self::RingBuffer => Some("single packets cannot be watched"),
            Self::Tcx => Some("programs are attached as clsact filters"),
            Self::Btf => Some("bpftool shows no types of the kernel"),
            _ => None,
        }
    }
}

/// What a process may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Whose they are.
    pub whose: Whose,
    /// CAP_NET_ADMIN.
    pub net_admin: bool,
    /// CAP_NET_RAW.
    pub net_raw: bool,
    /// CAP_BPF and CAP_PERFMON, or CAP_SYS_ADMIN.
    pub bpf: bool,
}

/// A process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// The daemon.
    Daemons,
    /// The one that looks.
    Ours,
}

/// The file system of a pin directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bpffs {
    /// The directory.
    pub path: PathBuf,
    /// It, or the next directory above it that is there, is on a bpffs.
    pub mounted: Known<bool>,
}

/// Somebody else's program or filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Foreign {
    /// The device.
    pub device: String,
    /// `ingress` or `egress`.
    pub side: &'static str,
    /// Program name and id, or kind of filter.
    pub what: String,
}

/// The reverse path filter of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RpFilter {
    /// The device.
    pub device: String,
    /// In force: the larger of its own value and that of `all`.
    pub value: Known<u32>,
    /// Peers whose packets come by it while the way back is another device.
    pub otherwise: Vec<Ipv4Addr>,
}

/// What becomes of packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ruled {
    /// Which packets.
    pub what: Packets,
    /// What becomes of them.
    pub fate: Fate,
}

/// Packets that have to pass the node's rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packets {
    /// From our pods to peers'.
    ToPeers,
    /// From peers' pods to ours.
    FromPeers,
    /// The tunnel's that come in.
    TunnelIn,
    /// The tunnel's that go out.
    TunnelOut,
}

/// A service that writes firewall rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FirewallService {
    /// firewalld.
    Firewalld,
    /// ufw.
    Ufw,
}

/// What our network is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// The overlay network, if known.
    pub network: Option<Ipv4Network>,
    /// Our subnet.
    pub subnet: Ipv4Network,
    /// Our device, with the backends that have one.
    pub device: Option<String>,
    /// MTU that the device should have, if the daemon told.
    pub mtu: Option<u32>,
}

/// The device by which peers are reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Underlay {
    /// It is there.
    There {
        /// Its name.
        device: String,
        /// Up.
        up: bool,
        /// It has a carrier.
        carrier: bool,
    },
    /// No device carries our tunnel or has the node's address.
    Unfound,
}

/// A tunnel device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunnelDevice {
    /// Its name.
    pub name: String,
    /// Its kind: `vxlan`, `tun`...
    pub kind: String,
    /// VXLAN network identifier.
    pub vni: Option<u32>,
    /// UDP port of a VXLAN device.
    pub port: Option<u16>,
    /// MTU in bytes.
    pub mtu: u32,
    /// Up.
    pub up: bool,
}

/// `subnet.env`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubnetEnvFacts {
    /// Where it should be.
    pub path: PathBuf,
    /// Subnet and MTU of it; `None` if it is not there or cannot be read.
    pub says: Option<(Ipv4Network, u32)>,
}
