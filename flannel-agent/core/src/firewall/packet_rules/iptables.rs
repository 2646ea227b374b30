//! `iptables-save`, read for the rules that judge single packets. Pure.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::slice::Iter;
use std::sync::Arc;

use super::draft::Draft;
use super::flags;
use super::kinds::{self, Action, Condition};
use super::matches::{Matches, Names, mark, protocol, socket, state};
use super::ranges::{Addresses, Ports};
use super::ruleset::{Base, Chain, Family, Judges, NetfilterHook, Note, RuleSet, Verdict, bounded};
use super::words::{self, Word};
use crate::firewall::saved::{self, Table};

/// Options with a word that anybody may choose, such as a comment: it is no option
/// whatever it looks like.
const FREE: &[&str] = &[
    "--comment",
    "--log-prefix",
    "--nflog-prefix",
    "--prefix",
    "--string",
    "--hex-string",
    "--hashlimit-name",
    "--name",
    "--label",
    "--u32",
    "--bytecode",
    "--object-pinned",
    "--path",
    "--rateest-name",
    "--genre",
];

/// TCP options that stand in a SYN only: MSS, window scale, SACK permitted.
const OF_SYN: [&str; 3] = ["2", "3", "4"];

/// Reads the tables but for `nat`, which sees the first packet of a connection
/// only.
pub fn read(text: &str) -> RuleSet {
    let mut rules = RuleSet::default();
    for table in saved::parse(text).iter().filter(|table| table.name != "nat") {
        read_table(table, &mut rules);
    }
    rules
}

fn read_table(table: &Table, rules: &mut RuleSet) {
    let name: Arc<str> = table.name.as_str().into();
    let mut places = HashMap::new();
    for (chain, policy) in &table.chains {
        let hook = NetfilterHook::named(chain).filter(|_| policy != "-");
        let base = hook.map(|hook| Base {
            hook,
            nat: false,
            drops: policy == "DROP",
            devices: Names::Any,
        });
        places.insert(chain.as_str(), rules.chains.len());
        rules.chains.push(Chain {
            family: Family::Ip,
            table: Arc::clone(&name),
            name: chain.clone(),
            base,
            rules: Vec::new(),
        });
    }
    for line in &table.rules {
        let words = words::split(line);
        let chain = words.get(1).map(|word| word.text.as_str());
        let Some(at) = chain.and_then(|chain| places.get(chain)).copied() else { continue };
        let is_chain = |name: &str| places.contains_key(name);
        let words = words[2..].iter();
        let draft = Reader { words, draft: Draft::default(), module: None, is_chain }.read();
        rules.notrack |= draft.notrack;
        let Some(mut rule) = draft.finish().filter(|rule| !rule.is_idle()) else { continue };
        rule.text = rule.is_of_interest().then(|| bounded(line));
        rules.chains[at].rules.push(rule);
    }
}

struct Reader<'a, F> {
    words: Iter<'a, Word>,
    draft: Draft,
    /// The last `-m`: several have a `--mark`.
    module: Option<String>,
    is_chain: F,
}

