//! Which devices the kernel forwards nothing from, of those that packets of the overlay
//! come in by. Pure.

use std::collections::BTreeSet;
use std::fmt;

use crate::link::Link;
use crate::pods::{self, Choice};

/// The kernel's switches that are off.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SwitchedOff {
    /// `net.ipv4.ip_forward`, which new devices begin with.
    pub everywhere: bool,
    /// `net.ipv4.conf.<device>.forwarding`, by interface index.
    pub devices: BTreeSet<u32>,
}

/// What comes in by a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// What pods send.
    Pods,
    /// What comes out of the tunnel.
    Tunnel,
    /// What comes by the underlay.
    Underlay(Inbound),
}

/// What comes to pods by the underlay, without the tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inbound {
    /// Packets of peers that are reached without a tunnel.
    Peers,
    /// Answers from outside, to what our rules have masqueraded.
    Answers,
    /// Nothing that we know of: published ports, and answers to what others have
    /// masqueraded. A node without these is well.
    Others,
}

impl Inbound {
    /// What comes to a node that has such peers, and such rules.
    pub const fn of(direct: bool, masquerade: bool) -> Self {
        match (direct, masquerade) {
            (true, _) => Self::Peers,
            (false, true) => Self::Answers,
            (false, false) => Self::Others,
        }
    }
}

/// A switch that is off, of a device that packets may come in by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unforwarded {
    /// Whose; `None`: that of all devices.
    pub device: Option<(String, Origin)>,
}

impl Unforwarded {
    /// Its name, as sysctl(8) takes it.
    pub fn sysctl(&self) -> String {
        match &self.device {
            None => "net.ipv4.ip_forward".to_owned(),
            Some((device, _)) => format!("net.ipv4.conf.{}.forwarding", escaped(device)),
        }
    }

    /// Whether it has to be on, for all that we know.
    pub fn is_needed(&self) -> bool {
        !matches!(self.device, Some((_, Origin::Underlay(Inbound::Others))))
    }

    /// Whether what comes in by this device is not forwarded for that.
    pub fn holds_up(&self, input: Option<&str>) -> bool {
        self.device.as_ref().is_none_or(|(device, _)| Some(device.as_str()) == input)
    }
}

impl fmt::Display for Unforwarded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match &self.device {
            None => "packets between pods and peers",
            Some((_, Origin::Pods)) => "packets from pods",
            Some((_, Origin::Tunnel)) => "packets from peers",
            Some((_, Origin::Underlay(Inbound::Peers))) => {
                "packets to pods that come without a tunnel"
            }
            Some((_, Origin::Underlay(Inbound::Answers))) => "answers from outside to pods",
            Some((_, Origin::Underlay(Inbound::Others))) => {
                "packets from outside to pods, such as those to published ports,"
            }
        };
        write!(f, "{} is 0: {what} are not forwarded", self.sysctl())
    }
}

/// A device's name within the name of a setting: sysctl(8) takes a dot for a slash.
pub fn escaped(device: &str) -> String {
    device.replace('.', "/")
}

/// The switches that are off, of those that [may have](Unforwarded::is_needed) to be on.
pub fn unforwarded(
    links: &[Link],
    choice: Choice<'_>,
    inbound: Inbound,
    off: &SwitchedOff,
) -> Vec<Unforwarded> {
    let pods = inputs_of_pods(links, choice);
    let origin = |link: &Link| match link.ifindex {
        ifindex if Some(ifindex) == choice.overlay => Some(Origin::Tunnel),
        ifindex if ifindex == choice.underlay => Some(Origin::Underlay(inbound)),
        ifindex => pods.contains(&ifindex).then_some(Origin::Pods),
    };
    let found: Vec<Unforwarded> = links
        .iter()
        .filter(|link| off.devices.contains(&link.ifindex))
        .filter_map(|link| Some(Unforwarded { device: Some((link.name.clone(), origin(link)?)) }))
        .collect();
    // Who turns everything off, and single devices on, has a device for pods among them.
    if off.everywhere && (found.iter().any(Unforwarded::is_needed) || pods.is_empty()) {
        return vec![Unforwarded { device: None }];
    }
    found
}

