//! Whatever the rules are: a packet that a rule judges is exempt.

use flannel_ebpf::abi::{Exemption, direction};
use proptest::prelude::*;

use super::*;
use crate::firewall::packet_rules::exempt::tests::{overlay, resolved};
use crate::firewall::packet_rules::matches::{Names, protocol, stage, state};
use crate::firewall::packet_rules::ranges::{Addresses, Ports};
use crate::firewall::packet_rules::ruleset::Base;

/// A packet as FORWARD sees it, of those that may be on the fast path.
#[derive(Clone, Debug)]
struct Packet {
    source: u32,
    destination: u32,
    sport: u32,
    dport: u32,
    protocol: u8,
    state: u8,
    outwards: bool,
    /// What decides about conditions that cannot be expressed.
    chance: u64,
}

fn fits(rule: &Rule, packet: &Packet) -> bool {
    let (input, output) =
        if packet.outwards { ("cni0", "flannel.1") } else { ("flannel.1", "cni0") };
    let has = |ranges: &[(u32, u32)], number: u32| {
        ranges.iter().any(|(low, high)| (low..=high).contains(&&number))
    };
    let of = &rule.matches;
    has(of.source.ranges(), packet.source)
        && has(of.destination.ranges(), packet.destination)
        && has(of.sport.ranges(), packet.sport)
        && has(of.dport.ranges(), packet.dport)
        && of.protocols & packet.protocol != 0
        && of.states & packet.state != 0
        && of.stages & stage::DATA != 0
        && of.input.fit(input)
        && of.output.fit(output)
}

/// Whether a chain decides anything: else it does not matter how far packets come
/// in it.
fn decides(rules: &RuleSet, at: usize) -> bool {
    rules.chains[at].rules.iter().any(|rule| match &rule.verdict {
        _ if rule.acts.is_some() => true,
        Verdict::Continue | Verdict::Return => false,
        Verdict::End | Verdict::Goto(_) => true,
        Verdict::Jump(name) => decides(rules, position(rules, name)),
    })
}

fn position(rules: &RuleSet, name: &str) -> usize {
    rules.chains.iter().position(|chain| chain.name == name).unwrap()
}

/// Takes a packet through a chain: whether it came out at the end, and whether a
/// rule judged it.
fn run(rules: &RuleSet, at: usize, packet: &mut Packet, judged: &mut bool) -> bool {
    for rule in &rules.chains[at].rules {
        if !fits(rule, packet) {
            continue;
        }
        let selects =
            rule.selects.is_some() && (rule.verdict != Verdict::Return || decides(rules, at));
        *judged |= selects || rule.acts.is_some();
        if !rule.exact {
            packet.chance = packet.chance.rotate_right(1);
            if packet.chance & 1 == 0 {
                continue;
            }
        }
        match &rule.verdict {
            Verdict::Continue => {}
            Verdict::End => return false,
            Verdict::Return => return true,
            Verdict::Jump(name) => {
                if !run(rules, position(rules, name), packet, judged) {
                    return false;
                }
            }
            Verdict::Goto(name) => return run(rules, position(rules, name), packet, judged),
        }
    }
    true
}

fn is_exempt(exemptions: &[Exemption], packet: &Packet) -> bool {
    exemptions.iter().any(|one| {
        let within = |base: [u8; 4], mask: [u8; 4], address: u32| {
            let mask = u32::from_be_bytes(mask);
            address & mask == u32::from_be_bytes(base) & mask
        };
        let proto = if packet.protocol == protocol::TCP { 6 } else { 17 };
        let way = if packet.outwards { direction::OUT } else { direction::IN };
        within(one.source, one.source_mask, packet.source)
            && within(one.destination, one.destination_mask, packet.destination)
            && (u32::from(one.sport_min)..=u32::from(one.sport_max)).contains(&packet.sport)
            && (u32::from(one.dport_min)..=u32::from(one.dport_max)).contains(&packet.dport)
            && (one.proto == 0 || one.proto == proto)
            && (one.direction == 0 || one.direction == way)
    })
}

