//! Which packets come to which rule: from the base chains through all jumps. Pure.

mod classes;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use ipnetwork::Ipv4Network;

use self::classes::{classes, inner};
use super::matches::{Matches, Names};
use super::ruleset::{
    Chain, ChainKey, Family, Judges, NetfilterHook, Note, Rule, RuleSet, Verdict,
};

/// The kernel allows 16 jumps in a row.
const DEPTH: usize = 32;
/// Rules that are looked at, each time that a way leads there. A rule set with
/// more ways than this is not followed to the end.
const STEPS: usize = 200_000;
/// Rules that only tell of packets are listed up to this many.
const NOTES: usize = 100;

/// What is known of the overlay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overlay {
    /// The overlay network: what is forwarded to a pod or a peer goes there.
    pub network: Ipv4Network,
    /// The tunnel's port, if there is one.
    pub port: Option<u16>,
}

/// Which packet a rule sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Layer {
    /// That of pods.
    Inner,
    /// The tunnel's, which comes in.
    TunnelIn,
    /// The tunnel's, which goes out.
    TunnelOut,
}

/// Packets that come to a rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RuleScope {
    /// Which packet it is.
    pub layer: Layer,
    /// Where the rule is met.
    pub hook: NetfilterHook,
    /// The packets.
    pub matches: Matches,
}

/// A rule that matters, and what comes to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleFinding {
    /// Family, table and chain; `None` if the whole rule set is meant.
    pub place: Option<(Family, Arc<str>, String)>,
    /// Number in nftables.
    pub handle: Option<u64>,
    /// Its text.
    pub text: Arc<str>,
    /// What of it matters (`limit`, `queue`, ...).
    pub why: Arc<str>,
    /// How far that reaches; `None` for a rule that is only noted.
    pub reach: Option<Judges>,
    /// Why it is noted.
    pub note: Option<Note>,
    /// What comes to it.
    pub scopes: Vec<RuleScope>,
}

/// All rules that matter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// The rules.
    pub rules: Vec<RuleFinding>,
    /// Packets may be kept from conntrack.
    pub notrack: bool,
    /// Rules that drop or change the tunnel's packets that go out.
    pub outer: Vec<RuleFinding>,
    /// Rules that are noted and not in the list.
    pub more_notes: usize,
    /// Chains that see what devices send, whatever their rules do: what the programs
    /// send goes around them.
    pub egress: Vec<EgressChain>,
}

/// A base chain at the egress hook of nftables' netdev family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EgressChain {
    /// Table and chain.
    pub chain: String,
    /// Its devices.
    pub devices: Names,
}

impl Findings {
    /// Both.
    pub fn join(mut self, other: Self) -> Self {
        self.rules.extend(other.rules);
        self.outer.extend(other.outer);
        self.notrack |= other.notrack;
        self.more_notes += other.more_notes;
        self.egress.extend(other.egress);
        self
    }
}

/// Follows all packets through a rule set.
pub fn findings(rules: &RuleSet, overlay: Overlay) -> Findings {
    let mut findings = walked(rules, overlay).take();
    add_notes(rules, overlay, &mut findings);
    findings
}

/// The walk from all base chains.
fn walked(rules: &RuleSet, overlay: Overlay) -> Walk<'_> {
    let mut walk = Walk::new(rules);
    for (at, chain) in rules.chains.iter().enumerate() {
        let Some(base) = chain.base.as_ref() else { continue };
        for (layer, matches) in classes(chain.family, base, overlay, rules.notrack) {
            walk.here = (layer, base.hook);
            let drops = layer == Layer::TunnelOut && base.drops;
            if !walk.is_of_interest(at) && !drops {
                continue;
            }
            let left = walk.through(at, matches.clone(), 0);
            if drops && left != 0 {
                let matches = Matches { states: left, ..matches };
                walk.dropped.push((at, RuleScope { layer, hook: base.hook, matches }));
            }
        }
    }
    walk
}

struct Walk<'a> {
    rules: &'a RuleSet,
    index: HashMap<ChainKey<'a>, usize>,
    /// Chains with rules that cannot be repeated, or that lead to such.
    of_interest: Vec<bool>,
    /// The same with rules that alter packets.
    altering: Vec<bool>,
    /// Chains that decide nothing: they log and count.
    inert: Vec<bool>,
    here: (Layer, NetfilterHook),
    /// What comes to a rule (chain and place in it).
    found: BTreeMap<(usize, usize), BTreeSet<RuleScope>>,
    /// What comes to the end of a base chain that drops it.
    dropped: Vec<(usize, RuleScope)>,
    /// What was walked already, with the states that came back.
    walked: HashMap<(usize, RuleScope), u8>,
    steps: usize,
    lost: bool,
}