/// By what the pods' packets come in: devices with an address that is the pods' gateway,
/// and veths that are no ports.
fn inputs_of_pods(links: &[Link], choice: Choice<'_>) -> BTreeSet<u32> {
    let is_gateway =
        |link: &&Link| link.addresses.iter().any(|address| pods::is_gateway(address, choice));
    let other = |link: &&Link| {
        !link.loopback && link.ifindex != choice.underlay && Some(link.ifindex) != choice.overlay
    };
    let gateways = links.iter().filter(other).filter(is_gateway);
    let routed = pods::pod_veths(links, choice).into_iter().filter(|link| link.master.is_none());
    gateways.chain(routed).map(|link| link.ifindex).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::LinkAddress;

    fn link(ifindex: u32, name: &str, kind: &str, address: Option<&str>) -> Link {
        let address = address.map(|text| LinkAddress {
            network: text.parse().unwrap(),
            permanent: true,
            deprecated: false,
            global: true,
        });
        let (name, kind) = (name.to_owned(), kind.to_owned());
        Link {
            ifindex,
            name,
            kind,
            up: true,
            addresses: address.into_iter().collect(),
            ..Link::default()
        }
    }

    fn told(everywhere: bool, devices: &[u32]) -> Vec<String> {
        found(Inbound::Peers, everywhere, devices).iter().map(ToString::to_string).collect()
    }

    fn found(inbound: Inbound, everywhere: bool, devices: &[u32]) -> Vec<Unforwarded> {
        let pod = Link { lower_netns: Some(1), ..link(5, "veth7", "veth", None) };
        let links = [
            link(1, "eth0", "", Some("192.0.2.1/24")),
            link(2, "flannel.1", "vxlan", Some("10.5.1.0/32")),
            link(3, "cni0", "bridge", Some("10.5.1.1/24")),
            Link { master: Some(3), ifindex: 4, name: "veth6".to_owned(), ..pod.clone() },
            pod,
            link(6, "docker0", "bridge", Some("172.17.0.1/16")),
        ];
        let choice = Choice {
            underlay: 1,
            overlay: Some(2),
            network: "10.5.0.0/16".parse().unwrap(),
            subnet: "10.5.1.0/24".parse().unwrap(),
            uplinks: &BTreeSet::new(),
            names: None,
        };
        let off = SwitchedOff { everywhere, devices: devices.iter().copied().collect() };
        unforwarded(&links, choice, inbound, &off)
    }

    #[test]
    fn each_device_that_packets_come_in_by_has_to_forward() {
        assert_eq!(told(false, &[]), [""; 0]);
        assert_eq!(told(false, &[4, 6]), [""; 0], "a bridge's port, and somebody else's bridge");
        assert_eq!(
            told(false, &[1, 2, 3, 5]),
            [
                "net.ipv4.conf.eth0.forwarding is 0: packets to pods that come without a tunnel \
                 are not forwarded",
                "net.ipv4.conf.flannel/1.forwarding is 0: packets from peers are not forwarded",
                "net.ipv4.conf.cni0.forwarding is 0: packets from pods are not forwarded",
                "net.ipv4.conf.veth7.forwarding is 0: packets from pods are not forwarded",
            ]
        );
    }

    #[test]
    fn the_underlay_has_to_forward_where_something_comes_by_it() {
        for (direct, masquerade, needed) in
            [(true, true, true), (true, false, true), (false, true, true), (false, false, false)]
        {
            let inbound = Inbound::of(direct, masquerade);
            let off = found(inbound, false, &[1]);
            assert_eq!(off.len(), 1, "{inbound:?}");
            assert_eq!(off[0].is_needed(), needed, "{off:?}");
            assert!(off[0].holds_up(Some("eth0")), "{off:?}");
        }
        let spared = found(Inbound::Others, true, &[1, 6]);
        assert!(!spared.iter().any(Unforwarded::is_needed), "pods' devices are on: {spared:?}");
        let all = found(Inbound::Others, true, &[1, 2, 3, 4, 5, 6]);
        assert_eq!(all, [Unforwarded { device: None }]);
    }

    #[test]
    fn one_switch_for_all_is_named_alone_and_counts_where_devices_follow_it() {
        let all = "net.ipv4.ip_forward is 0: packets between pods and peers are not forwarded";
        assert_eq!(told(true, &[1, 2, 3, 4, 5, 6]), [all]);
        assert_eq!(told(true, &[6]), [""; 0], "all that matter were turned on one by one");
    }
}
