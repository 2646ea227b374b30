//! What the daemon leaves to the kernel, of one packet.

use super::facts::Pod;
use crate::envelope::{EnvelopeReport, Inward, Kept, KeptWay, Outward, Reason, VethReport};

fn list(why: &[Reason]) -> String {
    let why: Vec<String> = why.iter().map(ToString::to_string).collect();
    why.join("; ")
}

/// Why the kernel carries a packet between these, one of which is a peer's pod.
pub fn kept(
    report: &EnvelopeReport,
    source: Option<&Pod>,
    destination: Option<&Pod>,
) -> Vec<String> {
    let outwards = destination.is_none();
    let fits = |way: KeptWay| match way {
        KeptWay::KeepOut => outwards,
        KeptWay::KeepIn | KeptWay::KeepTunnel => !outwards,
        // Those packets and peers are not this one, as far as is known.
        KeptWay::MarkedRoutes | KeptWay::MorePeers => false,
    };
    let ways = report.kept.iter().filter(|kept| fits(kept.way));
    let mut kept: Vec<String> =
        ways.map(|Kept { way, why }| format!("{way}: {}", list(why))).collect();
    let pod = if outwards { source } else { destination };
    let veth = pod.and_then(|pod| pod.veth.as_ref());
    let is_kept = |of: &VethReport| match outwards {
        true => of.outward == Outward::Kept,
        false => of.inward == Inward::Kernel,
    };
    let own = veth.and_then(|veth| report.veths.iter().find(|of| of.name == veth.name));
    kept.extend(own.filter(|of| is_kept(of)).map(|of| format!("{}: {}", of.name, list(&of.why))));
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::facts::TracedDevice;

    #[test]
    fn only_what_is_about_the_packet_counts() {
        let veth = |name: &str, outward, inward| VethReport {
            name: name.to_owned(),
            ifindex: 7,
            outward,
            inward,
            why: Vec::new(),
        };
        let way = |way| Kept { way, why: Vec::new() };
        let report = EnvelopeReport {
            kept: vec![way(KeptWay::KeepIn), way(KeptWay::MarkedRoutes)],
            veths: vec![
                veth("veth7", Outward::Kept, Inward::Peer),
                veth("veth8", Outward::Kept, Inward::Kernel),
            ],
            ..EnvelopeReport::default()
        };
        let device = TracedDevice { name: "veth7".to_owned(), ..TracedDevice::default() };
        let address = [10, 5, 1, 2].into();
        let pod = Pod { address, device: None, mac: None, veth: Some(device) };
        let outwards = kept(&report, Some(&pod), None);
        assert_eq!(outwards, ["veth7: "], "not what comes in, and no other pod's");
        let inwards = kept(&report, None, Some(&pod));
        assert!(inwards.len() == 1 && inwards[0].contains("what comes from peers"), "{inwards:?}");
    }
}
