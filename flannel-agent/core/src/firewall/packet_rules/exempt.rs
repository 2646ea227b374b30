//! What the findings mean for the programs: exemptions, and what status says of
//! the rules. Pure.

use std::collections::BTreeSet;

use flannel_ebpf::abi::{Exemption, MAX_EXEMPTIONS, direction};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::devices::{BOTH, Devices, IN, OUT};
use super::helpers;
use super::matches::{Matches, protocol, stage, state};
use super::ranges::{Addresses, Ports};
use super::ruleset::{Family, Judges, NetfilterHook, Note};
use super::walk::{Findings, Layer, Overlay, RuleFinding, RuleScope};

const TCP: u8 = 6;
const UDP: u8 = 17;
/// Exemptions that one scope becomes at most.
const PER_SCOPE: usize = 16;
/// Exemptions that are compared with each other.
const COMPARED: usize = 1024;
/// Rules that status lists.
const LINES: usize = 100;

/// What the node is like at the moment.
#[derive(Clone, Copy, Debug)]
pub struct Present<'a> {
    /// Its devices.
    pub devices: &'a Devices,
    /// The overlay.
    pub overlay: Overlay,
    /// New connections may begin on the fast path (`--fast-path=eager`).
    pub eager: bool,
    /// Conntrack gives helpers to connections by their ports.
    pub helpers: bool,
}

/// What a rule means for the fast path.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// What it matches stays on the kernel path.
    KernelPath,
    /// It logs: one packet of a flow in each window.
    Log,
    /// It hands flows to the kernel's own fast path.
    Offload,
}

/// A rule, as status shows it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct RuleLine {
    /// What follows from it.
    pub effect: Effect,
    /// `ip`, `inet`, `bridge` or `netdev`; `null` for what is no rule.
    pub family: Option<Family>,
    /// Its table.
    pub table: Option<String>,
    /// Its chain.
    pub chain: Option<String>,
    /// Its number in nftables; rules of iptables have none.
    pub handle: Option<u64>,
    /// Its text, at most 200 characters.
    pub rule: String,
    /// What of it cannot be repeated for a flow (`limit`, `queue`, ...).
    pub why: String,
    /// Which flows that is about.
    pub matches: String,
}

/// What the programs have to leave alone, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolved {
    /// For the map, ascending.
    pub exemptions: Vec<Exemption>,
    /// The rules behind it, and those that are only noted.
    pub rules: Vec<RuleLine>,
    /// Rules that are not in the list.
    pub more: usize,
    /// There were too many exemptions: one stands for all.
    pub crowded: bool,
}

/// The exemption of every packet.
pub fn everything() -> Vec<Exemption> {
    vec![Exemption::default()]
}

/// Makes exemptions of findings.
pub fn resolve(findings: &Findings, present: Present<'_>) -> Resolved {
    let mut exemptions = Vec::new();
    let mut rules = Vec::new();
    let helpers = if present.helpers { helpers::automatic() } else { Findings::default() };
    for finding in findings.rules.iter().chain(&helpers.rules) {
        let own: Vec<Exemption> = finding
            .scopes
            .iter()
            .flat_map(|scope| of_scope(finding, scope, findings.notrack, present))
            .collect();
        let own = joined(own).unwrap_or_else(everything);
        if own.is_empty() {
            continue;
        }
        rules.push(line(finding, &own));
        if finding.reach.is_some() {
            exemptions.extend(own);
        }
    }
    rules.sort();
    let more = rules.len().saturating_sub(LINES) + findings.more_notes;
    rules.truncate(LINES);
    let few = joined(exemptions).filter(|all| all.len() <= MAX_EXEMPTIONS as usize);
    let crowded = few.is_none();
    Resolved { exemptions: few.unwrap_or_else(everything), rules, more, crowded }
}

/// What of a scope the programs could carry.
fn of_scope(
    finding: &RuleFinding,
    scope: &RuleScope,
    notrack: bool,
    present: Present<'_>,
) -> Vec<Exemption> {
    let reach = finding.reach;
    let protocols = match reach {
        Some(Judges::Connection) | None => scope.matches.protocols,
        Some(Judges::Packet | Judges::Counters) => carried(&scope.matches, notrack, present.eager),
    };
    if protocols == 0 {
        return Vec::new();
    }
    let Matches { input, output, .. } = &scope.matches;
    match scope.layer {
        Layer::Inner => {
            let leave = match scope.hook {
                NetfilterHook::Egress => present.devices.leave_only_by(output),
                _ => present.devices.leave_by(output),
            };
            let directions = present.devices.come_by(input) & leave;
            let both_ways = matches!(reach, Some(Judges::Counters | Judges::Connection));
            exemptions(&scope.matches, protocols, directions, both_ways, present.overlay)
        }
        Layer::TunnelIn if matches!(reach, Some(Judges::Packet | Judges::Counters)) => {
            let comes = present.devices.tunnel_comes(input, &scope.matches.destination);
            let all = Exemption { direction: direction::IN, ..Exemption::default() };
            comes.then_some(all).into_iter().collect()
        }
        Layer::TunnelIn | Layer::TunnelOut => Vec::new(),
    }
}

