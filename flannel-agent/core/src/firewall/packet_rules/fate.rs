//! What becomes of given packets by the node's rules, and by which of them. Pure.

use std::collections::HashMap;
use std::sync::Arc;

use super::matches::Matches;
use super::ruleset::{Chain, ChainKey, Family, NetfilterHook, Rule, RuleSet, Verdict};

/// The kernel allows 16 jumps in a row.
const DEPTH: usize = 32;

/// How ufw's chains for IPv4 begin.
pub const UFW_CHAIN: &str = "ufw-";

/// What becomes of packets at a hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// They pass.
    Passes,
    /// Some of them may be dropped: the rule has conditions that are not known.
    Perhaps(Culprit),
    /// They are dropped.
    Dropped(Culprit),
}

/// The rule or policy that drops.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Culprit {
    /// Family of its table.
    pub family: Family,
    /// Its table.
    pub table: Arc<str>,
    /// Its chain.
    pub chain: String,
    /// Its number in nftables; `None` for policies and legacy iptables.
    pub handle: Option<u64>,
    /// Its text.
    pub text: Arc<str>,
}

impl Culprit {
    fn of(chain: &Chain, rule: Option<&Rule>) -> Self {
        let text = match rule {
            Some(rule) => rule.text.clone().or(rule.alters.clone()).unwrap_or_default(),
            None => "policy drop".into(),
        };
        Self {
            family: chain.family,
            table: Arc::clone(&chain.table),
            chain: chain.name.clone(),
            handle: rule.and_then(|rule| rule.handle),
            text,
        }
    }
}

/// Where a packet is after a chain.
enum Left {
    /// The base chain is done with it.
    Accepted,
    /// It is dropped.
    Dropped(Culprit),
    /// It came to the chain's end.
    Through,
}

/// What becomes of `packets`, which are alike, at these hooks. A drop in any chain
/// is the end; an accept is the end of its base chain only.
pub fn fate(rules: &RuleSet, hooks: &[NetfilterHook], packets: &Matches) -> Fate {
    let mut walk = Walk { rules, index: rules.index(), doubts: 0, under: 0, perhaps: None };
    for (at, chain) in rules.chains.iter().enumerate() {
        let Some(base) = chain.base.as_ref() else { continue };
        let routed = matches!(chain.family, Family::Ip | Family::Inet);
        if base.nat || !routed || !hooks.contains(&base.hook) {
            continue;
        }
        walk.doubts = 0;
        let left = match walk.through(at, packets, 0) {
            Left::Through if base.drops => walk.dropped(Culprit::of(chain, None)),
            left => left,
        };
        if let Left::Dropped(culprit) = left {
            return Fate::Dropped(culprit);
        }
    }
    walk.perhaps.map_or(Fate::Passes, Fate::Perhaps)
}

struct Walk<'a> {
    rules: &'a RuleSet,
    index: HashMap<ChainKey<'a>, usize>,
    /// Rules of this base chain that may have accepted, or sent back.
    doubts: usize,
    /// Jumps on the way here that are taken by some packets only, perhaps.
    under: usize,
    /// The first rule that may drop.
    perhaps: Option<Culprit>,
}

impl Walk<'_> {
    /// What comes here is dropped; but it is not sure that it comes here.
    fn dropped(&mut self, culprit: Culprit) -> Left {
        if self.doubts == 0 && self.under == 0 {
            return Left::Dropped(culprit);
        }
        self.perhaps.get_or_insert(culprit);
        Left::Accepted
    }

    fn through(&mut self, at: usize, packets: &Matches, depth: usize) -> Left {
        let chain = &self.rules.chains[at];
        for rule in &chain.rules {
            if depth > DEPTH || packets.and(&rule.matches).is_none() {
                continue;
            }
            let surely = is_sure(rule, packets);
            let left = match &rule.verdict {
                Verdict::Continue => continue,
                Verdict::End | Verdict::Return if !surely && !rule.drops => {
                    self.doubts += 1;
                    continue;
                }
                Verdict::Return => return Left::Through,
                Verdict::End if !rule.drops => return Left::Accepted,
                Verdict::End => {
                    self.under += usize::from(!surely);
                    let left = self.dropped(Culprit::of(chain, Some(rule)));
                    self.under -= usize::from(!surely);
                    left
                }
                Verdict::Jump(target) | Verdict::Goto(target) => {
                    self.under += usize::from(!surely);
                    let left = self.jump(chain, target, packets, depth);
                    self.under -= usize::from(!surely);
                    left
                }
            };
            match left {
                Left::Through if surely && matches!(rule.verdict, Verdict::Goto(_)) => return left,
                Left::Through => {}
                left if surely => return left,
                _ if rule.drops => {}
                _ => self.doubts += 1,
            }
        }
        Left::Through
    }

    fn jump(&mut self, from: &Chain, target: &str, packets: &Matches, depth: usize) -> Left {
        let key = (from.family, &*from.table, target);
        match self.index.get(&key).copied() {
            Some(at) => self.through(at, packets, depth + 1),
            None => Left::Through,
        }
    }
}

/// Whether a rule matches all of these packets, as far as can be told.
fn is_sure(rule: &Rule, packets: &Matches) -> bool {
    rule.exact
        && rule.selects.is_none()
        && rule.matches.covers_but_for_states(packets)
        && packets.states & !rule.matches.states == 0
}