const NETWORK: u32 = 0x0a05_0000;

fn some_addresses() -> impl Strategy<Value = Addresses> {
    let subnet = |third: u32| Addresses::prefix(NETWORK | (third << 8), 24);
    prop_oneof![
        3 => Just(Addresses::ALL),
        1 => (0..4u32).prop_map(subnet),
        1 => (0..4u32).prop_map(move |third| subnet(third).not()),
        1 => Just(Addresses::prefix(NETWORK, 16)),
        1 => (0..1024u32, 0..1024u32)
            .prop_map(|(a, b)| Addresses::of([(NETWORK + a, NETWORK + a + b)])),
    ]
}

fn some_ports() -> impl Strategy<Value = Ports> {
    prop_oneof![
        3 => Just(Ports::ALL),
        1 => proptest::collection::vec((0..8u32, 0..3u32), 1..4)
            .prop_map(|all| Ports::of(all.into_iter().map(|(low, more)| (low, low + more)))),
        1 => (0..8u32).prop_map(|port| Ports::of([(port, port)]).not()),
    ]
}

fn some_names() -> impl Strategy<Value = Names> {
    prop_oneof![
        3 => Just(Names::Any),
        1 => proptest::sample::subsequence(vec!["cni0", "flannel.*", "eth0", "c*", "lo"], 1..3)
            .prop_map(Names::of),
    ]
}

fn some_matches() -> impl Strategy<Value = Matches> {
    // Rules that are for all packets but for conntrack's state change what comes to
    // later ones.
    let by_state = (1..=state::ALL).prop_map(|states| Matches { states, ..Matches::default() });
    prop_oneof![2 => some_narrow_matches(), 1 => by_state]
}

fn some_narrow_matches() -> impl Strategy<Value = Matches> {
    let states = prop_oneof![2 => Just(state::ALL), 2 => 1..=state::ALL];
    let stages = prop_oneof![4 => Just(stage::ALL), 1 => 1..=stage::ALL];
    let protocols = prop_oneof![2 => Just(protocol::ALL), 1 => 1..=protocol::ALL];
    (
        (some_addresses(), some_addresses()),
        (some_ports(), some_ports()),
        (protocols, states, stages),
        (some_names(), some_names()),
    )
        .prop_map(|(addresses, ports, (protocols, states, stages), names)| Matches {
            source: addresses.0,
            destination: addresses.1,
            sport: ports.0,
            dport: ports.1,
            protocols,
            states,
            stages,
            input: names.0,
            output: names.1,
            ..Matches::default()
        })
}

/// A rule of a chain; it jumps to later ones only.
fn some_rule(chain: usize) -> impl Strategy<Value = Rule> {
    let jump = (chain + 1..CHAINS.max(chain + 2)).prop_map(move |to| match to < CHAINS {
        true => Verdict::Jump(format!("c{to}")),
        false => Verdict::Return,
    });
    let goto = (chain + 1..CHAINS.max(chain + 2)).prop_map(move |to| match to < CHAINS {
        true => Verdict::Goto(format!("c{to}")),
        false => Verdict::End,
    });
    let verdict = prop_oneof![
        3 => Just(Verdict::End),
        1 => Just(Verdict::Return),
        1 => Just(Verdict::Continue),
        3 => jump,
        1 => goto,
    ];
    (some_matches(), any::<bool>(), 0..4u8, verdict).prop_map(|(matches, exact, kind, verdict)| {
        let why = || Some((Judges::Packet, "limit".into()));
        match kind {
            // A condition on single packets decides something.
            0 if verdict != Verdict::Continue && !matches!(verdict, Verdict::Jump(_)) => {
                Rule { matches, exact: false, selects: why(), verdict, ..Rule::default() }
            }
            1 => Rule { matches, exact, acts: why(), verdict, effect: true, ..Rule::default() },
            _ => Rule { matches, exact, verdict, ..Rule::default() },
        }
    })
}

