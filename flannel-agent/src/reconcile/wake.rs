//! What makes a pass necessary, and what it has to look at.

use flannel_core::desired::routes_directly;

use super::Reconciler;
use crate::firewall::Firewall;
use crate::kernel::{Kernel, KernelEvent};

/// What a pass has to look at anew.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wake {
    /// The device and all that hangs on it.
    pub look: bool,
    /// Links: underlay and veths.
    pub links: bool,
    /// The ways to the peers' PublicIPs.
    pub paths: bool,
    /// The kernel's decisions may have changed: end all confirmations.
    pub generation: bool,
    /// The firewall rules.
    pub firewall: bool,
}

impl Wake {
    /// Look at everything; confirmations stay.
    pub const ALL: Self =
        Self { look: true, links: true, paths: true, generation: false, firewall: true };

    /// Both.
    pub fn merge(&mut self, other: Self) {
        self.look |= other.look;
        self.links |= other.links;
        self.paths |= other.paths;
        self.generation |= other.generation;
        self.firewall |= other.firewall;
    }

    /// Whether there is nothing to look at.
    pub fn is_nothing(self) -> bool {
        self == Self::default()
    }
}

impl<K: Kernel, F: Firewall> Reconciler<K, F> {
    /// What a kernel event asks to look at; nothing for those that do not
    /// matter, and those that the watch has answered.
    pub fn wake_for(&self, event: KernelEvent) -> Wake {
        let overlay = self.overlay.or(self.udp.ifindex());
        // Their routes hang on other people's links, and the ways to the peers
        // on other people's routes.
        let direct = routes_directly(&self.identity.backend);
        match event {
            // A pass that finds its own work done changes nothing, so the
            // events of our own changes settle.
            KernelEvent::Link { ifindex } => Wake {
                look: direct || overlay.is_none_or(|overlay| overlay == ifindex),
                links: true,
                paths: direct,
                ..Wake::default()
            },
            KernelEvent::Address { ifindex } => Wake {
                look: direct || overlay == Some(ifindex),
                links: true,
                paths: direct,
                ..Wake::default()
            },
            KernelEvent::Route { ifindex } => Wake {
                look: direct || ifindex == 0 || overlay == Some(ifindex),
                links: self.is_doubtful(ifindex),
                paths: direct,
                ..Wake::default()
            },
            KernelEvent::Rule => Wake { paths: direct, ..Wake::default() },
            KernelEvent::Neighbour { ifindex } => {
                Wake { look: overlay == Some(ifindex), ..Wake::default() }
            }
            KernelEvent::Ruleset => {
                self.packet_rules.notice();
                Wake { firewall: true, ..Wake::default() }
            }
            KernelEvent::Overrun => {
                self.packet_rules.notice();
                Wake { generation: true, ..Wake::ALL }
            }
            KernelEvent::Tc { .. }
            | KernelEvent::Decision
            | KernelEvent::IpsecPolicy
            | KernelEvent::Deaf(_)
            | KernelEvent::Hears(_) => Wake::default(),
        }
    }
}
