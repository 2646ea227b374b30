//! What is logged and complained about.

use std::fmt::Display;

use flannel_core::envelope::Inward;
use flannel_core::envelope::{EnvelopeReport, Outward};
use flannel_core::status::What;
use flannel_core::text::counted;

use super::State;

/// Lines about veths that one change logs at most.
const LINES: usize = 20;

/// Logs what is another way than before.
pub(super) fn log(before: &EnvelopeReport, now: &EnvelopeReport) {
    for kept in now.kept.iter().filter(|kept| !before.kept.contains(kept)) {
        tracing::info!(traffic = %kept.way, why = list(&kept.why), "fast path unavailable");
    }
    for kept in &before.kept {
        if !now.kept.iter().any(|other| other.way == kept.way) {
            tracing::info!(traffic = %kept.way, "fast path recovered");
        }
    }
    let mut changed = now.veths.iter().filter(|veth| {
        // Both are in the order of their indexes.
        match before.veths.binary_search_by_key(&veth.ifindex, |old| old.ifindex) {
            Ok(at) => before.veths[at].why != veth.why,
            Err(_) => !veth.is_free(),
        }
    });
    for veth in changed.by_ref().take(LINES) {
        tracing::info!(
            veth = veth.name,
            outward = ?veth.outward,
            inward = ?veth.inward,
            why = list(&veth.why),
            "data path of a pod changed"
        );
    }
    let more = changed.count();
    if more > 0 {
        tracing::info!(more, "data paths of further pods changed");
    }
    for pods in now.not_served.iter().filter(|pods| !before.not_served.contains(pods)) {
        tracing::info!(device = pods.device, kind = %pods.kind, pods = pods.pods, "fast path unavailable: pods have no veth");
    }
}

/// The events of what is another way than before.
pub(super) fn events(before: &EnvelopeReport, now: &EnvelopeReport) -> Vec<What> {
    let new = now.kept.iter().filter(|kept| !before.kept.contains(kept));
    let new = new.map(|kept| What::FastPathOff { way: kept.way, why: list(&kept.why) });
    let stays = |way| now.kept.iter().any(|kept| kept.way == way);
    let gone = before.kept.iter().filter(|kept| !stays(kept.way));
    new.chain(gone.map(|kept| What::FastPathOn { way: kept.way })).collect()
}

/// Why nothing, or nothing that comes in, is carried, if that is so.
pub(super) fn complaint(state: &State) -> Option<String> {
    if !state.wanted {
        return None;
    }
    let report = &state.judgement.report;
    let keep = state.judgement.keep;
    let nobody = |free: &dyn Fn(&flannel_core::envelope::VethReport) -> bool| {
        !report.veths.is_empty() && !report.veths.iter().any(free)
    };
    let none_out = keep.out || nobody(&|veth| veth.outward == Outward::Carried);
    let none_in = keep.inward || nobody(&|veth| veth.inward != Inward::Kernel);
    if none_out && none_in {
        let ways = report.kept.iter().flat_map(|kept| &kept.why);
        let mut why: Vec<String> = ways.map(ToString::to_string).collect();
        why.extend(report.veths.iter().flat_map(|veth| &veth.why).map(ToString::to_string));
        why.sort();
        why.dedup();
        why.truncate(3);
        return Some(format!("it carries nothing on this node: {}", why.join("; ")));
    }
    if report.veths.is_empty() && !report.not_served.is_empty() {
        return Some(format!(
            "it carries nothing on this node: no pod has a veth ({})",
            list(&report.not_served)
        ));
    }
    state.arrivals.missed().map(|missed| {
        let inlets: Vec<&str> =
            state.scene.inlets.iter().map(|inlet| inlet.name.as_str()).collect();
        format!(
            "it carries nothing that comes in: {} came through the tunnel's device, and none by {}",
            counted(missed, "packet"),
            inlets.join(", ")
        )
    })
}

fn list<T: Display>(all: &[T]) -> String {
    let all: Vec<String> = all.iter().map(ToString::to_string).collect();
    all.join("; ")
}
