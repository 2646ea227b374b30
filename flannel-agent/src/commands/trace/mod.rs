//! `flannel-agent trace`: what would happen to a packet on this node, and why.

mod gather;
mod live;
mod show;

use flannel_core::trace::{self, Carrier, TraceReport};

use super::{complain, print, print_json};
use crate::cli::TraceArgs;

/// Exit code if the packet, or its answer, would be lost.
const LOST: u8 = 20;

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
        Some(time) => Some(live::watch(&pin_dir, args, time).await),
        None => None,
    };
    if args.reader.json {
        let (node, hooks) = live.map(|live| (live.node, live.hooks)).unzip();
        if let Some(Err(reason)) = &node {
            complain(&format!("trace: the counters cannot be read: {reason}"));
        }
        if let Some(Err(reason)) = &hooks {
            complain(&format!("trace: the hooks cannot be watched: {reason}"));
        }
        let hooks = hooks.and_then(Result::ok);
        print_json(&TraceReport {
            trace: trace.clone(),
            live: node.and_then(Result::ok),
            live_not_counted: hooks.as_ref().map(|hooks| hooks.not_counted),
            live_by_hook: hooks.map(|hooks| hooks.counts),
        });
    } else if !trace.directions.is_empty() {
        print(&show::text(&trace, live.as_ref()));
    }
    if trace.directions.is_empty() {
        complain("trace: neither address is a pod of this node; run it on a node that has one");
        return 1;
    }
    let lost = trace.directions.iter().any(|way| way.outcome == Carrier::Lost);
    if lost { LOST } else { 0 }
}
