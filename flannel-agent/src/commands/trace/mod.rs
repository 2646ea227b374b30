//! `flannel-agent trace`: what would happen to a packet on this node, and why.

mod gather;
mod show;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use flannel_core::check::facts::Known;
use flannel_core::trace::{self, Outcome, Trace};
use schemars::JsonSchema;
use serde::Serialize;

use super::{complain, print, print_json};
use crate::bpf::lookup;
use crate::cli::TraceArgs;

/// Exit code if the packet, or its answer, would be lost.
const LOST: u8 = 20;

/// What `--json` prints.
#[derive(Serialize, JsonSchema)]
pub(super) struct Printed<'a> {
    #[serde(flatten)]
    trace: &'a Trace,
    /// Packets of the whole node by outcome, with `--live`.
    live: Option<BTreeMap<&'static str, u64>>,
}

/// Traces a packet and its answer. The exit code says whether they pass.
pub async fn run(args: &TraceArgs) -> u8 {
    let (facts, pin_dir) = match gather::facts(args).await {
        Ok(gathered) => gathered,
        Err(reason) => {
            complain(&format!("trace: {reason}"));
            return 1;
        }
    };
    let trace = trace::trace(&facts);
    let live = match args.live {
        Some(time) => Some(growth(&pin_dir, time).await),
        None => None,
    };
    if args.json {
        if let Some(Err(reason)) = &live {
            complain(&format!("trace: the counters cannot be read: {reason}"));
        }
        let printed = Printed { trace: &trace, live: live.and_then(Result::ok) };
        print_json(&printed);
    } else {
        print(&show::text(&trace, live.as_ref()));
    }
    if trace.directions.is_empty() {
        complain("trace: neither address is a pod of this node; run it on a node that has one");
        return 1;
    }
    let lost = trace.directions.iter().any(|way| way.outcome == Outcome::Lost);
    if lost { LOST } else { 0 }
}

/// By how much each counter of the programs grows in this time.
async fn growth(pin_dir: &Path, time: Duration) -> Known<BTreeMap<&'static str, u64>> {
    let before = lookup::outcomes(pin_dir)?;
    tokio::time::sleep(time).await;
    let after = lookup::outcomes(pin_dir)?;
    let grown = after.into_iter().map(|(name, count)| {
        (name, count.saturating_sub(before.get(name).copied().unwrap_or_default()))
    });
    Ok(grown.filter(|(_, count)| *count != 0).collect())
}
