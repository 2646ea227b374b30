//! Routing rules and tables, as far as they are about what pods send to peers.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write as _};
use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;

use super::Here;
use crate::subnet::within;

/// RT_TABLE_MAIN, where the routes to peers are.
pub const MAIN: u32 = 254;
/// RT_TABLE_LOCAL.
pub const LOCAL: u32 = 255;

/// A routing rule. They are in the order in which the kernel asks them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoutingRule {
    /// Its priority.
    pub priority: u32,
    /// Sources; `None`: all.
    pub from: Option<Ipv4Network>,
    /// Destinations.
    pub to: Option<Ipv4Network>,
    /// The device that packets come by; `lo`: the node's own.
    pub input: Option<String>,
    /// The headers that it takes.
    pub headers: Headers,
    /// It asks for something that others give a packet, or none that is forwarded has: a
    /// mark, a user, an output.
    pub special: bool,
    /// It takes what does not fit.
    pub inverted: bool,
    /// What it does.
    pub action: Action,
    /// Of its table, routes with at most this prefix length do not count.
    pub passes_over: Option<u8>,
}

/// What a rule wants of a packet's headers besides addresses; by default nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Headers {
    /// The TOS; 0: any.
    pub tos: u8,
    /// The protocol, by number.
    pub protocol: Option<u8>,
    /// The first and the last source port.
    pub source: Option<(u16, u16)>,
    /// The same of the destination.
    pub destination: Option<(u16, u16)>,
}

impl Headers {
    /// Whether it takes any.
    pub fn are_any(&self) -> bool {
        *self == Self::default()
    }

    /// Whether it takes whatever `other` takes.
    pub(super) fn cover(&self, other: &Self) -> bool {
        let ports = |own: Option<(u16, u16)>, other: Option<(u16, u16)>| match (own, other) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(own), Some(other)) => own.0 <= other.0 && other.1 <= own.1,
        };
        (self.tos == 0 || self.tos == other.tos)
            && (self.protocol.is_none() || self.protocol == other.protocol)
            && ports(self.source, other.source)
            && ports(self.destination, other.destination)
    }
}

impl fmt::Display for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut words = Vec::new();
        if self.tos != 0 {
            words.push(format!("tos {:#x}", self.tos));
        }
        words.extend(self.protocol.map(|protocol| match protocol {
            1 => "ipproto icmp".to_owned(),
            6 => "ipproto tcp".to_owned(),
            17 => "ipproto udp".to_owned(),
            number => format!("ipproto {number}"),
        }));
        for (name, ports) in [("sport", self.source), ("dport", self.destination)] {
            words.extend(ports.map(|(first, last)| match first == last {
                true => format!("{name} {first}"),
                false => format!("{name} {first}-{last}"),
            }));
        }
        f.write_str(&words.join(" "))
    }
}

/// What a rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Asks a table.
    Lookup(u32),
    /// Ends the packet, with the word for it.
    Lost(&'static str),
    /// Goes on with the rule of this priority.
    Goto(u32),
    /// Nothing.
    Nothing,
}

/// A route of one of the tables, with all that is in it about one destination: the first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableRoute {
    /// Its table.
    pub table: u32,
    /// Its destination.
    pub destination: Ipv4Network,
    /// What becomes of packets.
    pub fate: Fate,
}

/// What a route does with packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// They leave.
    Leaves {
        /// By these devices.
        outputs: Vec<u32>,
        /// To this gateway, where there is one only.
        gateway: Option<Ipv4Addr>,
    },
    /// They end: `blackhole`, `unreachable`, `prohibit`.
    Lost(&'static str),
    /// They are the node's own: `local`, `broadcast` and the like.
    Taken(&'static str),
    /// The next rule decides (`throw`).
    Next,
}

impl Fate {
    pub(super) fn does(&self) -> &'static str {
        match self {
            Self::Leaves { .. } => "led elsewhere",
            Self::Lost(_) => "lost",
            Self::Taken(_) => "taken for the node's own",
            Self::Next => "left to the next rule",
        }
    }
}

/// What was read of the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    /// All rules.
    pub rules: Vec<RoutingRule>,
    /// Of the tables that [`asked`] names, the routes that [`Here::matters`] for.
    pub routes: Vec<TableRoute>,
}

