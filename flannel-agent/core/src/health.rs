//! What is wrong at the moment, by what it is about.
//!
//! There is one verb, [`Health::report`]. It takes how a subject is as a whole,
//! so what is not part of a report does not stand any longer.

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;
use std::time::Instant;

use ipnetwork::Ipv4Network;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::mac::MacAddr;
use crate::text;

/// Complaints that are kept; more are counted only.
const LIMIT: usize = 100;

/// Declares [`Subject`] with the text of each.
macro_rules! subjects {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// What a complaint is about.
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
        )]
        pub enum Subject {
            $($(#[$doc])* #[serde(rename = $text)] $name,)*
        }

        impl Subject {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// As status shows it.
            pub fn text(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }
        }
    };
}

subjects! {
    /// `Backend.MTU` beside the underlay's MTU.
    BackendMtu = "Backend.MTU",
    /// The blackhole route of our subnet.
    BlackholeRoute = "blackhole route",
    /// conntrack's switch that TCP on the fast path needs.
    Conntrack = "conntrack",
    /// conntrack's timeouts of idle TCP connections.
    ConntrackTimeouts = "conntrack timeouts",
    /// conntrack's timeouts of UDP flows.
    ConntrackUdpTimeouts = "conntrack UDP timeouts",
    /// Somebody else writes our lease again and again.
    ContestedLease = "contested lease",
    /// The programs' counters.
    Counters = "counters",
    /// The overlay's device.
    Device = "device",
    /// Its addresses.
    DeviceAddress = "device address",
    /// Who makes the checksums of what it sends (`--tunnel-checksum`).
    DeviceChecksum = "device checksum",
    /// Its MAC.
    DeviceMac = "device MAC",
    /// Its MTU.
    DeviceMtu = "device MTU",
    /// The route of a device without neighbours.
    DeviceRoute = "device route",
    /// Somebody's rule or route that leads what pods send to peers elsewhere.
    Detour = "detour",
    /// What the programs are told of the devices around them.
    Devices = "devices",
    /// `--fast-path=eager`.
    Eager = "eager",
    /// An FDB entry.
    FdbEntry = "FDB entry",
    /// The fast path as a whole.
    FastPath = "fast path",
    /// The firewall rules.
    Firewall = "firewall",
    /// The flow table.
    FlowTable = "flow table",
    /// `net.ipv4.ip_forward`, and `forwarding` of single devices.
    Forwarding = "forwarding",
    /// The end of all confirmations.
    Generation = "generation",
    /// A hook of the programs.
    Hook = "hook",
    /// What host-gw asks of the underlay.
    HostGw = "host-gw",
    /// The udp backend's ICMP errors.
    IcmpErrors = "ICMP errors",
    /// The kernel's events.
    KernelEvents = "kernel events",
    /// A lease that is no peer.
    Lease = "lease",
    /// The links of the node.
    Links = "links",
    /// Our lease is another node's.
    LostLease = "lost lease",
    /// An entry of the programs' maps.
    MapEntry = "map entry",
    /// Room for the tunnel in the underlay's packets.
    Mtu = "MTU",
    /// A neighbour entry.
    Neighbour = "neighbour",
    /// The nodes' own addresses beside the subnets of the network config.
    Network = "Network",
    /// The network config in the store.
    NetworkConfig = "network config",
    /// What is there, as read back.
    Observation = "observation",
    /// IPsec policies.
    Ipsec = "ipsec policies",
    /// Our lease in the store.
    OwnLease = "own lease",
    /// Rules that judge each packet.
    PacketRules = "packet rules",
    /// The next hops to the peers.
    NextHops = "next hops",
    /// The routes of a peer.
    Peer = "peer",
    /// The place of peers in the programs' tables.
    Peers = "peers",
    /// The address that a peer's packets come from.
    PeerSource = "source of peer",
    /// The pins of maps and links.
    Pins = "pins",
    /// The renewal of our lease.
    Renewal = "renewal of the lease",
    /// MTUs and hop limits of routes.
    RouteLimits = "route limits",
    /// Routing rules.
    RoutingRules = "ip rules",
    /// The sign of life for the programs.
    SignOfLife = "sign of life",
    /// The range of local ports.
    SourcePorts = "source ports",
    /// The state file.
    StateFile = "state file",
    /// The store.
    Store = "store",
    /// The store's data are not those that it had.
    StoreHistory = "store history",
    /// subnet.env.
    SubnetFile = "subnet file",
    /// The udp backend's proxy.
    UdpProxy = "udp proxy",
    /// The external interface.
    Underlay = "underlay",
    /// Links by which routes lead elsewhere.
    Uplinks = "uplinks",
    /// The underlay's XDP program.
    Xdp = "xdp",
}

impl Subject {
    /// Whether a complaint is an error for the log, not a warning.
    pub fn is_grave(self) -> bool {
        matches!(self, Self::StoreHistory | Self::LostLease | Self::ContestedLease)
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

/// Which one, of a subject that there are several of.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// There is one only, or all are meant.
    #[default]
    Whole,
    /// The one of this subnet.
    Subnet(Ipv4Network),
    /// The one with this address.
    Address(Ipv4Addr),
    /// The one with this MAC.
    Mac(MacAddr),
    /// The one of this name.
    Name(String),
}

/// A subject and which of them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct About {
    /// The subject.
    pub subject: Subject,
    /// Which of them.
    pub part: Part,
}