/// Protocols of which such packets may be on the fast path.
///
/// A handshake is the kernel's. After it a TCP connection is established for
/// conntrack, while UDP without answers stays new.
fn carried(matches: &Matches, notrack: bool, eager: bool) -> u8 {
    let mut protocols = matches.protocols;
    if matches.stages & stage::DATA == 0 && !eager {
        protocols &= !protocol::TCP;
    }
    let opening = matches.states & (state::NEW | state::RELATED) != 0;
    let untracked = notrack && matches.states & state::UNTRACKED != 0;
    if matches.states & state::ESTABLISHED == 0 && opening && !untracked && !eager {
        protocols &= !protocol::TCP;
    }
    protocols
}

fn exemptions(
    matches: &Matches,
    protocols: u8,
    directions: u8,
    both_ways: bool,
    overlay: Overlay,
) -> Vec<Exemption> {
    let direction = match directions {
        BOTH => 0,
        OUT => direction::OUT,
        IN => direction::IN,
        _ => return Vec::new(),
    };
    let proto = match protocols {
        protocol::TCP => TCP,
        protocol::UDP => UDP,
        _ => 0,
    };
    let network = overlay.network;
    let addressed = Addresses::prefix(network.network().into(), network.prefix());
    // All that the programs carry goes there.
    let destination = match matches.destination.covers(&addressed) {
        true => Addresses::ALL,
        false => matches.destination.clone(),
    };
    let base = Exemption { proto, direction, both_ways: both_ways.into(), ..Exemption::default() };
    product(base, &matches.source, &destination, &matches.sport, &matches.dport)
}

/// Every source with every destination and every pair of ports; coarser where that
/// would be too many.
fn product(
    base: Exemption,
    source: &Addresses,
    destination: &Addresses,
    sport: &Ports,
    dport: &Ports,
) -> Vec<Exemption> {
    let mut limits = [4, 4, 4, 8];
    loop {
        let sources = source.prefixes(limits[0]);
        let destinations = destination.prefixes(limits[1]);
        let (sports, dports) = (sport.coarse(limits[2]), dport.coarse(limits[3]));
        let sizes =
            [sources.len(), destinations.len(), sports.ranges().len(), dports.ranges().len()];
        if sizes.iter().product::<usize>() > PER_SCOPE {
            let widest = (0..4).max_by_key(|at| sizes[*at]).unwrap_or(0);
            limits[widest] = sizes[widest] / 2;
            continue;
        }
        let mut all = Vec::new();
        for (source, source_length) in &sources {
            for (destination, destination_length) in &destinations {
                for (sport_min, sport_max) in sports.ranges() {
                    for (dport_min, dport_max) in dports.ranges() {
                        all.push(Exemption {
                            source: source.to_be_bytes(),
                            source_mask: mask(*source_length),
                            destination: destination.to_be_bytes(),
                            destination_mask: mask(*destination_length),
                            sport_min: *sport_min as u16,
                            sport_max: *sport_max as u16,
                            dport_min: *dport_min as u16,
                            dport_max: *dport_max as u16,
                            ..base
                        });
                    }
                }
            }
        }
        return all;
    }
}

fn mask(length: u8) -> [u8; 4] {
    (!u32::MAX.checked_shr(length.into()).unwrap_or(0)).to_be_bytes()
}

/// Without those that others hold already, ascending; `None` if there are too many
/// to compare.
fn joined(exemptions: Vec<Exemption>) -> Option<Vec<Exemption>> {
    let distinct: BTreeSet<Exemption> = exemptions.into_iter().collect();
    if distinct.len() > COMPARED {
        return None;
    }
    let of_both = united(distinct, |one| &mut one.proto, [TCP, UDP]);
    let both_ways = united(of_both, |one| &mut one.direction, [direction::OUT, direction::IN]);
    let exemptions: Vec<Exemption> = both_ways.into_iter().collect();
    let kept = exemptions
        .iter()
        .filter(|one| !exemptions.iter().any(|other| other != *one && holds(other, one)))
        .copied()
        .collect();
    Some(kept)
}

