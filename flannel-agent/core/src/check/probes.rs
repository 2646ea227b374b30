//! Ways to the peers: room for full packets, and checksums.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use super::facts::{NodeFacts, PeerProbe, Sizes};
use super::finding::{Condition, Finding, Id};
use crate::probe::Answer;
use crate::text;

/// Peers that are named; of more only the number is told.
const NAMED: usize = 3;
/// Bytes that VXLAN puts around a packet.
const TUNNEL: u16 = 50;

pub(super) fn findings(facts: &NodeFacts) -> Vec<Finding> {
    let ids = [Id::Mtu, Id::TunnelChecksum];
    match &facts.probes {
        Err(reason) => ids.map(|id| Finding::unknown(id, reason.to_string())).into(),
        Ok(probes) if probes.is_empty() => {
            ids.map(|id| Finding::well(id, "there is no peer to try")).into()
        }
        Ok(probes) => {
            let mut findings = mtu(probes);
            findings.push(checksum(probes));
            findings
        }
    }
}

/// Some addresses, and how many more.
fn named(addresses: impl IntoIterator<Item = Ipv4Addr>) -> String {
    let all: Vec<String> = addresses.into_iter().map(|address| address.to_string()).collect();
    let more = all.len().saturating_sub(NAMED);
    let first = all[..all.len().min(NAMED)].join(", ");
    if more == 0 { first } else { format!("{first} and {more} more") }
}

fn is_narrow(sizes: &Sizes) -> bool {
    sizes.small.came() && !sizes.full.came()
}

fn mtu(probes: &[PeerProbe]) -> Vec<Finding> {
    let id = Id::Mtu;
    let mut findings = Vec::new();
    let of = |fits: &dyn Fn(&PeerProbe) -> bool| -> Vec<&PeerProbe> {
        probes.iter().filter(|probe| fits(probe)).collect()
    };
    let narrow = of(&|probe| is_narrow(&probe.underlay));
    if let Some(first) = narrow.first() {
        let length = first.underlay.length;
        let (told, remedy) = match first.underlay.full {
            Answer::TooBig { mtu: Some(mtu) } => (
                format!(" (an MTU of {mtu} on the way)"),
                format!(
                    "set Backend.MTU to at most {mtu}: the tunnel's {TUNNEL} bytes are taken off it"
                ),
            ),
            _ => (String::new(), "raise the MTU on the way, or lower Backend.MTU".to_owned()),
        };
        let who = named(narrow.iter().map(|probe| probe.peer));
        let found = format!("{length} bytes do not pass the underlay to {who}{told}");
        findings.push(Finding::ill(id, Condition::Broken, found, remedy));
    }
    let inner =
        of(&|probe| !is_narrow(&probe.underlay) && probe.overlay.as_ref().is_some_and(is_narrow));
    if let Some(length) = inner.first().and_then(|probe| Some(probe.overlay.as_ref()?.length)) {
        let who = named(inner.iter().map(|probe| probe.peer));
        let found = format!("{length} bytes do not pass the overlay to {who}");
        let remedy = "compare the MTU of both devices, and what their underlays allow";
        findings.push(Finding::ill(id, Condition::Broken, found, remedy));
    }
    findings.extend(unreached(probes));
    if findings.is_empty() {
        let all = match probes.len() {
            1 => "the peer that was".to_owned(),
            count => format!("all of the {count} peers that were"),
        };
        let found = format!("full packets reach {all} tried");
        findings.push(Finding::well(id, found));
    }
    findings
}

impl PeerProbe {
    /// Whether something came through the tunnel.
    fn is_open(&self) -> bool {
        let tcp = self.tcp.as_ref();
        self.overlay.as_ref().is_some_and(|way| way.small.came())
            || tcp.is_some_and(|tcp| tcp.plain.came() || tcp.offloaded.came())
    }

    /// Whether pods there are reached.
    fn is_reached(&self) -> bool {
        self.is_open() || (self.overlay.is_none() && self.underlay.small.came())
    }

