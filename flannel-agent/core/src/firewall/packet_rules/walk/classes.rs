//! Which packets come to a base chain, by its hook. Pure.

use super::{Layer, Overlay};
use crate::firewall::packet_rules::matches::{Matches, Names, protocol, socket, state};
use crate::firewall::packet_rules::ranges::{Addresses, Ports};
use crate::firewall::packet_rules::ruleset::{Base, Family, NetfilterHook};

/// The packets that come to a base chain. TCP and UDP on their own: rules often
/// treat them apart.
pub(super) fn classes(
    family: Family,
    base: &Base,
    overlay: Overlay,
    notrack: bool,
) -> Vec<(Layer, Matches)> {
    if base.nat {
        return Vec::new();
    }
    let mut classes = Vec::new();
    for protocols in [protocol::TCP, protocol::UDP] {
        classes.extend(
            inner(family, base, overlay)
                .map(|class| (Layer::Inner, Matches { protocols, ..class })),
        );
    }
    if let Some(port) = overlay.port.filter(|_| family != Family::Bridge) {
        let class = Matches {
            protocols: protocol::UDP,
            dport: Ports::of([(port.into(), port.into())]),
            ..Matches::default()
        };
        classes.extend(tunnel(base, class, notrack));
    }
    classes
}

/// The tunnel's packets at a hook, of those of `class`.
fn tunnel(base: &Base, class: Matches, notrack: bool) -> Option<(Layer, Matches)> {
    match base.hook {
        NetfilterHook::Prerouting | NetfilterHook::Input | NetfilterHook::Ingress => {
            Some((Layer::TunnelIn, Matches { input: base.devices.clone(), ..class }))
        }
        NetfilterHook::Output | NetfilterHook::Postrouting => {
            // Each is right in itself, and expected by no other connection.
            let untracked = if notrack { state::UNTRACKED } else { 0 };
            let class = Matches {
                states: state::NEW | state::ESTABLISHED | untracked,
                sockets: socket::NONE,
                // They have come by no device.
                input: Names::of([""]),
                ..class
            };
            Some((Layer::TunnelOut, class))
        }
        // All chains there are followed, whatever they do.
        NetfilterHook::Forward | NetfilterHook::Egress => None,
    }
}

/// The pods' packets at a hook. What goes between a bridge's ports is not on its
/// way to a peer, and what is the node's own is nobody else's.
pub(super) fn inner(family: Family, base: &Base, overlay: Overlay) -> Option<Matches> {
    let Overlay { network, .. } = overlay;
    let addressed = Addresses::prefix(network.network().into(), network.prefix());
    let devices = base.devices.clone();
    match (family, base.hook) {
        (_, NetfilterHook::Ingress) => Some(Matches { input: devices, ..Matches::default() }),
        (_, NetfilterHook::Egress) => Some(Matches { output: devices, ..Matches::default() }),
        (Family::Bridge, NetfilterHook::Forward) => None,
        (Family::Bridge, _) | (_, NetfilterHook::Prerouting) => Some(Matches::default()),
        // Translation of the destination is over.
        (_, NetfilterHook::Forward | NetfilterHook::Postrouting) => {
            Some(Matches { destination: addressed, ..Matches::default() })
        }
        (_, NetfilterHook::Input | NetfilterHook::Output) => None,
    }
}
