//! The eBPF data path. Only this module speaks bpf(2).

mod answers;
mod aside;
mod attach;
mod attendance;
mod census;
mod clock;
mod cpus;
mod error;
pub mod fake;
pub mod features;
mod filter;
pub mod flow_table;
mod flows;
mod glance;
mod grace;
mod hook;
mod interrupted;
pub mod loader;
pub mod lookup;
mod maps;
mod meter;
pub mod monitor;
mod object;
mod options;
mod others;
mod owner;
mod peer_stats;
pub mod pin;
mod pinned;
mod program_log;
mod programs;
mod round;
mod settings;
mod sys;
mod teller;
mod untyped;
mod walk;
mod xdp;

use std::collections::{BTreeMap, BTreeSet};

use flannel_core::envelope::{Inlet, PodVeth};
use flannel_core::peer::Peer;
use flannel_core::status::{Attachment, XdpStatus};
use flannel_ebpf::abi::Exemption;
use ipnetwork::Ipv4Network;

pub use self::aside::Ahead;
pub use self::clock::monotonic_ns;
pub use self::error::BpfError;
pub use self::flows::PinnedFlows;
pub use self::interrupted::unless_interrupted;
pub use self::loader::cleanup;
pub use self::maps::{Bounded, Which};
pub use self::meter::{Meter, OTHERS};
pub use self::object::{OBJECT_ENV, bytes as object};
pub use self::options::{
    AttachMode, FastPath, FastPathOptions, GracePeriodMode, Needs, PIN_DIR, ProgramOptions,
    VerifySource, XdpMode,
};
pub use self::programs::{LoadAside, are_pinned, load_aside};
pub use self::teller::Teller;

/// Settings of the programs that the agent decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatapathConfig {
    /// Life of a confirmation.
    pub window: std::time::Duration,
    /// Life of a confirmation of a UDP flow: no longer than the window.
    pub udp_window: std::time::Duration,
    /// What happens to packets that fail the source check.
    pub verify_source: VerifySource,
    /// When the programs act by themselves.
    pub fast_path: FastPath,
    /// Confirm TCP flows (conntrack is liberal, or absent).
    pub tcp: bool,
    /// VXLAN network identifier.
    pub vni: u32,
    /// The tunnel carries marks (VXLAN-GBP).
    pub gbp: bool,
    /// UDP destination port; 0 where there is no tunnel.
    pub port: u16,
    /// Interface index of the underlay device.
    pub underlay: u32,
    /// Interface index of the VRF that the underlay device is in.
    pub underlay_vrf: Option<u32>,
    /// Interface index of `flannel.<VNI>`; 0 where there is no tunnel.
    pub overlay: u32,
    /// Underlay address of this node.
    pub local: std::net::Ipv4Addr,
    /// The overlay network.
    pub network: Ipv4Network,
    /// Our own subnet.
    pub subnet: Ipv4Network,
    /// MTU of `flannel.<VNI>` in bytes.
    pub mtu: u16,
    /// MTU of the underlay device in bytes, if peers may be reached without a
    /// tunnel.
    pub direct_mtu: Option<u16>,
    /// Own VTEP MAC.
    pub vtep_mac: flannel_core::mac::MacAddr,
    /// `net.ipv4.ip_local_port_range`.
    pub source_ports: (u16, u16),
    /// TTL of outer headers (`net.ipv4.ip_default_ttl`).
    pub ttl: u8,
}

/// What has become of the underlay's XDP program.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct XdpReport {
    /// Whether it runs.
    pub status: XdpStatus,
    /// Why somebody should know.
    pub complaint: Option<String>,
}

/// A device by its index and its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device<'a> {
    /// Interface index, by which it is known.
    pub ifindex: u32,
    /// Its name, for those who read.
    pub name: &'a str,
}

/// Where the programs have to run.
#[derive(Clone, Copy, Debug)]
pub struct Places<'a> {
    /// The underlay device.
    pub underlay: Device<'a>,
    /// Kind of the underlay device (`veth`, `bond`...), empty for hardware.
    pub underlay_kind: &'a str,
    /// Other devices by which packets of the tunnel may come.
    pub inlets: &'a [Inlet],
    /// `flannel.<VNI>`, if there is a tunnel.
    pub overlay: Option<Device<'a>>,
    /// Peers may be reached without a tunnel: the underlay device's egress too.
    pub direct: bool,
    /// The pods' veths, all of them.
    pub veths: &'a [PodVeth],
    /// Hooks are attached for so long at a time. With each the kernel waits until all
    /// CPUs have seen it ([`GracePeriodMode`]), and meanwhile nobody can change a route.
    pub turn: std::time::Duration,
}