    /// Why nothing could be sent, if so.
    fn unsent(&self) -> Option<&str> {
        match &self.underlay.small {
            Answer::NotSent { reason } => Some(reason),
            _ => None,
        }
    }
}

/// Peers whose pods are not reached. If those are all, everything is lost.
fn unreached(probes: &[PeerProbe]) -> Vec<Finding> {
    let id = Id::Mtu;
    let all = !probes.iter().any(PeerProbe::is_reached);
    let (state, none) = match all {
        true => (Condition::Broken, ": no peer is reached"),
        false => (Condition::Degraded, ""),
    };
    let lost = || probes.iter().filter(|probe| !probe.is_reached());
    let mut findings = Vec::new();
    if let Some(reason) = lost().find_map(PeerProbe::unsent) {
        let unsent = lost().filter(|probe| probe.unsent().is_some());
        let who = named(unsent.map(|probe| probe.peer));
        let found = format!("nothing can be sent to {who} ({reason}){none}");
        findings.push(
            Finding::ill(id, state, found, "look at the underlay's device and its routes")
                .since("what cannot be sent is lost"),
        );
    }
    let mut shut = lost().filter(|probe| probe.underlay.small.came()).peekable();
    if shut.peek().is_some() {
        let who = named(shut.map(|probe| probe.peer));
        let found =
            format!("answers come from {who} on the underlay, but not through the overlay{none}");
        let remedy = "run check there, too, and trace here; does anything on the way stop UDP to the \
             tunnel's port?";
        let why = "rules and routes of this node lead elsewhere, tunnel packets are lost on the \
                   way, or no flannel is there any more";
        findings.push(Finding::ill(id, state, found, remedy).since(why));
    }
    let silent = |probe: &&PeerProbe| !probe.underlay.small.came() && probe.unsent().is_none();
    let mute: Vec<&PeerProbe> = lost().filter(silent).filter(|it| it.mute.is_some()).collect();
    if !mute.is_empty() {
        findings.push(cut_off(&mute, state, none));
    }
    let mut silent = lost().filter(silent).filter(|probe| probe.mute.is_none()).peekable();
    if silent.peek().is_some() {
        let who = named(silent.map(|probe| probe.peer));
        let found = format!("no answer from {who}: away, or ICMP is filtered");
        findings.push(Finding::unknown(id, found));
    }
    findings
}

/// Silent peers to whose next hops nothing can go: that is no filter of ICMP.
fn cut_off(mute: &[&PeerProbe], state: Condition, none: &str) -> Finding {
    let hops: BTreeSet<Ipv4Addr> = mute.iter().filter_map(|probe| probe.mute).collect();
    let (who, hops) = (named(mute.iter().map(|probe| probe.peer)), named(hops));
    let found = format!("no answer from {who}: no MAC is told for {hops}{none}");
    let remedy = "are these nodes up? look at the underlay's switch, VLAN and cables";
    Finding::ill(Id::Mtu, state, found, remedy)
        .since("without the next hop's MAC all that is sent there is lost")
}

fn checksum(probes: &[PeerProbe]) -> Finding {
    let id = Id::TunnelChecksum;
    let tried = || probes.iter().filter_map(|probe| Some((probe, probe.tcp.as_ref()?)));
    let wrong: Vec<&PeerProbe> = tried()
        .filter(|(_, tcp)| tcp.plain.came() && !tcp.offloaded.came())
        .map(|(probe, _)| probe)
        .collect();
    if !wrong.is_empty() {
        let who = named(wrong.iter().map(|probe| probe.peer));
        return Finding::ill(
            id,
            Condition::Broken,
            format!("TCP to {who} passes only if its checksum is made before the tunnel"),
            "give the daemon --tunnel-checksum=kernel, on this node and on those with such cards",
        );
    }
    if tried().count() == 0 {
        return Finding::well(id, "there is no tunnel to try");
    }
    match tried().filter(|(_, tcp)| tcp.offloaded.came()).count() {
        0 => Finding::unknown(id, "no peer answers TCP: filtered, or away"),
        reached => {
            let reached = text::counted(reached, "peer");
            Finding::well(id, format!("TCP with the card's checksum reaches {reached}"))
        }
    }
}
