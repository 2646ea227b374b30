//! What a rule looks at that stays the same for all packets of a flow. Pure.

use std::collections::BTreeSet;

use super::ranges::{Addresses, Ports};

/// Protocols that the fast path carries, as bits.
pub mod protocol {
    /// TCP.
    pub const TCP: u8 = 1;
    /// UDP.
    pub const UDP: u8 = 2;
    /// Both.
    pub const ALL: u8 = TCP | UDP;
}

/// Conntrack's states, as bits.
pub mod state {
    /// No answer was seen yet.
    pub const NEW: u8 = 1;
    /// Packets of both directions were seen.
    pub const ESTABLISHED: u8 = 2;
    /// As new, but expected because of another connection.
    pub const RELATED: u8 = 4;
    /// Conntrack makes nothing of it.
    pub const INVALID: u8 = 8;
    /// Kept from conntrack.
    pub const UNTRACKED: u8 = 16;
    /// All.
    pub const ALL: u8 = NEW | ESTABLISHED | RELATED | INVALID | UNTRACKED;
}

/// Packets by TCP flags, as bits.
pub mod stage {
    /// SYN, FIN, RST, and what has no ACK: the kernel's in any case.
    pub const HANDSHAKE: u8 = 1;
    /// All others, and UDP.
    pub const DATA: u8 = 2;
    /// All.
    pub const ALL: u8 = HANDSHAKE | DATA;
}

/// Firewall marks, as bits.
pub mod mark {
    /// The mark is 0.
    pub const NONE: u8 = 1;
    /// It is another.
    pub const SOME: u8 = 2;
    /// Any.
    pub const ALL: u8 = NONE | SOME;
}

/// Sockets that packets come from, as bits.
pub mod socket {
    /// None: they are forwarded, or the tunnel's.
    pub const NONE: u8 = 1;
    /// That of a process of the node.
    pub const SOME: u8 = 2;
    /// Either.
    pub const ALL: u8 = NONE | SOME;
}

/// Whether the node has the destination's address, as bits.
pub mod target {
    /// It has: the packet is for the node.
    pub const NODE: u8 = 1;
    /// It has not: the packet is forwarded, or sent to others.
    pub const OTHERS: u8 = 2;
    /// Either.
    pub const ALL: u8 = NODE | OTHERS;
}

/// Names of interfaces; a `*` at the end stands for anything.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Names {
    /// Any interface.
    #[default]
    Any,
    /// One of these.
    OneOf(BTreeSet<String>),
}

impl Names {
    /// One of these.
    pub fn of<T: Into<String>>(names: impl IntoIterator<Item = T>) -> Self {
        Self::OneOf(names.into_iter().map(Into::into).collect())
    }

    /// Whether the interface of this name is one of these.
    pub fn fit(&self, name: &str) -> bool {
        match self {
            Self::Any => true,
            Self::OneOf(patterns) => patterns.iter().any(|pattern| both(pattern, name).is_some()),
        }
    }

    fn and(&self, other: &Self) -> Self {
        match (self, other) {
            (Self::Any, names) | (names, Self::Any) => names.clone(),
            (Self::OneOf(ours), Self::OneOf(theirs)) => {
                let pairs = ours.iter().flat_map(|a| theirs.iter().map(move |b| both(a, b)));
                Self::OneOf(pairs.flatten().map(str::to_owned).collect())
            }
        }
    }

    fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Any, _) => true,
            (Self::OneOf(_), Self::Any) => false,
            (Self::OneOf(ours), Self::OneOf(theirs)) => {
                theirs.iter().all(|name| ours.iter().any(|our| both(our, name) == Some(name)))
            }
        }
    }

    fn is_none(&self) -> bool {
        matches!(self, Self::OneOf(names) if names.is_empty())
    }
}

/// The narrower of two patterns, if a name can fit both.
fn both<'a>(a: &'a str, b: &'a str) -> Option<&'a str> {
    let within = |name: &str, pattern: &str| match pattern.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => name == pattern,
    };
    if within(b, a) { Some(b) } else { within(a, b).then_some(a) }
}

