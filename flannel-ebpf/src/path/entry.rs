//! What the entry hooks share: may the fast path repeat what the kernel did with
//! this flow?

use super::segment::Segment;
use super::ticket::Entry;
use super::{Frame, Lookups, flow};
use crate::abi::{Config, Flow, FlowKey, Outcome};

/// Whether a packet of a flow that was `found` goes on without the kernel.
///
/// # Errors
/// The reason why it does not.
#[inline(always)]
pub(super) fn admit<F: Frame>(
    frame: &F,
    config: &Config,
    segment: &Segment,
    key: &FlowKey,
    flow: &Flow,
    entry: &Entry,
) -> Result<(), Outcome> {
    flow::fresh(flow, config, entry.now)?;
    if !flow::is_senders(flow, key, entry) {
        return Err(Outcome::KernelMoved);
    }
    flow::fits(flow, segment)?;
    if segment.wire_len(frame.gso_size()) > u32::from(flow.max_len) {
        return Err(Outcome::KernelTooBig);
    }
    Ok(())
}

/// Whether a flow outwards was confirmed with the routes of now.
///
/// # Errors
/// The node was told of other ones.
#[inline(always)]
pub(super) fn admit_way<T: Lookups>(tables: &T, flow: &Flow, entry: &Entry) -> Result<(), Outcome> {
    if flow.epoch != tables.epoch() {
        return Err(Outcome::KernelGeneration);
    }
    if flow.entry_mac != entry.mac {
        return Err(Outcome::KernelMoved);
    }
    Ok(())
}