#[cfg(test)]
mod tests {
    use super::super::iptables;
    use super::super::matches::{Names, mark, protocol, socket, state, target};
    use super::super::ranges::{Addresses, Ports};
    use super::*;

    fn pods() -> Matches {
        Matches {
            source: Addresses::prefix(0x0af4_0100, 24),
            destination: Addresses::prefix(0x0af4_0000, 16),
            states: state::NEW,
            marks: mark::NONE,
            sockets: socket::NONE,
            input: Names::of(["cni0"]),
            output: Names::of(["flannel.1"]),
            ..Matches::default()
        }
    }

    fn of(forward: &str) -> Fate {
        let text = format!("*filter\n{forward}\nCOMMIT\n");
        fate(&iptables::read(&text), &[NetfilterHook::Forward], &pods())
    }

    fn text(fate: &Fate) -> &str {
        match fate {
            Fate::Passes => "passes",
            Fate::Perhaps(culprit) | Fate::Dropped(culprit) => &culprit.text,
        }
    }

    #[test]
    fn policy_and_rules_drop_what_nothing_accepts() {
        assert_eq!(of(":FORWARD ACCEPT [0:0]"), Fate::Passes);
        let policy = of(":FORWARD DROP [0:0]\n-A FORWARD -i docker0 -j ACCEPT");
        assert!(matches!(policy, Fate::Dropped(_)) && text(&policy) == "policy drop", "{policy:?}");
        let accepted = ":FORWARD DROP [0:0]\n-A FORWARD -s 10.244.0.0/16 -j ACCEPT";
        assert_eq!(of(accepted), Fate::Passes);
        let rule = of(":FORWARD ACCEPT [0:0]\n:DENY - [0:0]\n-A FORWARD -j DENY\n\
                       -A DENY -s 10.244.0.0/16 -j REJECT");
        assert!(matches!(rule, Fate::Dropped(_)) && text(&rule).contains("REJECT"), "{rule:?}");
    }

    #[test]
    fn what_a_rule_matches_perhaps_is_dropped_perhaps() {
        let some = of(":FORWARD ACCEPT [0:0]\n-A FORWARD -p tcp -j DROP");
        assert!(matches!(some, Fate::Perhaps(_)), "UDP passes: {some:?}");
        let doubt = of(":FORWARD DROP [0:0]\n-A FORWARD -m mark --mark 7 -j ACCEPT\n\
                        -A FORWARD -m owner --uid-owner 7 -j ACCEPT");
        assert!(!matches!(doubt, Fate::Passes), "{doubt:?}");
        let back = of(":FORWARD ACCEPT [0:0]\n:C - [0:0]\n-A FORWARD -j C\n\
                       -A C -p udp -j RETURN\n-A C -j DROP");
        assert!(matches!(back, Fate::Perhaps(_)), "{back:?}");
        let gone = of(":FORWARD ACCEPT [0:0]\n:C - [0:0]\n-A FORWARD -g C\n\
                       -A FORWARD -j DROP\n-A C -p icmp -j DROP");
        assert_eq!(gone, Fate::Passes, "goto comes back to the policy");
    }

    /// What ufw asks first of all that comes in.
    const NOT_LOCAL: &str = "*filter\n:INPUT DROP [0:0]\n:ufw-not-local - [0:0]\n\
        -A INPUT -j ufw-not-local\n-A INPUT -p udp -m udp --dport 8472 -j ACCEPT\n\
        -A ufw-not-local -m addrtype --dst-type LOCAL -j RETURN\n\
        -A ufw-not-local -m addrtype --dst-type MULTICAST -j RETURN\n\
        -A ufw-not-local -m limit --limit 3/min --limit-burst 10 -j RETURN\n\
        -A ufw-not-local -j DROP\nCOMMIT\n";

    #[test]
    fn what_is_for_the_node_is_local() {
        let tunnel = Matches {
            protocols: protocol::UDP,
            dport: Ports::of([(8472, 8472)]),
            targets: target::NODE,
            ..pods()
        };
        let of =
            |packets: &Matches| fate(&iptables::read(NOT_LOCAL), &[NetfilterHook::Input], packets);
        assert_eq!(of(&tunnel), Fate::Passes);
        // Of others it is not known whether they are multicast.
        let others = Matches { targets: target::OTHERS, ..tunnel.clone() };
        assert!(matches!(of(&others), Fate::Perhaps(_)));
        let any = Matches { targets: target::ALL, ..tunnel.clone() };
        assert!(matches!(of(&any), Fate::Perhaps(_)));
        // The node's address may be another interface's.
        let strict = "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -m addrtype ! --dst-type LOCAL \
            --limit-iface-in -j DROP\nCOMMIT\n";
        let of_strict = fate(&iptables::read(strict), &[NetfilterHook::Input], &tunnel);
        assert!(matches!(of_strict, Fate::Perhaps(_)));
    }

    #[test]
    fn established_is_not_new() {
        let accepts =
            ":FORWARD DROP [0:0]\n-A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT";
        assert!(matches!(of(accepts), Fate::Dropped(_)));
        let drops = ":FORWARD ACCEPT [0:0]\n-A FORWARD -m conntrack --ctstate INVALID -j DROP";
        assert_eq!(of(drops), Fate::Passes);
    }
}
