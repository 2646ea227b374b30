//! What `status` says about packets that the fast path leaves to the kernel.

use flannel_core::envelope::{EnvelopeReport, Inward, Outward, Reason, VethReport};
/// Veths that are listed at most.
const VETHS: usize = 20;

/// A line for each way, veth and pod that is left to the kernel, or not served
/// as others are.
pub(super) fn lines(report: &EnvelopeReport) -> Vec<String> {
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
    use flannel_core::envelope::{Kept, KeptWay, NotServed, Obstacle, Side};

    use super::*;

    fn pod(name: &str, outward: Outward, inward: Inward, why: &[Reason]) -> VethReport {
        VethReport { name: name.to_owned(), ifindex: 7, outward, inward, why: why.to_vec() }
    }

    #[test]
    fn each_obstacle_has_its_line() {
        let what = Obstacle::RootQdisc { qdisc: "tbf".to_owned() };
        let why = [Reason { device: "veth2".to_owned(), what }];
        let what = Obstacle::Filter { side: Side::Ingress, filter: "u32".to_owned(), priority: 5 };
        let kept = vec![Kept {
            way: KeptWay::KeepIn,
            why: vec![Reason { device: "eth0".to_owned(), what }],
        }];
        let report = EnvelopeReport {
            kept,
            veths: vec![
                pod("veth1", Outward::Carried, Inward::Peer, &[]),
                pod("veth2", Outward::Carried, Inward::Egress, &why),
                pod("veth3", Outward::Kept, Inward::Kernel, &why),
            ],
            not_served: vec![NotServed {
                kind: "ipvlan".to_owned(),
                device: "eth0".to_owned(),
                pods: 2,
            }],
            hooks: Vec::new(),
        };
        assert_eq!(
            lines(&report),
            [
                "what comes from peers: eth0: u32 filter on ingress, priority 5",
                "veth2: nothing, but what comes for the pod goes through the veth's egress \
                 (veth2: root qdisc tbf)",
                "veth3: all of it (veth2: root qdisc tbf)",
                "not served: ipvlan on eth0 (2 pods)",
            ]
        );
        assert_eq!(lines(&EnvelopeReport::default()), [""; 0]);
        let veths =
            (0..25).map(|n| pod(&format!("veth{n}"), Outward::Kept, Inward::Peer, &why)).collect();
        let lines = lines(&EnvelopeReport { veths, ..EnvelopeReport::default() });
        assert_eq!(lines.len(), 21);
        assert!(lines[20].starts_with("5 more"), "{}", lines[20]);
    }
}
