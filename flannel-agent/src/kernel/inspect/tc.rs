//! Qdiscs and filters of devices.

use std::collections::{BTreeMap, BTreeSet};

use flannel_core::envelope::{CLSACT_PRIORITY, Filter, TrafficControl};
use flannel_ebpf::abi::program;

use super::{Inspector, behind};
use crate::kernel::KernelError;
use crate::kernel::clsact::{ETH_P_ALL, RTM_GETTFILTER, TCA_OPTIONS, TCMSG_LEN};
use crate::kernel::raw::{self, Raw};

const RTM_GETQDISC: u16 = 38;
/// TC_H_CLSACT, the parent of an `ingress` or `clsact` qdisc.
const CLSACT: u32 = 0xffff_fff1;
/// Parents of their filters.
const INGRESS: u32 = 0xffff_fff2;
const EGRESS: u32 = 0xffff_fff3;
const TCA_KIND: u16 = 1;
const TCA_CHAIN: u16 = 11;
const TCA_BPF_NAME: u16 = 7;
const ETH_P_IP: u16 = 0x0800;

impl Inspector {
    pub(super) fn read_traffic_control(
        &mut self,
        devices: &BTreeSet<u32>,
    ) -> Result<BTreeMap<u32, TrafficControl>, KernelError> {
        // Of all devices: asked for one, some kernels tell everybody who listens
        // to events, and so us, for ever.
        let all = self.dump(RTM_GETQDISC, "RTM_GETQDISC", "all", &tcmsg(0, 0))?;
        let mut found = BTreeMap::new();
        for (ifindex, Qdiscs { root, clsact }) in qdiscs(&all, devices) {
            let (ingress, egress) = match clsact.as_deref() {
                None => (Vec::new(), Vec::new()),
                // It has one block, whatever parent is asked for.
                Some("ingress") => (self.filters(ifindex, INGRESS)?, Vec::new()),
                Some(_) => (self.filters(ifindex, INGRESS)?, self.filters(ifindex, EGRESS)?),
            };
            found.insert(ifindex, TrafficControl { root, ingress, egress });
        }
        Ok(found)
    }

