//! What the programs are told about the devices around them, and what is asked
//! of other people's programs.

use flannel_ebpf::abi::{Veth, action, flag};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A host-side veth that leads to a pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PodVeth {
    /// Interface index.
    pub ifindex: u32,
    /// Name.
    pub name: String,
    /// MTU in bytes.
    pub mtu: u32,
    /// What the programs know of it; without it they leave its packets to the
    /// kernel.
    pub entry: Option<VethEntry>,
}

impl PodVeth {
    /// The element of the map of veths, if there is one.
    pub fn value(&self) -> Option<Veth> {
        let VethEntry { inward, keep_out } = self.entry?;
        let action = match inward {
            Inward::Peer => action::PEER,
            Inward::Egress => action::EGRESS,
            Inward::Kernel => action::KERNEL,
        };
        Some(Veth { action, keep_out: keep_out.into(), reserved: [0; 2], mtu: self.mtu })
    }
}

/// How the programs treat a veth's packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct VethEntry {
    /// What comes for the pod.
    pub inward: Inward,
    /// What the pod sends is the kernel's.
    pub keep_out: bool,
}

/// How the fast path hands packets to a pod.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Inward {
    /// Straight to the pod's side of the veth.
    Peer,
    /// Through the egress of the host side.
    Egress,
    /// Not at all: the kernel does.
    Kernel,
}

/// Ways that are the kernel's for the whole node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Keep {
    /// [`flag::KEEP_OUT`].
    pub out: bool,
    /// [`flag::KEEP_IN`].
    pub inward: bool,
    /// [`flag::KEEP_TUNNEL`].
    pub tunnel: bool,
    /// [`flag::MARKED_ROUTES`].
    pub marked_routes: bool,
    /// [`flag::MORE_PEERS`].
    pub more_peers: bool,
}

impl Keep {
    /// All bits that stand for it.
    pub const MASK: u32 =
        flag::KEEP_OUT | flag::KEEP_IN | flag::KEEP_TUNNEL | flag::MARKED_ROUTES | flag::MORE_PEERS;

    /// The bits that are set.
    pub fn bits(self) -> u32 {
        [
            (self.out, flag::KEEP_OUT),
            (self.inward, flag::KEEP_IN),
            (self.tunnel, flag::KEEP_TUNNEL),
            (self.marked_routes, flag::MARKED_ROUTES),
            (self.more_peers, flag::MORE_PEERS),
        ]
        .into_iter()
        .filter(|(set, _)| *set)
        .fold(0, |bits, (_, bit)| bits | bit)
    }
}

/// A device by which packets of the tunnel may come, beside the underlay's.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Inlet {
    /// Interface index.
    pub ifindex: u32,
    /// Name.
    pub name: String,
}

/// The tcx programs of a device, in the order in which they run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tcx {
    /// On what comes in.
    pub ingress: Vec<TcxProgram>,
    /// On what goes out.
    pub egress: Vec<TcxProgram>,
}

/// A program on a tcx hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcxProgram {
    /// Its id, as `bpftool prog` shows it.
    pub id: u32,
    /// This agent loaded it.
    pub ours: bool,
    /// Another agent did, by its name.
    pub another_agents: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_way_has_its_bit_and_all_are_in_the_mask() {
        let all =
            Keep { out: true, inward: true, tunnel: true, marked_routes: true, more_peers: true };
        assert_eq!(all.bits(), Keep::MASK);
        assert_eq!(Keep::default().bits(), 0);
        assert_eq!(Keep { tunnel: true, ..Keep::default() }.bits(), flag::KEEP_TUNNEL);
    }

    #[test]
    fn a_veth_without_an_entry_is_unknown_to_the_programs() {
        let veth = PodVeth { ifindex: 7, name: "veth0".to_owned(), mtu: 1450, entry: None };
        assert_eq!(veth.value(), None);
        let entry = Some(VethEntry { inward: Inward::Egress, keep_out: true });
        let value = PodVeth { entry, ..veth }.value().unwrap();
        assert_eq!((value.action, value.keep_out, value.mtu), (action::EGRESS, 1, 1450));
    }
}