const CHAINS: usize = 4;

fn some_rule_set() -> impl Strategy<Value = RuleSet> {
    let chain = |number: usize| {
        proptest::collection::vec(some_rule(number), 0..5).prop_map(move |rules| Chain {
            family: Family::Ip,
            table: "filter".into(),
            name: format!("c{number}"),
            base: (number == 0).then_some(Base {
                hook: NetfilterHook::Forward,
                nat: false,
                drops: false,
                devices: Names::Any,
            }),
            rules,
        })
    };
    (chain(0), chain(1), chain(2), chain(3))
        .prop_map(|(a, b, c, d)| RuleSet { chains: vec![a, b, c, d], notrack: false })
}

fn some_packet() -> impl Strategy<Value = Packet> {
    let address = || (0..1400u32).prop_map(|host| NETWORK + host);
    let of_tcp = Just((protocol::TCP, state::ESTABLISHED));
    let of_udp = prop_oneof![
        Just((protocol::UDP, state::NEW)),
        Just((protocol::UDP, state::ESTABLISHED)),
        Just((protocol::UDP, state::RELATED)),
    ];
    let kind = prop_oneof![of_tcp, of_udp];
    (address(), address(), 0..10u32, 0..10u32, kind, any::<bool>(), any::<u64>()).prop_map(
        |(source, destination, sport, dport, (protocol, state), outwards, chance)| Packet {
            source,
            destination,
            sport,
            dport,
            protocol,
            state,
            outwards,
            chance,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    #[test]
    fn a_packet_that_a_rule_judges_is_exempt(
        rules in some_rule_set(),
        packets in proptest::collection::vec(some_packet(), 40),
    ) {
        let found = findings(&rules, overlay());
        let exemptions = resolved(&found).exemptions;
        for packet in packets {
            let mut judged = false;
            run(&rules, 0, &mut packet.clone(), &mut judged);
            prop_assert!(!judged || is_exempt(&exemptions, &packet), "{packet:?} {exemptions:?}");
        }
    }
}

/// The property above says nothing if most packets are judged, or if all are
/// exempt in any case.
#[test]
fn packets_of_all_kinds_are_tried() {
    use proptest::strategy::ValueTree as _;
    use proptest::test_runner::TestRunner;
    let mut runner = TestRunner::deterministic();
    let (mut judged_of, mut exempt_of) = (0, 0);
    for _ in 0..2000 {
        let rules = some_rule_set().new_tree(&mut runner).unwrap().current();
        let packet = some_packet().new_tree(&mut runner).unwrap().current();
        let exemptions = resolved(&findings(&rules, overlay())).exemptions;
        let mut judged = false;
        run(&rules, 0, &mut packet.clone(), &mut judged);
        judged_of += u32::from(judged);
        exempt_of += u32::from(is_exempt(&exemptions, &packet));
    }
    assert!((200..1500).contains(&judged_of), "{judged_of} judged");
    assert!(exempt_of < 1900, "{exempt_of} exempt");
}

fn chain(name: &str, base: bool, rules: Vec<Rule>) -> Chain {
    let base = base.then_some(Base {
        hook: NetfilterHook::Forward,
        nat: false,
        drops: false,
        devices: Names::Any,
    });
    Chain { family: Family::Ip, table: "filter".into(), name: name.to_owned(), base, rules }
}

fn jump(target: &str) -> Rule {
    Rule { exact: true, verdict: Verdict::Jump(target.to_owned()), ..Rule::default() }
}

fn limit() -> Rule {
    let selects = Some((Judges::Packet, "limit".into()));
    Rule { selects, verdict: Verdict::End, ..Rule::default() }
}

#[test]
fn jumps_in_a_circle_end() {
    let a = chain("a", true, vec![jump("b"), jump("b")]);
    let b = chain("b", false, vec![jump("a"), jump("a"), limit()]);
    let rules = RuleSet { chains: vec![a, b], notrack: false };
    assert_eq!(resolved(&findings(&rules, overlay())).exemptions, [Exemption::default()]);
}

#[test]
fn too_many_ways_count_as_everything() {
    // Two ways through each of 30 chains, each with a condition of its own.
    let mut chains = Vec::new();
    for number in 0..30 {
        let next = format!("c{}", number + 1);
        let ways = (0..2).map(|way| Rule {
            matches: Matches {
                dport: Ports::of([(2 * number + way, 2 * number + way)]).not(),
                ..Matches::default()
            },
            ..jump(&next)
        });
        chains.push(chain(&format!("c{number}"), number == 0, ways.collect()));
    }
    chains.push(chain("c30", false, vec![limit()]));
    let rules = RuleSet { chains, notrack: false };
    let walk = walked(&rules, overlay());
    // From the last step on, one in each chain that is left, and in each class of packets.
    assert!((STEPS..STEPS + 4 * DEPTH).contains(&walk.steps), "{} steps", walk.steps);
    let found = walk.take();
    assert!(found.rules.iter().any(|rule| rule.place.is_none()), "it is said");
    assert_eq!(resolved(&found).exemptions, [Exemption::default()]);
}

#[test]
fn rules_of_tables_that_translate_do_not_count() {
    let nat = Chain {
        base: Some(Base {
            hook: NetfilterHook::Prerouting,
            nat: true,
            drops: false,
            devices: Names::Any,
        }),
        ..chain("PREROUTING", true, vec![limit()])
    };
    let rules = RuleSet { chains: vec![nat], notrack: false };
    assert_eq!(findings(&rules, overlay()), Findings::default());
}

#[test]
fn devices_of_a_chain_say_the_direction() {
    let at = |hook: NetfilterHook, device: &str| {
        let devices = Names::of([device]);
        let base = Some(Base { hook, nat: false, drops: false, devices });
        let chain = Chain { family: Family::Netdev, base, ..chain("c", true, vec![limit()]) };
        let found = findings(&RuleSet { chains: vec![chain], notrack: false }, overlay());
        let directions: Vec<u8> =
            resolved(&found).exemptions.iter().map(|one| one.direction).collect();
        directions
    };
    assert_eq!(at(NetfilterHook::Ingress, "veth1"), [direction::OUT]);
    assert_eq!(at(NetfilterHook::Ingress, "flannel.1"), [direction::IN]);
    assert_eq!(at(NetfilterHook::Ingress, "eth0"), [direction::IN], "tunnel packets");
    assert_eq!(at(NetfilterHook::Ingress, "lo"), [0u8; 0]);
    assert_eq!(at(NetfilterHook::Egress, "veth1"), [direction::IN]);
    assert_eq!(at(NetfilterHook::Egress, "flannel.1"), [direction::OUT]);
    assert_eq!(at(NetfilterHook::Egress, "eth0"), [0u8; 0], "what the programs send leaves by it");
}

#[test]
fn bridges_hooks_count_but_for_what_stays_on_the_bridge() {
    let at = |hook: NetfilterHook| {
        let base = Some(Base { hook, nat: false, drops: false, devices: Names::Any });
        let chain = Chain { family: Family::Bridge, base, ..chain("c", true, vec![limit()]) };
        findings(&RuleSet { chains: vec![chain], notrack: false }, overlay()).rules.len()
    };
    let hooks = [
        NetfilterHook::Prerouting,
        NetfilterHook::Input,
        NetfilterHook::Forward,
        NetfilterHook::Output,
        NetfilterHook::Postrouting,
    ]
    .map(at);
    assert_eq!(hooks, [1, 1, 0, 1, 1]);
}
