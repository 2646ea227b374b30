//! The udp backend's part of a pass.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use flannel_core::backend::Reaches;
use flannel_core::desired::Desired;
use flannel_core::health::Subject;
use ipnetwork::Ipv4Network;

use super::Reconciler;
use crate::backend::udp::proxy::{self, ProxySettings};
use crate::backend::udp::upkeep::WantedProxy;
use crate::firewall::Firewall;
use crate::kernel::Kernel;

impl<K: Kernel, F: Firewall> Reconciler<K, F> {
    /// Keeps proxy, device, address and route; with `look`, looks at them.
    pub(super) async fn serve_udp(&mut self, desired: &Desired, look: bool) {
        let facts = self.identity.backend.facts();
        let (Reaches::Process, Some(device), Some(port)) =
            (facts.reaches(), facts.device(), facts.port())
        else {
            return;
        };
        let peers: BTreeMap<Ipv4Network, Ipv4Addr> =
            desired.peers.values().map(|peer| (peer.subnet, peer.public_ip)).collect();
        if !look && self.udp.is_alive() {
            self.udp.set_peers(&peers);
            return;
        }
        let wanted = WantedProxy {
            settings: ProxySettings {
                device,
                local: self.identity.underlay.address,
                port,
                network: self.identity.network,
                subnet: self.identity.subnet,
                verify_source: self.settings.programs.verify_source,
                queues: proxy::default_queues(),
            },
            mtu: desired.mtu,
        };
        let result = self.udp.ensure(&self.kernel, &wanted, &peers).await;
        self.unfinished.wake.look |= result.is_err();
        let mut state = self.shared.lock();
        state.proxy = self.udp.proxy();
        state.report(Subject::UdpProxy, result.as_ref());
        state.report(Subject::IcmpErrors, result.ok().flatten());
    }
}
