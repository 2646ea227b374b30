//! Devices, the tunnel's port, subnet.env, IPsec.

use super::facts::{Network, NodeFacts, TunnelDevice, Underlay};
use super::finding::{Condition, Finding, Id};

pub(super) fn findings(facts: &NodeFacts) -> Vec<Finding> {
    let mut findings = vec![underlay(facts), subnet_file(facts), ipsec(facts)];
    match (&facts.devices, &facts.network) {
        (Err(reason), _) => {
            let ids = [Id::Devices, Id::VxlanPort];
            findings.extend(ids.map(|id| Finding::unknown(id, reason.to_string())));
        }
        (Ok(_), None) => {
            let ids = [Id::Devices, Id::VxlanPort];
            findings.extend(ids.map(|id| Finding::unknown(id, "our network is not known")));
        }
        (Ok(devices), Some(network)) => {
            findings.extend(all_devices(devices, network));
            findings.extend(port(facts, devices, network));
        }
    }
    findings
}

/// Without it no peer is reached.
fn underlay(facts: &NodeFacts) -> Finding {
    let id = Id::Underlay;
    let broken = |found, remedy| Finding::ill(id, Condition::Broken, found, remedy);
    match &facts.underlay {
        Err(reason) => Finding::unknown(id, reason.to_string()),
        // What the udp backend sends may be translated on the way.
        Ok(Underlay::Unfound) if facts.own_device().is_some() => {
            Finding::well(id, "the node's address is on none of its devices")
        }
        Ok(Underlay::Unfound) => Finding::unknown(id, "no device has the node's address"),
        Ok(Underlay::There { device, up: false, .. }) => {
            broken(format!("{device} is down"), format!("ip link set {device} up"))
        }
        Ok(Underlay::There { device, carrier: false, .. }) => broken(
            format!("{device} has no carrier"),
            "look at its cable, its other end, or the port of the switch".to_owned(),
        ),
        Ok(Underlay::There { device, .. }) => Finding::well(id, format!("{device} is up")),
    }
}

/// Whether flannel or we may have made a device of this name.
fn is_flannels(name: &str) -> bool {
    let number = name.strip_prefix("flannel.").or_else(|| name.strip_prefix("flannel"));
    number.is_some_and(|number| number.parse::<u32>().is_ok())
}

fn all_devices(devices: &[TunnelDevice], network: &Network) -> Vec<Finding> {
    let id = Id::Devices;
    let mut findings = Vec::new();
    let own = network.device.as_deref();
    for device in devices {
        let name = &device.name;
        if Some(name.as_str()) != own && is_flannels(name) {
            let found = format!("{name} is of another network or an earlier configuration");
            let remedy = format!("if nobody uses it: ip link del {name}");
            findings.push(Finding::ill(id, Condition::Degraded, found, remedy));
        }
    }
    if let Some(own) = own {
        findings.extend(own_device(own, devices, network.mtu));
    }
    if findings.is_empty() {
        findings.push(Finding::well(
            id,
            match own {
                Some(own) => format!("{own} is there, and no other"),
                None => "the backend has no device, and there is none".to_owned(),
            },
        ));
    }
    findings
}

fn own_device(own: &str, devices: &[TunnelDevice], mtu: Option<u32>) -> Option<Finding> {
    let id = Id::Devices;
    let restart = "the daemon makes it anew; if it does not, read its log";
    let Some(device) = devices.iter().find(|device| device.name == own) else {
        return Some(Finding::ill(id, Condition::Broken, format!("{own} is not there"), restart));
    };
    if !device.up {
        return Some(Finding::ill(
            id,
            Condition::Broken,
            format!("{own} is down"),
            format!("ip link set {own} up"),
        ));
    }
    let wanted = mtu.filter(|wanted| *wanted != device.mtu)?;
    let found = format!("{own} has an MTU of {}, and should have {wanted}", device.mtu);
    Some(Finding::ill(id, Condition::Degraded, found, restart))
}

fn port(facts: &NodeFacts, devices: &[TunnelDevice], network: &Network) -> Vec<Finding> {
    let id = Id::VxlanPort;
    let own = network.device.as_deref();
    let Some((port, vni)) = devices
        .iter()
        .find(|device| Some(device.name.as_str()) == own)
        .and_then(|device| Some((device.port?, device.vni?)))
    else {
        return vec![Finding::well(id, "there is no VXLAN device of ours")];
    };
    let mut findings = Vec::new();
    let others = devices.iter().filter(|device| Some(device.name.as_str()) != own);
    for other in others.filter(|other| other.port == Some(port)) {
        let name = &other.name;
        let same = if other.vni == Some(vni) { ", with our VNI" } else { "" };
        let found = format!("{name} uses UDP port {port} too{same}");
        let remedy = format!("remove {name}, or give our network another Backend.Port");
        findings.push(Finding::ill(id, Condition::Degraded, found, remedy));
    }
    match &facts.port_holders {
        Ok(holders) => findings.extend(holders.iter().map(|holder| {
            let found = format!("{holder} has a socket on UDP port {port}");
            Finding::ill(id, Condition::Broken, found, "stop it, or set another Backend.Port")
        })),
        Err(reason) => findings.push(Finding::unknown(id, reason.to_string())),
    }
    if findings.is_empty() {
        findings.push(Finding::well(id, format!("UDP port {port} is our device's alone")));
    }
    findings
}

fn subnet_file(facts: &NodeFacts) -> Finding {
    let id = Id::SubnetFile;
    let path = facts.subnet_file.path.display();
    let anew = "the daemon writes it anew; if it does not, read its log";
    let Some(network) = &facts.network else {
        return Finding::unknown(id, "our lease is not known");
    };
    let Some((subnet, mtu)) = facts.subnet_file.says else {
        return Finding::ill(
            id,
            Condition::Broken,
            format!("{path} is not there, or not readable"),
            anew,
        );
    };
    if subnet != network.subnet {
        let found = format!("{path} says {subnet}, the lease {}", network.subnet);
        let remedy = format!("{anew}; then restart what makes pods (docker, CNI)");
        return Finding::ill(id, Condition::Broken, found, remedy);
    }
    match network.mtu {
        Some(wanted) if wanted != mtu => {
            let found = format!("{path} says an MTU of {mtu}, the device has {wanted}");
            Finding::ill(id, Condition::Degraded, found, anew)
        }
        _ => Finding::well(id, format!("{path} says {subnet}, as the lease does")),
    }
}

fn ipsec(facts: &NodeFacts) -> Finding {
    let id = Id::Ipsec;
    match &facts.ipsec {
        Err(reason) => Finding::unknown(id, reason.to_string()),
        Ok(policies) if policies.is_empty() => Finding::well(id, "no policy is about the tunnel"),
        Ok(policies) => Finding::ill(
            id,
            Condition::Degraded,
            format!("policies are about tunnel packets: {}", policies.join("; ")),
            "none is needed: the kernel path carries these packets, as the policies want",
        ),
    }
}
