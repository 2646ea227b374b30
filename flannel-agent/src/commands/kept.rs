//! What `status` says about packets that the fast path leaves to the kernel.

use flannel_core::envelope::Inward;
use flannel_core::envelope::{Outward, Reason, Report, VethReport};
use serde_json::Value;

/// Veths that are listed at most.
const VETHS: usize = 20;

/// A line for each way, veth and pod that is left to the kernel, or not served
/// as others are.
pub(super) fn lines(datapath: &Value) -> Vec<String> {
    let report: Report = serde_json::from_value(datapath.clone()).unwrap_or_default();
    let mut lines: Vec<String> =
        report.kept.iter().map(|kept| format!("{}: {}", kept.way, list(&kept.why))).collect();
    let mut veths = report.veths.iter().filter(|veth| !veth.is_free());
    lines.extend(veths.by_ref().take(VETHS).map(veth));
    let more = veths.count();
    if more > 0 {
        lines.push(format!("{more} more veths; status --json has them all"));
    }
    lines.extend(report.not_served.iter().map(ToString::to_string));
    lines
}

fn veth(veth: &VethReport) -> String {
    let how = match (veth.outward, veth.inward) {
        (Outward::Kept, Inward::Kernel) => "all of it",
        (Outward::Kept, Inward::Peer) => "what the pod sends",
        (Outward::Kept, Inward::Egress) => {
            "what the pod sends; what comes for it goes through the veth's egress"
        }
        (Outward::Carried, Inward::Kernel) => "what comes for the pod",
        (Outward::Carried, Inward::Egress) => {
            "nothing, but what comes for the pod goes through the veth's egress"
        }
        (Outward::Carried, Inward::Peer) => "nothing",
    };
    format!("{}: {how} ({})", veth.name, list(&veth.why))
}

fn list(why: &[Reason]) -> String {
    let why: Vec<String> = why.iter().map(ToString::to_string).collect();
    why.join("; ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_obstacle_has_its_line() {
        let why = json!([{"device": "veth2", "what": "root_qdisc", "qdisc": "tbf"}]);
        let veth = |name: &str, outward: &str, inward: &str, why: &Value| json!({"name": name, "ifindex": 7, "outward": outward, "inward": inward, "why": why});
        let datapath = json!({
            "mode": "ebpf",
            "kept": [{"way": "KEEP_IN", "why": [
                {"device": "eth0", "what": "filter", "side": "ingress", "filter": "u32", "priority": 5}
            ]}],
            "veths": [
                veth("veth1", "carried", "peer", &json!([])),
                veth("veth2", "carried", "egress", &why),
                veth("veth3", "kept", "kernel", &why),
            ],
            "not_served": [{"kind": "ipvlan", "device": "eth0", "pods": 2}],
        });
        assert_eq!(
            lines(&datapath),
            [
                "what comes from peers (KEEP_IN): eth0: u32 filter on ingress, priority 5",
                "veth2: nothing, but what comes for the pod goes through the veth's egress \
                 (veth2: root qdisc tbf)",
                "veth3: all of it (veth2: root qdisc tbf)",
                "not served: ipvlan on eth0 (2 pods)",
            ]
        );
        assert_eq!(lines(&json!({"mode": "kernel"})), [""; 0]);
        let many: Vec<Value> =
            (0..25).map(|n| veth(&format!("veth{n}"), "kept", "peer", &why)).collect();
        let lines = lines(&json!({"veths": many}));
        assert_eq!(lines.len(), 21);
        assert!(lines[20].starts_with("5 more"), "{}", lines[20]);
    }
}
