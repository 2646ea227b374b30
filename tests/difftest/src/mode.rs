//! What is compared in a run: backend, fast path, rules and traffic. Pure.

use std::ops::Range;

use super::demands;
use super::kind::{ALL, Kind};
use flannel_tests::agent::Options;
use flannel_tests::rules::Rules;

/// A way to run the test.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    /// VXLAN and `--fast-path=confirmed`: plain packets and odd ones
    #[default]
    Confirmed,
    /// VXLAN and `--fast-path=eager`: short connections, a few of them translated
    Eager,
    /// VXLAN: services, masquerade, and rules that change DSCP, TTL, mark or
    /// priority
    Services,
    /// Routed packets without a tunnel, the same connections as in `services`
    HostGw,
}

/// How packets get to the other node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// In a tunnel.
    Vxlan,
    /// As they are.
    HostGw,
}

impl Backend {
    /// Name in the network's configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Vxlan => "vxlan",
            Self::HostGw => "host-gw",
        }
    }
}

/// Connections of one kind that are repeated, one after another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// What the rules do with them.
    pub kind: Kind,
    /// TCP, else UDP.
    pub tcp: bool,
    /// Opened by the left pod, else by the right one.
    pub from_left: bool,
}

impl Mode {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Confirmed, Self::Eager, Self::Services, Self::HostGw];

    /// How packets get to the other node.
    pub const fn backend(self) -> Backend {
        match self {
            Self::HostGw => Backend::HostGw,
            _ => Backend::Vxlan,
        }
    }

    /// The options of an agent in this mode.
    pub fn options(self, mut options: Options) -> Options {
        if self == Self::Eager {
            options.extra.push("--fast-path=eager".into());
        }
        options
    }

    /// The rules on the nodes, unless others are wanted.
    pub const fn rules(self) -> Rules {
        match self {
            Self::Confirmed => Rules::None,
            _ => Rules::Nftables,
        }
    }

    /// Packets of 100 that belong to connections.
    pub const fn share_of_connections(self) -> u32 {
        match self {
            Self::Confirmed => 0,
            Self::HostGw => 60,
            Self::Eager | Self::Services => 75,
        }
    }

    /// How many packets a connection carries between its handshake and its end.
    pub const fn packets(self) -> Range<u16> {
        match self {
            Self::Eager => 4..60,
            _ => 40..300,
        }
    }

    /// The connections that live side by side.
    pub fn slots(self) -> Vec<Slot> {
        // Eager's pairs are plain; translated ones beside them may not disturb.
        let plain = if self == Self::Eager { 14 } else { 0 };
        let kinds = ALL.iter().copied().chain(std::iter::repeat_n(Kind::Plain, plain));
        let both = [true, false];
        let slots = kinds.flat_map(|kind| {
            both.into_iter().flat_map(move |tcp| {
                both.into_iter().map(move |from_left| Slot { kind, tcp, from_left })
            })
        });
        // Its ports come again soon. And rules that treat single connections of a
        // client and a service differently are not for eager ones.
        let fits = |slot: &Slot| {
            let single = matches!(
                slot.kind,
                Kind::Dscp | Kind::ServiceDscp | Kind::Ttl | Kind::Mark | Kind::Priority
            );
            self != Self::Eager
                || !slot.tcp
                || ((demands::REUSED || slot.kind != Kind::SourceNat) && !single)
        };
        if self == Self::Confirmed { Vec::new() } else { slots.filter(fits).collect() }
    }
}

impl std::fmt::Display for Mode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let value = clap::ValueEnum::to_possible_value(self);
        f.write_str(value.as_ref().map_or("", |value| value.get_name()))
    }
}