impl<'a> Walk<'a> {
    fn new(rules: &'a RuleSet) -> Self {
        let index = rules.index();
        let callers = callers(rules, &index);
        let of_interest =
            spread(rules, &callers, |rule| rule.selects.is_some() || rule.acts.is_some());
        let altering = spread(rules, &callers, |rule| rule.alters.is_some() || rule.acts.is_some());
        let decides = spread(rules, &callers, |rule| {
            rule.effect
                || rule.acts.is_some()
                || matches!(rule.verdict, Verdict::End | Verdict::Goto(_))
        });
        let inert = decides.into_iter().map(|decides| !decides).collect();
        Self {
            rules,
            index,
            of_interest,
            altering,
            inert,
            here: (Layer::Inner, NetfilterHook::Forward),
            found: BTreeMap::new(),
            dropped: Vec::new(),
            walked: HashMap::new(),
            steps: 0,
            lost: false,
        }
    }

    /// Whether something in a chain matters for the packets at hand.
    fn is_of_interest(&self, at: usize) -> bool {
        match self.here.0 {
            Layer::TunnelOut => self.altering[at],
            Layer::Inner | Layer::TunnelIn => self.of_interest[at],
        }
    }

    /// Takes packets through a chain; conntrack's states of those that come out at
    /// its end.
    fn through(&mut self, at: usize, packets: Matches, depth: usize) -> u8 {
        let (layer, hook) = self.here;
        let scope = RuleScope { layer, hook, matches: packets };
        if let Some(states) = self.walked.get(&(at, scope.clone())) {
            return *states;
        }
        if depth > DEPTH {
            self.lost = true;
            return scope.matches.states;
        }
        let left = self.pass(at, &scope, depth);
        self.walked.insert((at, scope), left);
        left
    }

    fn pass(&mut self, at: usize, scope: &RuleScope, depth: usize) -> u8 {
        let rules = self.rules;
        let chain = &rules.chains[at];
        let mut packets = scope.matches.clone();
        let mut returned = 0;
        for (number, rule) in chain.rules.iter().enumerate() {
            self.steps += 1;
            if self.steps > STEPS {
                self.lost = true;
                return scope.matches.states;
            }
            let Some(matched) = packets.and(&rule.matches) else { continue };
            self.note(chain, (at, number), rule, scope, &matched);
            let all = rule.exact && rule.matches.covers_but_for_states(&packets);
            let (states, matched_states) = (packets.states, matched.states);
            let unmatched = if all { states & !rule.matches.states } else { states };
            packets.states = match &rule.verdict {
                Verdict::Continue => states,
                Verdict::End => unmatched,
                Verdict::Return => {
                    returned |= matched_states;
                    unmatched
                }
                Verdict::Jump(target) => unmatched | self.jump(chain, target, matched, all, depth),
                Verdict::Goto(target) => {
                    returned |= self.jump(chain, target, matched, all, depth);
                    unmatched
                }
            };
            if packets.states == 0 {
                break;
            }
        }
        packets.states | returned
    }

    /// Into another chain. Where nothing there matters, and something else may come
    /// out below in any case, it is not walked.
    fn jump(
        &mut self,
        from: &Chain,
        target: &str,
        packets: Matches,
        all: bool,
        depth: usize,
    ) -> u8 {
        let states = packets.states;
        let key = (from.family, &*from.table, target);
        match self.index.get(&key).copied() {
            Some(at) if all || self.is_of_interest(at) => self.through(at, packets, depth + 1),
            _ => states,
        }
    }

    /// Notes what comes to a rule, if its decision is for single packets.
    fn note(
        &mut self,
        chain: &Chain,
        place: (usize, usize),
        rule: &Rule,
        scope: &RuleScope,
        matched: &Matches,
    ) {
        let decides = match &rule.verdict {
            Verdict::Continue => rule.effect,
            Verdict::End => true,
            // Past rules that only log.
            Verdict::Return => rule.effect || !self.inert[place.0],
            Verdict::Jump(target) | Verdict::Goto(target) => {
                let key = (chain.family, &*chain.table, target.as_str());
                let inert = self.index.get(&key).is_some_and(|at| self.inert[*at]);
                rule.effect || !inert || matches!(rule.verdict, Verdict::Goto(_))
            }
        };
        let matters = match scope.layer {
            Layer::TunnelOut => rule.alters.is_some(),
            Layer::Inner | Layer::TunnelIn => rule.selects.is_some() && decides,
        };
        if rule.acts.is_some() || matters {
            let scope = RuleScope { matches: matched.clone(), ..scope.clone() };
            self.found.entry(place).or_default().insert(scope);
        }
    }

