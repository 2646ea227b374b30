//! What a pass has to look at after an event of the kernel.

use flannel_core::schedule::Wake;

use super::Reconciler;
use crate::firewall::Firewall;
use crate::kernel::{Kernel, KernelEvent};

impl<K: Kernel, F: Firewall> Reconciler<K, F> {
    /// What a kernel event asks to look at; nothing for those that do not
    /// matter, and those that the watch has answered.
    pub fn wake_for(&self, event: KernelEvent) -> Wake {
        let overlay = self.seen.device.or(self.udp.ifindex());
        // Their routes hang on other people's links, and the ways to the peers
        // on other people's routes.
        let direct = self.identity.backend.facts().reaches().directly();
        match event {
            // A pass that finds its own work done changes nothing, so the
            // events of our own changes settle.
            KernelEvent::Link { ifindex } => Wake {
                look: direct || overlay.is_none_or(|overlay| overlay == ifindex),
                links: true,
                next_hops: direct,
                ..Wake::default()
            },
            KernelEvent::Address { ifindex } => Wake {
                look: direct || overlay == Some(ifindex),
                links: true,
                next_hops: direct,
                ..Wake::default()
            },
            KernelEvent::Route { ifindex } | KernelEvent::RouteLost { ifindex, .. } => Wake {
                look: direct || ifindex == 0 || overlay == Some(ifindex),
                links: self.is_doubtful(ifindex),
                next_hops: direct,
                ..Wake::default()
            },
            KernelEvent::RouteBefore => Wake {
                look: true,
                order: true,
                links: self.is_doubtful(0),
                next_hops: direct,
                ..Wake::default()
            },
            KernelEvent::Rule => Wake { next_hops: direct, ..Wake::default() },
            KernelEvent::Neighbour { ifindex } => {
                Wake { look: overlay == Some(ifindex), ..Wake::default() }
            }
            KernelEvent::Switch => Wake { links: true, ..Wake::default() },
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
            | KernelEvent::OverlayRoute
            | KernelEvent::LimitedRoute
            | KernelEvent::IpsecPolicy
            | KernelEvent::Deaf(_)
            | KernelEvent::Hears(_) => Wake::default(),
        }
    }
}
