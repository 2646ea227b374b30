//! What `trace` prints for programs.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Trace;

/// Packets by outcome.
pub type Counts = BTreeMap<String, u64>;
/// Packets by hook and outcome.
pub type ByHook = BTreeMap<String, Counts>;

/// What was traced, and what real packets met meanwhile.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TraceReport {
    /// What would happen.
    #[serde(flatten)]
    pub trace: Trace,
    /// Packets of the whole node by outcome, with `--live`.
    pub live: Option<Counts>,
    /// Packets of the question and of its answer by hook and outcome, with `--live`.
    pub live_by_hook: Option<ByHook>,
    /// Those that were too many to be looked at, with `--live`.
    pub live_not_counted: Option<u64>,
}