impl<F: Fn(&str) -> bool> Reader<'_, F> {
    fn read(mut self) -> Draft {
        let mut negated = false;
        let mut target = None;
        while let Some(word) = self.words.next() {
            if word.is("!") {
                negated = true;
                continue;
            }
            match word.text.as_str() {
                _ if word.quoted => {}
                "-j" | "-g" => {
                    target = self.next();
                    self.target(target.as_deref().unwrap_or_default(), word.is("-g"));
                }
                option => match &target {
                    Some(target) => self.target_option(target, option),
                    None => self.option(option, negated),
                },
            }
            negated = false;
        }
        self.draft
    }

    fn next(&mut self) -> Option<String> {
        self.words.next().map(|word| word.text.clone())
    }

    fn option(&mut self, option: &str, negated: bool) {
        match option {
            "-m" => {
                let name = self.next().unwrap_or_default();
                self.module(&name);
                self.module = Some(name);
            }
            "-s" | "-d" | "--src-range" | "--dst-range" => self.address(option, negated),
            "-i" | "-o" => self.interface(option, negated),
            "-p" => self.protocol(negated),
            "--sport" | "--sports" | "--dport" | "--dports" => self.ports(option, negated),
            "--ctstate" | "--state" => self.states(negated),
            "--dst-type" => {
                let types = self.next().unwrap_or_default();
                self.draft.target_types(types.split(','), negated);
            }
            // An address of the node is none of this interface's.
            "--limit-iface-in" | "--limit-iface-out" => self.draft.any_target(),
            "--tcp-flags" => self.flags(negated),
            "--tcp-option" => {
                let of_syn = self.next().is_some_and(|kind| OF_SYN.contains(&kind.as_str()));
                if of_syn {
                    self.draft.vague();
                } else {
                    self.draft.select(Judges::Packet, "tcp option");
                }
            }
            // The fast path has no fragments.
            "-f" => self.draft.never |= !negated,
            "--comment" => {
                self.words.next();
            }
            "--mark" if self.module.as_deref() == Some("mark") => self.mark(negated),
            // What comes from no socket has no owner.
            "--uid-owner" | "--gid-owner" | "--socket-exists" if !negated => {
                self.draft.narrow(&Matches { sockets: socket::SOME, ..Matches::default() });
            }
            // An entry of a set that counts packets.
            _ if option.starts_with("--packets-") || option.starts_with("--bytes-") => {
                self.draft.select(Judges::Packet, "set counters");
            }
            _ if FREE.contains(&option) => {
                self.draft.vague();
                self.words.next();
            }
            _ if option.starts_with('-') => self.draft.vague(),
            // The value of an option that is not read.
            _ => {}
        }
    }

    fn module(&mut self, name: &str) {
        match kinds::condition(name) {
            Condition::Read => {}
            Condition::Constant => self.draft.vague(),
            Condition::Differs(reach) => self.draft.select(reach, name),
        }
    }

    fn address(&mut self, option: &str, negated: bool) {
        let read = self.next().and_then(|text| addresses(&text));
        let Some((set, exact)) = read else { return self.draft.vague() };
        // All but a set that is only known as a part of a larger one: anything.
        let set = match (negated, exact) {
            (false, _) => set,
            (true, true) => set.not(),
            (true, false) => Addresses::ALL,
        };
        self.draft.rule.exact &= exact;
        let source = matches!(option, "-s" | "--src-range");
        self.draft.narrow(&match source {
            true => Matches { source: set, ..Matches::default() },
            false => Matches { destination: set, ..Matches::default() },
        });
    }

    fn interface(&mut self, option: &str, negated: bool) {
        let name = self.next();
        let Some(name) = name.filter(|_| !negated) else { return self.draft.vague() };
        let name = match name.strip_suffix('+') {
            Some(start) => format!("{start}*"),
            None => name,
        };
        let names = Names::of([name]);
        self.draft.narrow(&match option {
            "-i" => Matches { input: names, ..Matches::default() },
            _ => Matches { output: names, ..Matches::default() },
        });
    }

    fn protocol(&mut self, negated: bool) {
        let protocols = match self.next().as_deref() {
            Some("tcp" | "6") => protocol::TCP,
            Some("udp" | "17") => protocol::UDP,
            Some("all" | "0") => protocol::ALL,
            _ => 0,
        };
        let protocols = if negated { protocol::ALL & !protocols } else { protocols };
        self.draft.narrow(&Matches { protocols, ..Matches::default() });
    }

    fn ports(&mut self, option: &str, negated: bool) {
        let read = self.next().and_then(|text| ports(&text));
        let Some(set) = read else { return self.draft.vague() };
        let set = if negated { set.not() } else { set };
        self.draft.narrow(&match option.starts_with("--s") {
            true => Matches { sport: set, ..Matches::default() },
            false => Matches { dport: set, ..Matches::default() },
        });
    }

    /// `--mark VALUE[/MASK]`; that there is such a condition was noted with its module.
    fn mark(&mut self, negated: bool) {
        let text = self.next().unwrap_or_default();
        let (value, mask) = text.split_once('/').unwrap_or((&text, "0xffffffff"));
        let marked =
            matches!((number(value), number(mask)), (Some(value), Some(mask)) if value & mask != 0);
        if marked && !negated {
            self.draft.narrow(&Matches { marks: mark::SOME, ..Matches::default() });
        }
    }

    fn states(&mut self, negated: bool) {
        let mut states = 0;
        let mut known = true;
        for name in self.next().unwrap_or_default().split(',') {
            states |= match name {
                "NEW" => state::NEW,
                "ESTABLISHED" => state::ESTABLISHED,
                "RELATED" => state::RELATED,
                "INVALID" => state::INVALID,
                "UNTRACKED" => state::UNTRACKED,
                // SNAT and DNAT are no states in this sense.
                _ => {
                    known = false;
                    0
                }
            };
        }
        if !known {
            return self.draft.vague();
        }
        let states = if negated { state::ALL & !states } else { states };
        self.draft.narrow(&Matches { states, ..Matches::default() });
    }

    fn flags(&mut self, negated: bool) {
        let read = |text: Option<String>| {
            let named = text?.split(',').map(flags::named).collect::<Option<Vec<u8>>>();
            Some(named?.into_iter().fold(0, |all, flag| all | flag))
        };
        let (mask, set) = (read(self.next()), read(self.next()));
        match (mask, set) {
            (Some(mask), Some(set)) => {
                self.draft.flags(|flags| (flags & mask == set) != negated);
            }
            _ => self.draft.select(Judges::Packet, "tcp flags"),
        }
    }

    fn target(&mut self, name: &str, goto: bool) {
        if goto {
            self.draft.rule.verdict = Verdict::Goto(name.to_owned());
            return;
        }
        if (self.is_chain)(name) {
            self.draft.rule.verdict = Verdict::Jump(name.to_owned());
            return;
        }
        take(&mut self.draft, name);
    }

    fn target_option(&mut self, target: &str, option: &str) {
        match (target, option) {
            ("CT", "--helper") => {
                self.words.next();
                self.draft.act(Judges::Connection, "ct helper");
            }
            ("CT", "--notrack") => self.draft.notrack = true,
            ("CONNMARK", "--restore-mark") => self.draft.alter("CONNMARK"),
            _ if FREE.contains(&option) => {
                self.words.next();
            }
            _ => {}
        }
    }
}

