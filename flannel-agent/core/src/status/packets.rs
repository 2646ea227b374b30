//! Packets at the programs' hooks, as `monitor` shows them.

use std::borrow::Cow;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::SystemTime;

use flannel_ebpf::abi::Outcome;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Ends;

/// A packet at one hook.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PacketEvent {
    /// When, in UTC.
    #[serde(with = "super::time")]
    #[schemars(with = "String")]
    pub at: SystemTime,
    /// The program that saw it.
    pub hook: Cow<'static, str>,
    /// Name of the device; its number where it has gone.
    pub device: String,
    /// Length in bytes, with the Ethernet header; of an aggregate all of it.
    pub len: u32,
    /// IP protocol: a name, or a number; `null` if it is not IPv4.
    pub proto: Option<String>,
    /// Where it comes from and goes to, as it came to the hook, inside a tunnel if it is
    /// in one; ports are 0 for what has none. `null` if it is not IPv4.
    pub ends: Option<Ends>,
    /// TCP flags, as `SA` for SYN and ACK; empty for other protocols.
    pub tcp_flags: String,
    /// Both ends of the tunnel, if it is in one.
    pub tunnel: Option<Tunnel>,
    /// What the program did with it.
    pub verdict: PacketVerdict,
    /// The counters that it raised: what became of it, and why.
    #[serde(with = "super::outcomes")]
    #[schemars(with = "Vec<String>")]
    pub outcomes: Vec<Outcome>,
    /// Wanted packets so far that were not told, because there were too many.
    pub not_told: u64,
}

/// Both ends of a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Tunnel {
    /// Source on the underlay.
    pub source: Ipv4Addr,
    /// Destination on the underlay.
    pub destination: Ipv4Addr,
}

/// What a program did with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PacketVerdict {
    /// Left it to what is behind: other programs, and the kernel.
    Passed,
    /// Sent it on by itself.
    Sent,
    /// Dropped it.
    Dropped,
}

impl fmt::Display for PacketVerdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Passed => "passed",
            Self::Sent => "sent",
            Self::Dropped => "dropped",
        })
    }
}

impl fmt::Display for PacketEvent {
    /// One line, without the time.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} ", self.hook, self.device)?;
        let end = |end: &SocketAddrV4| match end.port() {
            0 => end.ip().to_string(),
            _ => end.to_string(),
        };
        match (&self.ends, &self.proto) {
            (Some(ends), Some(proto)) => {
                write!(f, "{proto} {} > {}", end(&ends.source), end(&ends.destination))?;
            }
            _ => f.write_str("not IPv4")?,
        }
        if !self.tcp_flags.is_empty() {
            write!(f, " [{}]", self.tcp_flags)?;
        }
        if let Some(tunnel) = &self.tunnel {
            write!(f, " in {} > {}", tunnel.source, tunnel.destination)?;
        }
        write!(f, " {} bytes: {}", self.len, self.verdict)?;
        if !self.outcomes.is_empty() {
            let names: Vec<&str> = self.outcomes.iter().map(|outcome| outcome.name()).collect();
            write!(f, " ({})", names.join(", "))?;
        }
        Ok(())
    }
}