    fn filters(&mut self, ifindex: u32, parent: u32) -> Result<Vec<Filter>, KernelError> {
        let object = format!("interface {ifindex} parent {:x}:{:x}", parent >> 16, parent & 0xffff);
        let messages =
            self.dump(RTM_GETTFILTER, "RTM_GETTFILTER", &object, &tcmsg(ifindex, parent))?;
        Ok(filters(&messages))
    }
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Qdiscs {
    root: String,
    clsact: Option<String>,
}

fn tcmsg(ifindex: u32, parent: u32) -> [u8; TCMSG_LEN] {
    let mut body = [0; TCMSG_LEN];
    body[4..8].copy_from_slice(&ifindex.to_ne_bytes());
    body[12..16].copy_from_slice(&parent.to_ne_bytes());
    body
}

/// Root and clsact qdiscs of these devices in a dump of all.
fn qdiscs(messages: &[Raw], devices: &BTreeSet<u32>) -> BTreeMap<u32, Qdiscs> {
    /// TC_H_ROOT.
    const ROOT: u32 = u32::MAX;
    let mut found: BTreeMap<u32, Qdiscs> = BTreeMap::new();
    for message in messages {
        let (Some(ifindex), Some(parent), Some(attributes)) = (
            raw::number(&message.body, 4),
            raw::number(&message.body, 12),
            behind(message, TCMSG_LEN),
        ) else {
            continue;
        };
        if !devices.contains(&ifindex) {
            continue;
        }
        let kind = raw::attribute(attributes, TCA_KIND).map(raw::text).unwrap_or_default();
        let entry = found.entry(ifindex).or_default();
        match parent {
            ROOT => entry.root = kind,
            CLSACT => entry.clsact = Some(kind),
            _ => {}
        }
    }
    found
}

/// The filters in a dump that IPv4 packets meet. A classifier is announced by a
/// message without options, and followed by one for each filter in it.
fn filters(messages: &[Raw]) -> Vec<Filter> {
    let mut found: BTreeMap<(u32, u16, String), bool> = BTreeMap::new();
    for message in messages {
        let (Some(info), Some(attributes)) =
            (raw::number(&message.body, 16), behind(message, TCMSG_LEN))
        else {
            continue;
        };
        let (priority, protocol) = ((info >> 16) as u16, u16::from_be(info as u16));
        if !matches!(protocol, ETH_P_ALL | ETH_P_IP) {
            continue;
        }
        let kind = raw::attribute(attributes, TCA_KIND).map(raw::text).unwrap_or_default();
        let chain = raw::attribute(attributes, TCA_CHAIN)
            .and_then(|value| raw::number(value, 0))
            .unwrap_or(0);
        let ours = priority == CLSACT_PRIORITY
            && kind == "bpf"
            && raw::attribute(attributes, TCA_OPTIONS).is_none_or(is_our_program);
        found.entry((chain, priority, kind)).and_modify(|all| *all &= ours).or_insert(ours);
    }
    found
        .into_iter()
        .map(|((chain, priority, kind), ours)| Filter { chain, priority, kind, ours })
        .collect()
}

fn is_our_program(options: &[u8]) -> bool {
    let name = raw::attribute(options, TCA_BPF_NAME).map(raw::text).unwrap_or_default();
    program::ALL.contains(&name.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn qdisc(ifindex: u32, parent: u32, kind: &str) -> Raw {
        let mut body = tcmsg(ifindex, parent).to_vec();
        raw::put(&mut body, TCA_KIND, format!("{kind}\0").as_bytes());
        Raw { kind: 36, body }
    }

    #[test]
    fn roots_and_clsacts_are_told_from_classes_and_other_devices() {
        let dump = [
            qdisc(3, u32::MAX, "mq"),
            qdisc(3, 0x0001_0001, "fq"),
            qdisc(3, CLSACT, "clsact"),
            qdisc(4, u32::MAX, "tbf"),
            qdisc(5, u32::MAX, "noqueue"),
        ];
        let found = qdiscs(&dump, &[3, 4].into());
        let clsact = Some("clsact".to_owned());
        assert_eq!(found[&3], Qdiscs { root: "mq".to_owned(), clsact });
        assert_eq!(found[&4], Qdiscs { root: "tbf".to_owned(), clsact: None });
        assert_eq!(found.len(), 2);
    }

    fn filter(priority: u16, protocol: u16, kind: &str, program: Option<&str>) -> Raw {
        let mut body = tcmsg(3, INGRESS).to_vec();
        let info = u32::from(priority) << 16 | u32::from(protocol.to_be());
        body[16..20].copy_from_slice(&info.to_ne_bytes());
        raw::put(&mut body, TCA_KIND, format!("{kind}\0").as_bytes());
        if let Some(name) = program {
            let mut options = Vec::new();
            raw::put(&mut options, TCA_BPF_NAME, format!("{name}\0").as_bytes());
            raw::put(&mut body, TCA_OPTIONS | 0x8000, &options);
        }
        Raw { kind: 44, body }
    }

    #[test]
    fn our_filters_are_known_by_priority_and_program() {
        let ours = [
            filter(CLSACT_PRIORITY, ETH_P_ALL, "bpf", None),
            filter(CLSACT_PRIORITY, ETH_P_ALL, "bpf", Some("from_pod")),
        ];
        assert!(filters(&ours).iter().all(|filter| filter.ours));
        assert_eq!(filters(&ours).len(), 1, "classifier and filter are one");
        let foreign = [
            filter(CLSACT_PRIORITY, ETH_P_ALL, "bpf", Some("limiter")),
            filter(7, ETH_P_ALL, "bpf", Some("from_pod")),
            filter(8, ETH_P_IP, "u32", None),
        ];
        let found = filters(&foreign);
        assert_eq!(found.len(), 3);
        assert!(found.iter().all(|filter| !filter.ours), "{found:?}");
        let both: Vec<Raw> = ours.iter().chain(&foreign[..1]).cloned().collect();
        assert!(!filters(&both)[0].ours, "one of the same priority is foreign");
    }

    #[test]
    fn what_no_ipv4_packet_meets_does_not_count() {
        assert_eq!(filters(&[filter(1, 0x86dd, "u32", None), filter(2, 0x0806, "u32", None)]), []);
    }
}