    fn take(self) -> Findings {
        let rules = self.rules;
        let mut findings = Findings { notrack: rules.notrack, ..Findings::default() };
        for ((at, number), scopes) in self.found {
            let chain = &rules.chains[at];
            let rule = &chain.rules[number];
            let (outer, others): (Vec<RuleScope>, Vec<RuleScope>) =
                scopes.into_iter().partition(|scope| scope.layer == Layer::TunnelOut);
            let why = rule.acts.iter().chain(&rule.selects).max();
            let finding = || finding(chain, rule);
            if let Some((reach, why)) = why.filter(|_| !others.is_empty()) {
                let (reach, why) = (Some(*reach), Arc::clone(why));
                findings.rules.push(RuleFinding { why, reach, scopes: others, ..finding() });
            }
            let why = rule.alters.as_ref().or(rule.acts.as_ref().map(|(_, why)| why));
            if let Some(why) = why.filter(|_| !outer.is_empty()) {
                let why = Arc::clone(why);
                findings.outer.push(RuleFinding { why, scopes: outer, ..finding() });
            }
        }
        findings.outer.extend(self.dropped.into_iter().map(|(at, scope)| RuleFinding {
            text: "policy drop".into(),
            why: "policy".into(),
            scopes: vec![scope],
            ..finding(&rules.chains[at], &Rule::default())
        }));
        if self.lost {
            findings.rules.push(too_large());
        }
        findings
    }
}

fn finding(chain: &Chain, rule: &Rule) -> RuleFinding {
    RuleFinding {
        place: Some((chain.family, Arc::clone(&chain.table), chain.name.clone())),
        handle: rule.handle,
        text: rule.text.clone().unwrap_or_default(),
        why: "".into(),
        reach: None,
        note: None,
        scopes: Vec::new(),
    }
}

/// What stands for a rule set with too many ways through it.
fn too_large() -> RuleFinding {
    RuleFinding {
        place: None,
        handle: None,
        text: "the rule set has more ways through it than are followed".into(),
        why: "size".into(),
        reach: Some(Judges::Packet),
        note: None,
        scopes: vec![RuleScope {
            layer: Layer::Inner,
            hook: NetfilterHook::Forward,
            matches: Matches::default(),
        }],
    }
}

/// For each chain those that jump to it.
fn callers(rules: &RuleSet, index: &HashMap<ChainKey<'_>, usize>) -> Vec<Vec<usize>> {
    let mut callers = vec![Vec::new(); rules.chains.len()];
    for (at, chain) in rules.chains.iter().enumerate() {
        for target in chain.rules.iter().filter_map(|rule| leads_to(chain, rule, index)) {
            callers[target].push(at);
        }
    }
    callers
}

fn leads_to(chain: &Chain, rule: &Rule, index: &HashMap<ChainKey<'_>, usize>) -> Option<usize> {
    match &rule.verdict {
        Verdict::Jump(target) | Verdict::Goto(target) => {
            index.get(&(chain.family, &*chain.table, target.as_str())).copied()
        }
        _ => None,
    }
}

/// Chains with such a rule, and all that lead to them.
fn spread(rules: &RuleSet, callers: &[Vec<usize>], such: impl Fn(&Rule) -> bool) -> Vec<bool> {
    let mut marked: Vec<bool> =
        rules.chains.iter().map(|chain| chain.rules.iter().any(&such)).collect();
    let mut open: Vec<usize> = (0..marked.len()).filter(|at| marked[*at]).collect();
    while let Some(at) = open.pop() {
        for caller in &callers[at] {
            if !std::mem::replace(&mut marked[*caller], true) {
                open.push(*caller);
            }
        }
    }
    marked
}

/// Rules that log or offload: by their own matches, and only if packets come to
/// their chain at all.
fn add_notes(rules: &RuleSet, overlay: Overlay, findings: &mut Findings) {
    let index = rules.index();
    let mut reached: BTreeMap<usize, BTreeSet<RuleScope>> = BTreeMap::new();
    let mut open = VecDeque::new();
    for (at, chain) in rules.chains.iter().enumerate() {
        let Some(base) = chain.base.as_ref().filter(|base| !base.nat) else { continue };
        if let Some(matches) = inner(chain.family, base, overlay) {
            open.push_back((at, RuleScope { layer: Layer::Inner, hook: base.hook, matches }));
        }
    }
    while let Some((at, scope)) = open.pop_front() {
        if !reached.entry(at).or_default().insert(scope.clone()) {
            continue;
        }
        let chain = &rules.chains[at];
        let targets = chain.rules.iter().filter_map(|rule| leads_to(chain, rule, &index));
        open.extend(targets.map(|target| (target, scope.clone())));
    }
    let mut count = 0;
    for (at, scopes) in reached {
        let chain = &rules.chains[at];
        for rule in chain.rules.iter().filter(|rule| rule.note.is_some()) {
            let seen = scopes.iter().filter_map(|scope| {
                let matches = scope.matches.and(&rule.matches)?;
                Some(RuleScope { matches, ..scope.clone() })
            });
            let scopes: Vec<RuleScope> = seen.collect();
            if scopes.is_empty() {
                continue;
            }
            count += 1;
            if count <= NOTES {
                findings.rules.push(RuleFinding {
                    note: rule.note,
                    scopes,
                    ..finding(chain, rule)
                });
            }
        }
    }
    findings.more_notes = count.saturating_sub(NOTES);
}

#[cfg(test)]
mod tests;