/// Packets that may match; the default is all of TCP and UDP over IPv4.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Matches {
    /// Source address.
    pub source: Addresses,
    /// Destination address.
    pub destination: Addresses,
    /// Source port.
    pub sport: Ports,
    /// Destination port.
    pub dport: Ports,
    /// Bits of [`protocol`].
    pub protocols: u8,
    /// Bits of [`state`].
    pub states: u8,
    /// Bits of [`stage`].
    pub stages: u8,
    /// Bits of [`mark`].
    pub marks: u8,
    /// Bits of [`socket`].
    pub sockets: u8,
    /// Bits of [`target`].
    pub targets: u8,
    /// Interface that they came by.
    pub input: Names,
    /// Interface that they leave by.
    pub output: Names,
}

impl Default for Matches {
    fn default() -> Self {
        Self {
            source: Addresses::ALL,
            destination: Addresses::ALL,
            sport: Ports::ALL,
            dport: Ports::ALL,
            protocols: protocol::ALL,
            states: state::ALL,
            stages: stage::ALL,
            marks: mark::ALL,
            sockets: socket::ALL,
            targets: target::ALL,
            input: Names::Any,
            output: Names::Any,
        }
    }
}

impl Matches {
    /// Packets that match both; `None` if there are none.
    pub fn and(&self, other: &Self) -> Option<Self> {
        let both = Self {
            source: self.source.and(&other.source),
            destination: self.destination.and(&other.destination),
            sport: self.sport.and(&other.sport),
            dport: self.dport.and(&other.dport),
            protocols: self.protocols & other.protocols,
            states: self.states & other.states,
            stages: self.stages & other.stages,
            marks: self.marks & other.marks,
            sockets: self.sockets & other.sockets,
            targets: self.targets & other.targets,
            input: self.input.and(&other.input),
            output: self.output.and(&other.output),
        };
        both.is_possible().then_some(both)
    }

    fn is_possible(&self) -> bool {
        let empty = self.source.is_empty()
            || self.destination.is_empty()
            || self.sport.is_empty()
            || self.dport.is_empty()
            || self.input.is_none()
            || self.output.is_none();
        let Self { protocols, states, stages, marks, sockets, targets, .. } = *self;
        let bits = [protocols, states, stages, marks, sockets, targets];
        !empty && bits.iter().all(|bits| *bits != 0)
    }

    /// Whether all that `other` matches is matched, whatever conntrack's state.
    pub fn covers_but_for_states(&self, other: &Self) -> bool {
        self.source.covers(&other.source)
            && self.destination.covers(&other.destination)
            && self.sport.covers(&other.sport)
            && self.dport.covers(&other.dport)
            && other.protocols & !self.protocols == 0
            && other.stages & !self.stages == 0
            && other.marks & !self.marks == 0
            && other.sockets & !self.sockets == 0
            && other.targets & !self.targets == 0
            && self.input.covers(&other.input)
            && self.output.covers(&other.output)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_and_without_a_star() {
        let veths = Names::of(["veth*", "eth0"]);
        assert!(veths.fit("veth7") && veths.fit("eth0") && !veths.fit("eth01"));
        assert!(Names::Any.fit("x"));
        let narrower = veths.and(&Names::of(["veth1*", "eth*"]));
        assert_eq!(narrower, Names::of(["veth1*", "eth0"]));
        assert!(veths.and(&Names::of(["lo"])).is_none());
        assert!(veths.covers(&narrower) && !narrower.covers(&veths));
        assert!(Names::Any.covers(&veths) && !veths.covers(&Names::Any));
    }

    #[test]
    fn what_nothing_can_match_is_none() {
        let tcp = Matches { protocols: protocol::TCP, ..Matches::default() };
        let udp = Matches { protocols: protocol::UDP, ..Matches::default() };
        assert_eq!(tcp.and(&udp), None);
        assert_eq!(tcp.and(&Matches::default()), Some(tcp.clone()));
        let here = Matches { source: Addresses::prefix(0x0a05_0000, 16), ..Matches::default() };
        let there = Matches { source: here.source.not(), ..Matches::default() };
        assert_eq!(here.and(&there), None);
    }

    #[test]
    fn covering_leaves_states_aside() {
        let all = Matches::default();
        let established = Matches { states: state::ESTABLISHED, ..Matches::default() };
        assert!(established.covers_but_for_states(&all));
        let tcp = Matches { protocols: protocol::TCP, ..Matches::default() };
        assert!(!tcp.covers_but_for_states(&all) && all.covers_but_for_states(&tcp));
        let named = Matches { input: Names::of(["cni0"]), ..Matches::default() };
        assert!(!named.covers_but_for_states(&all) && all.covers_but_for_states(&named));
    }
}
