//! What became of packets that were sent to try the way.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What became of a probe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "result", rename_all = "kebab-case")]
pub enum Answer {
    /// The answer came.
    Came {
        /// After this many microseconds.
        micros: u64,
    },
    /// Somebody on the way, or this node, says that it is too large.
    TooBig {
        /// For this MTU in bytes; `null` if it was not told.
        mtu: Option<u16>,
    },
    /// Nothing came.
    Silent,
    /// It could not be sent.
    NotSent {
        /// Why.
        reason: String,
    },
}

impl Answer {
    /// Whether the answer came.
    pub fn came(&self) -> bool {
        matches!(self, Self::Came { .. })
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Came { micros } => {
                write!(f, "{}.{:03} ms", micros / 1000, micros % 1000)
            }
            Self::TooBig { mtu: Some(mtu) } => write!(f, "too big for an MTU of {mtu}"),
            Self::TooBig { mtu: None } => f.write_str("too big"),
            Self::Silent => f.write_str("no answer"),
            Self::NotSent { reason } => write!(f, "not sent: {reason}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_three_places() {
        assert_eq!(Answer::Came { micros: 12_034 }.to_string(), "12.034 ms");
        assert_eq!(Answer::TooBig { mtu: Some(1400) }.to_string(), "too big for an MTU of 1400");
    }
}
