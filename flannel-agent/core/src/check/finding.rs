//! What a look at the node finds.

use std::borrow::Cow;

use schemars::JsonSchema;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// How well something is.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Condition {
    /// As it should be.
    Well,
    /// It could not be looked at.
    Unknown,
    /// Packets pass, but slower or not to every peer, or something will fail later.
    Degraded,
    /// Packets are lost, or pods get no network.
    Broken,
}

/// Declares [`Id`] with its word, and why each matters.
macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident = $word:literal, $why:literal;)*) => {
        /// What was looked at.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Id {
            $($(#[$doc])* $name,)*
        }

        impl Id {
            /// All of them, in the order in which they are shown.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The word that it is known by.
            pub fn word(self) -> &'static str {
                match self {
                    $(Self::$name => $word,)*
                }
            }

            /// Why it matters.
            pub fn why(self) -> &'static str {
                match self {
                    $(Self::$name => $why,)*
                }
            }
        }
    };
}

ids! {
    /// The daemon.
    Agent = "agent", "nobody else follows the cluster and keeps the fast path";
    /// What the kernel's BPF can do.
    KernelFeatures = "kernel-features", "without them the kernel path carries everything";
    /// What the daemon may do.
    Capabilities = "capabilities", "without them it can set up less, or nothing";
    /// The file system of pins.
    Bpffs = "bpffs", "without pins the fast path ends with the daemon";
    /// Other people's programs and filters on our hooks.
    ForeignPrograms = "foreign-programs", "they see packets before or instead of ours";
    /// The device by which peers are reached.
    Underlay = "underlay", "all packets to and from peers go by it";
    /// `net.ipv4.ip_forward`, and `forwarding` of single devices.
    Forwarding = "forwarding", "without it the kernel drops what is not for the node itself";
    /// `rp_filter`.
    RpFilter = "rp-filter", "a strict filter drops packets whose way back is another";
    /// Rules that drop pods' packets.
    ForwardRules = "forward-rules", "what a rule drops never arrives";
    /// Rules that drop the tunnel's packets.
    TunnelRules = "tunnel-rules", "without the tunnel's packets no peer is reached";
    /// firewalld and ufw.
    FirewallService = "firewall-service", "it writes its rules anew whenever it likes";
    /// Who has the VXLAN port.
    VxlanPort = "vxlan-port", "one device or program can have the port";
    /// The device and those of other networks.
    Devices = "devices", "an old device may keep our port, or routes of the overlay";
    /// subnet.env.
    SubnetFile = "subnet-file", "pods get their addresses and MTU from it";
    /// IPsec policies.
    Ipsec = "ipsec", "packets of the fast path would go around them";
    /// Room for full packets on the way to the peers.
    Mtu = "mtu", "ping works and large transfers hang where full packets do not pass";
    /// Checksums of TCP in the tunnel.
    TunnelChecksum = "tunnel-checksum", "peers drop what has a wrong checksum: TCP waits for seconds";
    /// etcd.
    Store = "store", "without it new nodes are not seen, and the lease ends after 24 hours";
    /// Our clock and etcd's.
    Clock = "clock", "certificates and logs are judged by it";
    /// Leases with the same address, MAC or subnet.
    DuplicateLeases = "duplicate-leases", "packets for one node go to another";
    /// Certificates for etcd.
    Certificates = "certificates", "etcd cannot be reached after their end";
}

impl Serialize for Id {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.word())
    }
}

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let word = String::deserialize(deserializer)?;
        let found = Self::ALL.iter().find(|id| id.word() == word);
        found.copied().ok_or_else(|| D::Error::custom(format!("nothing is looked at as {word:?}")))
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Finding {
    /// What.
    #[schemars(with = "String")]
    pub id: Id,
    /// How it is.
    pub state: Condition,
    /// What was found.
    pub found: String,
    /// Why it matters.
    pub why: Cow<'static, str>,
    /// What helps; `null` if nothing has to be done.
    pub remedy: Option<String>,
}

impl Finding {
    /// It is as it should be.
    pub fn well(id: Id, found: impl Into<String>) -> Self {
        Self { id, state: Condition::Well, found: found.into(), why: id.why().into(), remedy: None }
    }

    /// It is not; `remedy` helps.
    pub fn ill(
        id: Id,
        state: Condition,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { remedy: Some(remedy.into()), state, ..Self::well(id, found) }
    }

    /// The same, but another reason makes it matter.
    pub fn since(self, why: &'static str) -> Self {
        Self { why: why.into(), ..self }
    }

    /// It could not be looked at.
    pub fn unknown(id: Id, reason: impl Into<String>) -> Self {
        Self { state: Condition::Unknown, ..Self::well(id, reason) }
    }
}

/// All that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CheckReport {
    /// The worst state; `unknown` counts as `degraded`.
    pub verdict: Condition,
    /// A daemon answered. Without one there is less to look at.
    pub daemon: bool,
    /// In the order of [`Id::ALL`].
    pub findings: Vec<Finding>,
}

impl CheckReport {
    /// Sums up.
    pub fn new(daemon: bool, mut findings: Vec<Finding>) -> Self {
        findings.sort_by_key(|finding| finding.id);
        let worst = findings.iter().map(|finding| finding.state).max().unwrap_or(Condition::Well);
        let verdict = if worst == Condition::Unknown { Condition::Degraded } else { worst };
        Self { verdict, daemon, findings }
    }
}