/// Makes one of two that differ in nothing but this member, whose two values are
/// all that 0 stands for.
fn united(
    exemptions: BTreeSet<Exemption>,
    member: impl Fn(&mut Exemption) -> &mut u8,
    values: [u8; 2],
) -> BTreeSet<Exemption> {
    let with = |one: &Exemption, value: u8| {
        let mut other = *one;
        *member(&mut other) = value;
        other
    };
    let unite = |one: &Exemption| {
        let halves = values.map(|value| with(one, value));
        let both = halves.contains(one) && halves.iter().all(|half| exemptions.contains(half));
        if both { with(one, 0) } else { *one }
    };
    exemptions.iter().map(unite).collect()
}

/// Whether `wide` exempts all that `narrow` does.
fn holds(wide: &Exemption, narrow: &Exemption) -> bool {
    let network = |mask: [u8; 4], base: [u8; 4], inner_mask: [u8; 4], inner: [u8; 4]| {
        let [mask, base, inner_mask, inner] =
            [mask, base, inner_mask, inner].map(u32::from_be_bytes);
        mask & inner_mask == mask && inner & mask == base & mask
    };
    network(wide.source_mask, wide.source, narrow.source_mask, narrow.source)
        && network(
            wide.destination_mask,
            wide.destination,
            narrow.destination_mask,
            narrow.destination,
        )
        && wide.sport_min <= narrow.sport_min
        && wide.sport_max >= narrow.sport_max
        && wide.dport_min <= narrow.dport_min
        && wide.dport_max >= narrow.dport_max
        && (wide.proto == 0 || wide.proto == narrow.proto)
        && (wide.direction == 0 || wide.direction == narrow.direction)
        && wide.both_ways >= narrow.both_ways
}

fn line(finding: &RuleFinding, exemptions: &[Exemption]) -> RuleLine {
    let (effect, why) = match finding.note {
        _ if finding.reach.is_some() => (Effect::KernelPath, &*finding.why),
        Some(Note::Offload) => (Effect::Offload, "flow offload"),
        Some(Note::Log) | None => (Effect::Log, "log"),
    };
    let (family, table, chain) = match &finding.place {
        Some((family, table, chain)) => {
            (Some(*family), Some(table.to_string()), Some(chain.clone()))
        }
        None => (None, None, None),
    };
    RuleLine {
        effect,
        family,
        table,
        chain,
        handle: finding.handle,
        rule: finding.text.to_string(),
        why: why.to_owned(),
        matches: describe_all(exemptions),
    }
}

fn describe_all(exemptions: &[Exemption]) -> String {
    const SHOWN: usize = 4;
    let mut parts: Vec<String> = exemptions.iter().take(SHOWN).map(describe).collect();
    if exemptions.len() > SHOWN {
        parts.push(format!("{} more", exemptions.len() - SHOWN));
    }
    parts.join("; ")
}

/// An exemption in words.
pub fn describe(exemption: &Exemption) -> String {
    let network = |base: [u8; 4], mask: [u8; 4]| {
        let length = u32::from_be_bytes(mask).leading_ones();
        format!("{}/{length}", std::net::Ipv4Addr::from(base))
    };
    let ports = |low: u16, high: u16| match low == high {
        true => format!("port {low}"),
        false => format!("ports {low}-{high}"),
    };
    let any_port = |low: u16, high: u16| (low, high) == (0, u16::MAX);
    let mut words = vec![match exemption.proto {
        TCP => "TCP".to_owned(),
        UDP => "UDP".to_owned(),
        _ => "TCP and UDP".to_owned(),
    }];
    for (word, base, mask, low, high) in [
        ("from", exemption.source, exemption.source_mask, exemption.sport_min, exemption.sport_max),
        (
            "to",
            exemption.destination,
            exemption.destination_mask,
            exemption.dport_min,
            exemption.dport_max,
        ),
    ] {
        let address = (mask != [0; 4]).then(|| network(base, mask));
        let ports = (!any_port(low, high)).then(|| ports(low, high));
        if address.is_some() || ports.is_some() {
            words.push(word.to_owned());
        }
        words.extend(address.into_iter().chain(ports));
    }
    let mut text = words.join(" ");
    text.push_str(match exemption.direction {
        direction::OUT => ", outwards",
        direction::IN => ", inwards",
        _ => "",
    });
    if exemption.both_ways != 0 {
        text.push_str(", with the answers");
    }
    text
}

#[cfg(test)]
pub(super) mod tests;
