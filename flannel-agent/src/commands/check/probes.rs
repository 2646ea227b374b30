//! Tries the ways to the peers.

use std::net::SocketAddrV4;
use std::time::Duration;

use flannel_core::check::facts::{Handshakes, Known, PeerProbe, Sizes, Unknown};
use flannel_core::probe::Answer;

use super::node::DeviceRoles;
use crate::commands::known::KnownPeer;
use crate::kernel::Kernel as _;
use crate::kernel::netlink::RealKernel;
use crate::probe::{self, Echo};

/// Peers that are tried; of more, every so many.
const PEERS: usize = 32;
/// Between two packets.
const GAP: Duration = Duration::from_millis(2);
/// After the last packet.
const PATIENCE: Duration = Duration::from_millis(1500);
/// The kernel sends the first packet of TCP again after a second.
const TCP_PATIENCE: Duration = Duration::from_millis(2500);
/// Peers that TCP is tried with.
const TCP_PEERS: usize = 4;
/// "discard": nobody serves it, and a refusal is an answer.
const TCP_PORT: u16 = 9;
/// An echo that passes everywhere, in bytes.
const SMALL: u16 = 64;
/// Bytes of a VXLAN packet beside the inner IP packet.
const TUNNEL: u32 = 50;

/// What became of echoes of two sizes, and of TCP.
pub(super) async fn tried(node: &DeviceRoles, peers: &[KnownPeer]) -> Known<Vec<PeerProbe>> {
    let step = peers.len().div_ceil(PEERS).max(1);
    let plan: Vec<Plan> = peers.iter().step_by(step).map(|peer| Plan::of(node, peer)).collect();
    let work = tokio::task::spawn_blocking(move || try_all(&plan));
    let mut probes: Vec<PeerProbe> = work.await.map_err(Unknown::because)??;
    tell_mute(&mut probes).await;
    Ok(probes)
}

/// Looks which next hops to silent peers have told no MAC: there was time to ask for it.
async fn tell_mute(probes: &mut [PeerProbe]) {
    let Ok(kernel) = RealKernel::open() else { return };
    for probe in probes.iter_mut().filter(|probe| !probe.underlay.small.came()) {
        let Ok(Some(route)) = kernel.route_to(probe.peer).await else { continue };
        let hop = route.gateway.unwrap_or(probe.peer);
        let unresolved = kernel.is_unresolved(route.ifindex, hop).unwrap_or(false);
        probe.mute = unresolved.then_some(hop);
    }
}

/// What is tried with a peer.
struct Plan {
    peer: KnownPeer,
    /// Largest packet of the underlay.
    underlay: u16,
    /// Largest packet of the overlay, where the peer has an address there.
    overlay: Option<u16>,
    tcp: bool,
}

impl Plan {
    fn of(node: &DeviceRoles, peer: &KnownPeer) -> Self {
        let length = |mtu: u32| u16::try_from(mtu).unwrap_or(u16::MAX);
        let below = node.underlay.as_ref().map_or(1500, |link| link.mtu);
        let above = node.overlay.as_ref().map(|link| link.mtu).filter(|_| !peer.direct);
        let tunnel = node.port().is_some();
        Self {
            peer: *peer,
            underlay: length(match above {
                Some(mtu) if tunnel => (mtu + TUNNEL).min(below),
                _ => below,
            }),
            overlay: above.map(length),
            tcp: tunnel && above.is_some(),
        }
    }
}

fn try_all(plan: &[Plan]) -> Known<Vec<PeerProbe>> {
    let mut echoes = Vec::new();
    for Plan { peer, underlay, overlay, .. } in plan {
        echoes.extend([SMALL, *underlay].map(|length| Echo { to: peer.public_ip, length }));
        let to = peer.subnet.network();
        echoes.extend(
            overlay.iter().flat_map(|full| [SMALL, *full].map(|length| Echo { to, length })),
        );
    }
    let answers = probe::echo(&echoes, GAP, PATIENCE).map_err(Unknown::because)?;
    let mut answers = answers.into_iter();
    let mut sizes = |length: u16| Sizes {
        length,
        small: answers.next().unwrap_or(Answer::Silent),
        full: answers.next().unwrap_or(Answer::Silent),
    };
    let mut probes: Vec<PeerProbe> = plan
        .iter()
        .map(|Plan { peer, underlay, overlay, .. }| PeerProbe {
            peer: peer.public_ip,
            subnet: peer.subnet,
            underlay: sizes(*underlay),
            overlay: overlay.map(&mut sizes),
            tcp: None,
            mute: None,
        })
        .collect();
    let tunnelled = probes.iter_mut().zip(plan).filter(|(_, plan)| plan.tcp);
    for (probe, plan) in tunnelled.take(TCP_PEERS) {
        let to = SocketAddrV4::new(plan.peer.subnet.network(), TCP_PORT);
        let offloaded = probe::offloaded(to, TCP_PATIENCE);
        // What arrives need not be tried again.
        let plain = match offloaded.came() {
            true => offloaded.clone(),
            false => probe::plain(to, PATIENCE),
        };
        probe.tcp = Some(Handshakes { offloaded, plain });
    }
    Ok(probes)
}