/// How much of something a rule takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fit {
    /// Nothing.
    Nothing,
    /// Some packets.
    Some,
    /// All of them.
    All,
}

impl Fit {
    /// Of what goes to `asked`, what a selector of `selected` takes.
    fn of(selected: Option<Ipv4Network>, asked: Ipv4Network) -> Self {
        match selected {
            None => Self::All,
            Some(selected) if within(selected, asked) => Self::All,
            Some(selected) if within(asked, selected) => Self::Some,
            Some(_) => Self::Nothing,
        }
    }

    fn inverted(self, inverted: bool) -> Self {
        match self {
            Self::Nothing if inverted => Self::All,
            Self::All if inverted => Self::Nothing,
            fit => fit,
        }
    }
}

/// A rule, and what it asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Step {
    /// As `ip rule` shows it.
    pub(super) rule: String,
    /// It asks a table that every node has.
    pub(super) usual: bool,
    /// The headers that it takes, of packets with addresses that fit.
    pub(super) headers: Headers,
    /// How much of what pods send it takes, wherever that goes.
    pods: Fit,
    to: Option<Ipv4Network>,
    inverted: bool,
    pub(super) what: What,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum What {
    Lost(&'static str),
    Table(Table),
}

/// A table as one rule asks it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Table {
    id: u32,
    pub(super) is_main: bool,
    passes_over: Option<u8>,
    pub(super) routes: BTreeMap<Ipv4Network, TableRoute>,
}

impl Step {
    /// How much of what pods send to these destinations it takes.
    pub(super) fn takes(&self, destination: Ipv4Network) -> Fit {
        self.pods.min(Fit::of(self.to, destination)).inverted(self.inverted)
    }
}

impl Table {
    /// Whether routes to such destinations do not count.
    pub(super) fn passes_over(&self, destination: Ipv4Network) -> bool {
        self.passes_over.is_some_and(|most| destination.prefix() <= most)
    }

    pub(super) fn name(&self) -> String {
        match self.id {
            MAIN => "main".to_owned(),
            LOCAL => "local".to_owned(),
            id => id.to_string(),
        }
    }
}

impl TableRoute {
    /// As `ip route` shows it.
    pub(super) fn text(&self, name: impl Fn(u32) -> String) -> String {
        let to = match self.destination {
            all if all.prefix() == 0 => "default".to_owned(),
            one if one.prefix() == 32 => one.ip().to_string(),
            some => some.to_string(),
        };
        match &self.fate {
            Fate::Lost(kind) | Fate::Taken(kind) => format!("{kind} {to}"),
            Fate::Next => format!("throw {to}"),
            Fate::Leaves { outputs, gateway } => {
                let via = gateway.map(|gateway| format!(" via {gateway}")).unwrap_or_default();
                let devices: Vec<String> =
                    outputs.iter().map(|output| format!(" dev {}", name(*output))).collect();
                format!("{to}{via}{}", devices.concat())
            }
        }
    }
}

impl Here {
    /// Whether a route of this table can be about peers, and is not one of ours to them.
    pub fn matters(&self, table: u32, destination: Ipv4Network, ours: bool) -> bool {
        if within(self.subnet, destination) {
            return false;
        }
        let inside = within(self.network, destination);
        match table {
            // What is wider than the route to a peer does not count there.
            MAIN => inside && !ours,
            _ => inside || within(destination, self.network),
        }
    }

    /// How much of what pods send fits a rule, wherever it goes, and not inverted.
    fn fits(&self, rule: &RoutingRule) -> Fit {
        let input = rule.input.as_ref().is_none_or(|input| self.inputs.contains(input));
        match input && !rule.special {
            true => Fit::of(rule.from, self.subnet),
            false => Fit::Nothing,
        }
    }

    /// How much of what pods send to peers a rule takes.
    fn takes(&self, rule: &RoutingRule) -> Fit {
        // All but some headers: what that is cannot be said in words.
        if rule.inverted && !rule.headers.are_any() {
            return Fit::Nothing;
        }
        self.fits(rule).min(Fit::of(rule.to, self.network)).inverted(rule.inverted)
    }