/// A sender of a peer's packets whose address is not the peer's PublicIP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stranger {
    /// The peer's subnet.
    pub subnet: Ipv4Network,
    /// The address that the packets come from.
    pub address: std::net::Ipv4Addr,
    /// Inner source of the last one.
    pub source: std::net::Ipv4Addr,
    /// Packets so far.
    pub packets: u64,
}

/// The verbs that reconciling needs of a loaded data path (synchronous:
/// bpf(2) does not block). The real one is `loader::Loaded`, the one for
/// tests `fake::FakeDatapath`.
pub trait Datapath: Send + 'static {
    /// Writes the settings, apart from [`flannel_core::envelope::Keep`]; raises the generation if they
    /// changed.
    fn configure(&mut self, config: &DatapathConfig) -> Result<(), BpfError>;

    /// Tells the programs that the maps are true now. They trust them for
    /// [`flannel_ebpf::abi::Attendance::SILENCE_NS`].
    fn attend(&mut self) -> Result<(), BpfError>;

    /// Tells the programs that nobody keeps the maps true from now on.
    fn leave(&mut self) -> Result<(), BpfError>;

    /// Ends every confirmation: the decision of the kernel may have changed.
    fn raise_generation(&mut self) -> Result<(), BpfError>;

    /// Peers in the maps. Reads all of them, and puts right what is not as it was written.
    fn peers(&mut self) -> Result<BTreeMap<Ipv4Network, Peer>, BpfError>;

    /// Reads some of the peers in the maps, others each time, and the sign of life. Puts right
    /// what is not as it was written: nobody tells when somebody else writes there. How many
    /// entries were wrong since the last call.
    fn mend(&mut self) -> Result<u64, BpfError>;

    /// Puts peers into the maps.
    fn put_peers(&mut self, peers: &[Peer]) -> Result<(), BpfError>;

    /// Removes peers from the maps.
    fn remove_peers(&mut self, subnets: &[Ipv4Network]) -> Result<(), BpfError>;

    /// Says which of the peers, present and future, are reached without a
    /// tunnel.
    fn set_direct(&mut self, subnets: &BTreeSet<Ipv4Network>) -> Result<(), BpfError>;

    /// The peers that a route's own MTU or hop limit bounds, and how large packets of the
    /// fast path to them may be: as [`Teller::bound_peers`] told the programs.
    fn bounds(&self) -> BTreeMap<Ipv4Network, u16>;

    /// Makes these what the fast path never carries; ends all confirmations if
    /// others were so before.
    fn exempt(&mut self, exemptions: &[Exemption]) -> Result<(), BpfError>;

    /// Makes the hooks at exactly these places be there, exit hooks first; hooks
    /// that somebody removed come back. Returns the hooks that had to be
    /// (re-)attached and the failures. Attaching takes long where there are many: a
    /// call may leave some for the next, and says so.
    fn ensure_hooks(&mut self, places: Places<'_>) -> HookChanges;

    /// Makes pins again that somebody removed. [`Self::unpinned`] says why not.
    fn keep_pins(&mut self);

    /// What may be told to the programs without the lock of this.
    fn teller(&self) -> Box<dyn Teller>;

    /// Packets by outcome: all names, summed over CPUs.
    fn outcomes(&self) -> Result<BTreeMap<&'static str, u64>, BpfError>;

    /// Entries made in the flow table since the counters began.
    fn flows_entered(&self) -> Result<u64, BpfError>;

    /// Packets of peers that came by the hooks, since the counters began.
    fn seen_from_underlay(&self) -> Result<u64, BpfError>;

    /// What reads the peers' counters without the lock of this.
    fn meter(&self) -> Box<dyn Meter>;

    /// Who has sent for peers under another address than theirs within this time.
    fn strangers(&self, within: std::time::Duration) -> Result<Vec<Stranger>, BpfError>;

    /// Why the programs run without pins, if they do: they go with the agent.
    fn unpinned(&self) -> Option<String>;
}

/// What [`Datapath::ensure_hooks`] did.
#[derive(Debug, Default)]
pub struct HookChanges {
    /// `<interface>/<program>` that were not there and are now.
    pub attached: Vec<String>,
    /// `<interface>/<program>` that are no place of ours any more.
    pub detached: Vec<String>,
    /// Hooks that could not be attached.
    pub failed: Vec<(String, BpfError)>,
    /// Hooks where a program runs now, by program.
    pub running: BTreeMap<&'static str, u64>,
    /// How many of those that were attached had been there before: somebody else
    /// removed them.
    pub restored: u64,
    /// How the programs hang on the devices.
    pub attachment: Attachment,
    /// Whether the XDP program runs.
    pub xdp: XdpReport,
    /// The tunnel's device has gone: nothing else was done.
    pub lacks_device: bool,
    /// Some were left for the next call, so that others get their turn meanwhile.
    pub unfinished: bool,
}
