//! What is compared in a run: backend, fast path, rules and traffic. Pure.

use std::ops::Range;

use super::backend::Backend;
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
}

impl std::fmt::Display for Mode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let value = clap::ValueEnum::to_possible_value(self);
        f.write_str(value.as_ref().map_or("", |value| value.get_name()))
    }
}