    /// Whether a rule finds the routes to all peers.
    fn finds_all(&self, rule: &RoutingRule) -> bool {
        let long = rule.passes_over.is_none_or(|most| most < self.network.prefix());
        rule.action == Action::Lookup(MAIN) && self.takes_all(rule) && long
    }

    /// Whether a rule takes all that pods send to peers.
    fn takes_all(&self, rule: &RoutingRule) -> bool {
        self.takes(rule) == Fit::All && rule.headers.are_any()
    }
}

/// The rules that what pods send to peers may meet, up to the one that finds their routes.
fn met<'a>(rules: &'a [RoutingRule], here: &Here) -> Vec<&'a RoutingRule> {
    let mut met = Vec::new();
    let mut from = 0;
    for rule in rules.iter().filter(|rule| here.takes(rule) > Fit::Nothing) {
        match rule.action {
            _ if rule.priority < from => {}
            Action::Goto(priority) if here.takes_all(rule) => from = priority,
            Action::Nothing | Action::Goto(_) => {}
            Action::Lost(_) | Action::Lookup(_) => met.push(rule),
        }
        if rule.priority >= from && here.finds_all(rule) {
            break;
        }
    }
    met
}

/// Whether some rule finds the routes to all peers.
pub(super) fn are_found(rules: &[RoutingRule], here: &Here) -> bool {
    met(rules, here).last().is_some_and(|last| here.finds_all(last))
}

/// The tables that are asked about what pods send to peers.
pub fn asked(rules: &[RoutingRule], here: &Here) -> BTreeSet<u32> {
    let table = |rule: &RoutingRule| match rule.action {
        Action::Lookup(table) => Some(table),
        _ => None,
    };
    met(rules, here).into_iter().filter_map(table).collect()
}

pub(super) fn steps(tables: &Tables, here: &Here) -> Vec<Step> {
    let mut by_table: BTreeMap<u32, BTreeMap<Ipv4Network, TableRoute>> = BTreeMap::new();
    for route in &tables.routes {
        let routes = by_table.entry(route.table).or_default();
        routes.entry(route.destination).or_insert_with(|| route.clone());
    }
    let step = |rule: &RoutingRule| {
        let what = match rule.action {
            Action::Lost(kind) => What::Lost(kind),
            Action::Lookup(id) => What::Table(Table {
                id,
                is_main: id == MAIN,
                passes_over: rule.passes_over,
                routes: by_table.get(&id).cloned().unwrap_or_default(),
            }),
            Action::Goto(_) | Action::Nothing => return None,
        };
        Some(Step {
            rule: rule.text(),
            usual: matches!(rule.action, Action::Lookup(MAIN | LOCAL)) && rule.headers.are_any(),
            headers: rule.headers,
            pods: here.fits(rule),
            to: rule.to,
            inverted: rule.inverted,
            what,
        })
    };
    met(&tables.rules, here).into_iter().filter_map(step).collect()
}

impl RoutingRule {
    /// One that asks a table about everything.
    pub fn of_table(priority: u32, table: u32) -> Self {
        Self {
            priority,
            from: None,
            to: None,
            input: None,
            headers: Headers::default(),
            special: false,
            inverted: false,
            action: Action::Lookup(table),
            passes_over: None,
        }
    }

    fn text(&self) -> String {
        let mut text = format!("{}:", self.priority);
        if self.inverted {
            text.push_str(" not");
        }
        let from = self.from.map_or_else(|| "all".to_owned(), |from| from.to_string());
        // Writing into a String does not fail.
        let _ = write!(text, " from {from}");
        if let Some(to) = self.to {
            let _ = write!(text, " to {to}");
        }
        if let Some(input) = &self.input {
            let _ = write!(text, " iif {input}");
        }
        if !self.headers.are_any() {
            let _ = write!(text, " {}", self.headers);
        }
        if self.special {
            text.push_str(" ...");
        }
        let _ = match self.action {
            Action::Lookup(table) => write!(text, " lookup {table}"),
            Action::Lost(kind) => write!(text, " {kind}"),
            Action::Goto(priority) => write!(text, " goto {priority}"),
            Action::Nothing => write!(text, " nop"),
        };
        if let Some(most) = self.passes_over {
            let _ = write!(text, " suppress_prefixlength {most}");
        }
        text
    }
}