impl About {
    /// The routes of the peer with this subnet.
    pub fn peer(subnet: Ipv4Network) -> Self {
        Self { subject: Subject::Peer, part: Part::Subnet(subnet) }
    }
}

impl From<Subject> for About {
    fn from(subject: Subject) -> Self {
        Self { subject, part: Part::Whole }
    }
}

impl fmt::Display for About {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let subject = self.subject;
        match &self.part {
            Part::Whole => write!(f, "{subject}"),
            Part::Subnet(subnet) => write!(f, "{subject} {subnet}"),
            Part::Address(address) => write!(f, "{subject} {address}"),
            Part::Mac(mac) => write!(f, "{subject} {mac}"),
            Part::Name(name) => write!(f, "{subject} {}", text::shown(name, text::VALUE)),
        }
    }
}

/// How a subject is: reasons why it is not well, by its parts; well without any.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found(BTreeMap<Part, String>);

impl Found {
    /// It is well.
    pub fn well() -> Self {
        Self::default()
    }

    /// It is not, for this reason.
    pub fn not_well(reason: impl Into<String>) -> Self {
        Some(reason.into()).into()
    }
}

impl From<Option<String>> for Found {
    fn from(reason: Option<String>) -> Self {
        reason.map(|reason| (Part::Whole, reason)).into_iter().collect()
    }
}

impl<T, E: fmt::Display> From<Result<T, E>> for Found {
    fn from(result: Result<T, E>) -> Self {
        result.err().map(|error| error.to_string()).into()
    }
}

impl FromIterator<(Part, String)> for Found {
    fn from_iter<I: IntoIterator<Item = (Part, String)>>(parts: I) -> Self {
        Self(parts.into_iter().collect())
    }
}

/// All present complaints, by what they are about.
#[derive(Debug, Default)]
pub struct Health {
    complaints: BTreeMap<About, Complaint>,
}

#[derive(Debug)]
struct Complaint {
    reason: String,
    since: Instant,
}

/// One complaint, as status shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Line {
    /// What it is about.
    pub subject: Subject,
    /// The same, and which of them, as text.
    pub what: String,
    /// Why.
    pub reason: String,
    /// For how long.
    pub since_seconds: u64,
}

/// What a report changed, for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HealthChange {
    /// A complaint is new.
    Began(About, String),
    /// It has another reason now.
    Differs(About, String),
    /// It is new, and one too many to be kept.
    Unlisted(About, String),
    /// It is well again.
    Ended(About),
}

impl Health {
    /// Takes in how `subject` is now. All that stood about it and is not found
    /// again ends.
    pub fn report(
        &mut self,
        subject: Subject,
        found: impl Into<Found>,
        now: Instant,
    ) -> Vec<HealthChange> {
        let Found(found) = found.into();
        // Reasons hold what the kernel, programs, and the store's values say.
        let shown = |(part, reason): (Part, String)| (part, text::shown(&reason, text::REASON));
        let mut found: BTreeMap<Part, String> = found.into_iter().map(shown).collect();
        let mut changes = Vec::new();
        let mut gone = Vec::new();
        for (about, complaint) in self.complaints.range_mut(About::from(subject)..) {
            if about.subject != subject {
                break;
            }
            match found.remove(&about.part) {
                None => gone.push(about.clone()),
                Some(reason) if reason != complaint.reason => {
                    complaint.reason.clone_from(&reason);
                    changes.push(HealthChange::Differs(about.clone(), reason));
                }
                Some(_) => {}
            }
        }
        for about in gone {
            self.complaints.remove(&about);
            changes.push(HealthChange::Ended(about));
        }
        for (part, reason) in found {
            let about = About { subject, part };
            if self.complaints.len() >= LIMIT {
                changes.push(HealthChange::Unlisted(about, reason));
            } else {
                let complaint = Complaint { reason: reason.clone(), since: now };
                self.complaints.insert(about.clone(), complaint);
                changes.push(HealthChange::Began(about, reason));
            }
        }
        changes
    }

    /// The reason of a complaint, if there is one.
    pub fn reason(&self, about: impl Into<About>) -> Option<&str> {
        self.complaints.get(&about.into()).map(|complaint| complaint.reason.as_str())
    }

    /// The first complaint about any of these, as text.
    pub fn first_of(&self, subjects: &[Subject]) -> Option<String> {
        self.complaints
            .iter()
            .find(|(about, _)| subjects.contains(&about.subject))
            .map(|(about, complaint)| format!("{about}: {}", complaint.reason))
    }

    /// How many complaints there are about a subject.
    pub fn count(&self, subject: Subject) -> usize {
        let rest = self.complaints.range(About::from(subject)..);
        rest.take_while(|(about, _)| about.subject == subject).count()
    }

    /// All complaints, in the order of their texts.
    pub fn lines(&self, now: Instant) -> Vec<Line> {
        let mut lines: Vec<Line> = self
            .complaints
            .iter()
            .map(|(about, complaint)| Line {
                subject: about.subject,
                what: about.to_string(),
                reason: complaint.reason.clone(),
                since_seconds: now.saturating_duration_since(complaint.since).as_secs(),
            })
            .collect();
        lines.sort_by(|a, b| a.what.cmp(&b.what));
        lines
    }
}

#[cfg(test)]
mod tests;
