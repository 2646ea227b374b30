//! What becomes of the overlay's packets by the node's rules.

use std::path::Path;

use flannel_core::check::facts::{FirewallService, Known, Packets, Ruled, Unknown};
use flannel_core::firewall::packet_rules::fate::{self, Fate, UFW_CHAIN};
use flannel_core::firewall::packet_rules::matches::{
    Matches, Names, mark, protocol, socket, state, target,
};
use flannel_core::firewall::packet_rules::ranges::{Addresses, Ports};
use flannel_core::firewall::packet_rules::ruleset::{Chain, NetfilterHook, RuleSet, Verdict};
use flannel_core::link::Link;
use ipnetwork::Ipv4Network;

use super::node::DeviceRoles;
use crate::commands::known::Daemon;
use crate::firewall::packet_rules::read::rule_sets;

/// systemd has a link here for each unit that is active.
const UNITS: &str = "/run/systemd/units";

/// What becomes of packets of pods, peers and the tunnel.
pub(super) async fn ruled(node: &DeviceRoles, daemon: &Daemon) -> Known<Vec<Ruled>> {
    let sets = rule_sets().await.map_err(Unknown::because)?;
    Ok(packets(node, daemon)
        .into_iter()
        .map(|(what, hooks, packets)| Ruled { what, fate: in_all(&sets, &hooks, &packets) })
        .collect())
}

/// A packet has to pass all of them.
pub(in crate::commands) fn in_all(
    sets: &[RuleSet],
    hooks: &[NetfilterHook],
    packets: &Matches,
) -> Fate {
    let fates: Vec<Fate> = sets.iter().map(|set| fate::fate(set, hooks, packets)).collect();
    let find = |fits: fn(&Fate) -> bool| fates.iter().find(|fate| fits(fate)).cloned();
    find(|fate| matches!(fate, Fate::Dropped(_)))
        .or_else(|| find(|fate| matches!(fate, Fate::Perhaps(_))))
        .unwrap_or(Fate::Passes)
}

/// Packets, and the hooks that they pass.
type Passing = (Packets, Vec<NetfilterHook>, Matches);

fn packets(node: &DeviceRoles, daemon: &Daemon) -> Vec<Passing> {
    let mut all = Vec::new();
    if let Some(network) = &daemon.network
        && let Some(whole) = network.network
    {
        let (here, there) = (addresses(network.subnet), addresses(whole));
        let outwards = Matches {
            source: here.clone(),
            destination: there.and(&here.not()),
            input: names(node.bridge.as_ref()),
            output: names(node.overlay.as_ref().or(node.underlay.as_ref())),
            sockets: socket::NONE,
            targets: target::OTHERS,
            ..new_packets()
        };
        let inwards = Matches {
            source: outwards.destination.clone(),
            destination: here,
            input: outwards.output.clone(),
            output: outwards.input.clone(),
            ..outwards.clone()
        };
        let hooks = [NetfilterHook::Prerouting, NetfilterHook::Forward, NetfilterHook::Postrouting];
        all.push((Packets::ToPeers, hooks.to_vec(), outwards));
        all.push((Packets::FromPeers, hooks.to_vec(), inwards));
    }
    all.extend(tunnel(node, daemon).into_iter().flatten());
    all
}

/// The tunnel's packets in and out, from and to any node, or those that are known.
pub(in crate::commands) fn tunnel(node: &DeviceRoles, daemon: &Daemon) -> Option<[Passing; 2]> {
    let (port, own) = (node.port()?, daemon.public_ip?);
    let own = Addresses::prefix(own.into(), 32);
    let peers = match daemon.peers.as_slice() {
        [] => own.not(),
        peers => Addresses::of(peers.iter().map(|peer| {
            let address = u32::from(peer.public_ip);
            (address, address)
        })),
    };
    let inwards = Matches {
        source: peers,
        destination: own,
        protocols: protocol::UDP,
        dport: Ports::of([(port.into(), port.into())]),
        sport: Ports::of([(1024, 65535)]),
        input: names(node.underlay.as_ref()),
        targets: target::NODE,
        ..new_packets()
    };
    let outwards = Matches {
        source: inwards.destination.clone(),
        destination: inwards.source.clone(),
        input: Names::of([""]),
        output: inwards.input.clone(),
        sockets: socket::NONE,
        targets: target::OTHERS,
        ..inwards.clone()
    };
    Some([
        (Packets::TunnelIn, vec![NetfilterHook::Prerouting, NetfilterHook::Input], inwards),
        (Packets::TunnelOut, vec![NetfilterHook::Output, NetfilterHook::Postrouting], outwards),
    ])
}

/// The first packet of a connection.
fn new_packets() -> Matches {
    Matches { states: state::NEW, marks: mark::NONE, ..Matches::default() }
}

fn addresses(network: Ipv4Network) -> Addresses {
    Addresses::prefix(network.network().into(), network.prefix())
}

fn names(link: Option<&Link>) -> Names {
    link.map_or(Names::Any, |link| Names::of([link.name.as_str()]))
}

/// Services that write rules, by systemd and by the rules that are there. ufw's unit is
/// active without any rule, too, and its chains stay, empty, when it is disabled.
pub(super) async fn services() -> Vec<FirewallService> {
    let active = |unit: &str| {
        let path = Path::new(UNITS).join(format!("invocation:{unit}.service"));
        path.symlink_metadata().is_ok()
    };
    let (firewalld, ufw) = match rule_sets().await {
        Ok(sets) => {
            let chains = || sets.iter().flat_map(|set| &set.chains);
            let table = chains().any(|chain| &*chain.table == "firewalld");
            (active("firewalld") || table, chains().any(is_ufws))
        }
        Err(_) => (active("firewalld"), active("ufw")),
    };
    [(firewalld, FirewallService::Firewalld), (ufw, FirewallService::Ufw)]
        .into_iter()
        .filter(|(there, _)| *there)
        .map(|(_, service)| service)
        .collect()
}

/// Whether it is a chain of ufw in which something is decided.
fn is_ufws(chain: &Chain) -> bool {
    chain.name.starts_with(UFW_CHAIN)
        && chain.rules.iter().any(|rule| !matches!(rule.verdict, Verdict::Jump(_)))
}

#[cfg(test)]
mod tests {
    use flannel_core::firewall::packet_rules::iptables;

    use super::*;

    #[test]
    fn the_empty_chains_of_ufw_are_no_service() {
        let is_there = |rules: &str| {
            let chains = ":INPUT ACCEPT [0:0]\n:ufw-before-input - [0:0]";
            let text = format!("*filter\n{chains}\n-A INPUT -j ufw-before-input\n{rules}COMMIT\n");
            iptables::read(&text).chains.iter().any(is_ufws)
        };
        assert!(is_there("-A ufw-before-input -i lo -j ACCEPT\n"));
        assert!(!is_there(""), "`ufw disable` leaves them");
    }
}