/// What a target means that is no chain.
pub(super) fn take(draft: &mut Draft, target: &str) {
    let Some(action) = kinds::action(target) else {
        draft.end();
        draft.vague();
        return draft.act(Judges::Packet, target);
    };
    match action {
        Action::End => draft.end(),
        Action::Drops => draft.drop(target),
        Action::Return => draft.rule.verdict = Verdict::Return,
        Action::Treats | Action::Conntrack => draft.rule.effect = true,
        Action::Alters => draft.alter(target),
        Action::Acts(reach) => draft.act(reach, target),
        Action::ActsAndEnds(reach) => {
            draft.act(reach, target);
            draft.end();
        }
        Action::Logs => draft.note(Note::Log),
        Action::Offloads => draft.note(Note::Offload),
        Action::Untracks => {
            draft.rule.effect = true;
            draft.notrack = true;
        }
    }
}

/// `0x10` or `16`.
fn number(text: &str) -> Option<u32> {
    match text.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

/// `10.0.0.0/8`, `10.0.0.0/255.0.255.0`, `10.0.0.1-10.0.0.9`; and whether that is
/// all of it.
fn addresses(text: &str) -> Option<(Addresses, bool)> {
    let number = |text: &str| text.parse::<Ipv4Addr>().ok().map(u32::from);
    if let Some((low, high)) = text.split_once('-') {
        return Some((Addresses::of([(number(low)?, number(high)?)]), true));
    }
    let (address, length) = text.split_once('/').unwrap_or((text, "32"));
    let address = number(address)?;
    if let Ok(length) = length.parse::<u8>() {
        return (length <= 32).then(|| (Addresses::prefix(address, length), true));
    }
    let mask = number(length)?;
    let length = mask.leading_ones();
    let exact = mask.count_ones() == length;
    Some((Addresses::prefix(address, u8::try_from(length).ok()?), exact))
}

/// `80`, `80:90`, `21,80,1000:2000`, `:1023`.
fn ports(text: &str) -> Option<Ports> {
    let range = |part: &str| {
        let (low, high) = part.split_once(':').unwrap_or((part, part));
        let low = if low.is_empty() { "0" } else { low };
        let high = if high.is_empty() { "65535" } else { high };
        Some((low.parse::<u16>().ok()?.into(), high.parse::<u16>().ok()?.into()))
    };
    let ranges: Option<Vec<(u32, u32)>> = text.split(',').map(range).collect();
    Some(Ports::of(ranges?))
}

#[cfg(test)]
mod tests;
