//! A rule while it is being read. Pure.

use super::flags;
use super::matches::{Matches, protocol, target};
use super::ruleset::{Judges, Note, Rule, Verdict};

/// What was read of a rule so far.
#[derive(Clone, Debug)]
pub(super) struct Draft {
    /// The rule.
    pub(super) rule: Rule,
    /// No packet of the fast path can match it.
    pub(super) never: bool,
    /// It keeps packets from conntrack.
    pub(super) notrack: bool,
}

impl Default for Draft {
    fn default() -> Self {
        let rule = Rule { exact: true, ..Rule::default() };
        Self { rule, never: false, notrack: false }
    }
}

impl Draft {
    /// Only what matches this, too.
    pub(super) fn narrow(&mut self, matches: &Matches) {
        match self.rule.matches.and(matches) {
            Some(both) => self.rule.matches = both,
            None => self.never = true,
        }
    }

    /// There is a condition that cannot be expressed.
    pub(super) fn vague(&mut self) {
        self.rule.exact = false;
    }

    /// There is a condition that differs from packet to packet.
    pub(super) fn select(&mut self, reach: Judges, why: &str) {
        self.vague();
        if self.rule.selects.as_ref().is_none_or(|(known, _)| *known < reach) {
            self.rule.selects = Some((reach, why.into()));
        }
    }

    /// It does something that cannot be repeated.
    pub(super) fn act(&mut self, reach: Judges, why: &str) {
        self.rule.effect = true;
        if self.rule.acts.as_ref().is_none_or(|(known, _)| *known < reach) {
            self.rule.acts = Some((reach, why.into()));
        }
    }

    /// It changes what leaves of the packet, or whether it does.
    pub(super) fn alter(&mut self, why: &str) {
        self.rule.effect = true;
        self.rule.alters.get_or_insert_with(|| why.into());
    }

    /// It drops the packet.
    pub(super) fn drop(&mut self, why: &str) {
        self.alter(why);
        self.rule.drops = true;
        self.end();
    }

    /// It tells of packets, or offloads flows.
    pub(super) fn note(&mut self, note: Note) {
        self.rule.note = self.rule.note.max(Some(note));
    }

    /// The packet is done with.
    pub(super) fn end(&mut self) {
        self.rule.verdict = Verdict::End;
    }

    /// Packets of TCP whose flags pass a test.
    pub(super) fn flags(&mut self, test: impl Fn(u8) -> bool) {
        let judged = flags::judge(test);
        self.narrow(&Matches {
            protocols: protocol::TCP,
            stages: judged.stages,
            ..Matches::default()
        });
        if judged.depends {
            self.select(Judges::Packet, "tcp flags");
        }
        self.rule.exact &= judged.exact;
    }

    /// Packets whose destination has an address of one of these types, or of none of them.
    /// Of the types that are not the node's own it is only known that they are others'.
    pub(super) fn target_types<'a>(
        &mut self,
        types: impl IntoIterator<Item = &'a str>,
        negated: bool,
    ) {
        let (mut node, mut others) = (false, false);
        for name in types {
            match name.eq_ignore_ascii_case("local") {
                true => node = true,
                false => others = true,
            }
        }
        let targets = match (negated, node, others) {
            (false, true, false) => target::NODE,
            (false, false, _) | (true, true, _) => target::OTHERS,
            (false, true, true) | (true, false, _) => target::ALL,
        };
        self.narrow(&Matches { targets, ..Matches::default() });
        self.rule.exact &= !others;
    }

    /// The types were asked for with regard to an interface: they tell nothing.
    pub(super) fn any_target(&mut self) {
        self.rule.matches.targets = target::ALL;
        self.vague();
    }

    /// The rule, unless no packet can match it.
    pub(super) fn finish(self) -> Option<Rule> {
        Some(self.rule).filter(|_| !self.never)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_nodes_own_type_is_known_as_a_whole() {
        let read = |types: &str, negated| {
            let mut draft = Draft::default();
            draft.target_types(types.split(','), negated);
            (draft.rule.matches.targets, draft.rule.exact)
        };
        assert_eq!(read("LOCAL", false), (target::NODE, true));
        assert_eq!(read("local", true), (target::OTHERS, true));
        assert_eq!(read("MULTICAST,BROADCAST", false), (target::OTHERS, false));
        assert_eq!(read("MULTICAST", true), (target::ALL, false));
        assert_eq!(read("local,broadcast", false), (target::ALL, false));
        assert_eq!(read("local,broadcast", true), (target::OTHERS, false));
    }
}
