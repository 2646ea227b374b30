//! Forwarding, reverse path filters, and the node's firewall.

use super::facts::{FirewallService, NodeFacts, Packets, RpFilter, Ruled};
use super::finding::{Condition, Finding, Id};
use crate::firewall::packet_rules::fate::{Culprit, Fate, UFW_CHAIN};
use crate::forwarding::{Unforwarded, escaped};

/// `rp_filter` that asks for the same way back.
const STRICT: u32 = 1;

pub(super) fn findings(facts: &NodeFacts) -> Vec<Finding> {
    let mut findings = forwarding(facts);
    findings.extend(rp_filters(&facts.rp_filters));
    match &facts.rules {
        Ok(ruled) => findings.extend(all_ruled(ruled)),
        Err(reason) => {
            let ids = [Id::ForwardRules, Id::TunnelRules];
            findings.extend(ids.map(|id| Finding::unknown(id, reason.to_string())));
        }
    }
    findings.extend(services(facts));
    findings
}

fn forwarding(facts: &NodeFacts) -> Vec<Finding> {
    let id = Id::Forwarding;
    let off = match &facts.forwarding {
        Ok(off) => off,
        Err(reason) => return vec![Finding::unknown(id, reason.to_string())],
    };
    let ill = |off: &Unforwarded| {
        let sysctl = off.sysctl();
        let remedy = format!("sysctl -w {sysctl}=1, and in /etc/sysctl.d for the next boot");
        Finding::ill(id, Condition::Broken, off.to_string(), remedy)
    };
    let needed: Vec<Finding> = off.iter().filter(|off| off.is_needed()).map(ill).collect();
    if !needed.is_empty() {
        return needed;
    }
    // Who publishes no ports is well.
    let spared = off.iter().map(|off| format!("; {off}"));
    let said = format!("the kernel forwards for pods and peers{}", spared.collect::<String>());
    vec![Finding::well(id, said)]
}

fn rp_filters(filters: &[RpFilter]) -> Vec<Finding> {
    let id = Id::RpFilter;
    let mut findings = Vec::new();
    for filter in filters {
        let device = &filter.device;
        match &filter.value {
            Err(reason) => findings.push(Finding::unknown(id, format!("{device}: {reason}"))),
            Ok(STRICT) if !filter.otherwise.is_empty() => {
                let (peer, more) = (filter.otherwise[0], filter.otherwise.len() - 1);
                let others = if more > 0 { format!(" and {more} more") } else { String::new() };
                let found = format!(
                    "{device} filters strictly, but the way back to {peer}{others} is another device"
                );
                let remedy = format!(
                    "sysctl -w net.ipv4.conf.{}.rp_filter=2 (loose), or mend the route",
                    escaped(device)
                );
                findings.push(Finding::ill(id, Condition::Broken, found, remedy));
            }
            Ok(_) => {}
        }
    }
    if findings.is_empty() {
        let strict = filters.iter().filter(|filter| filter.value == Ok(STRICT));
        let names: Vec<&str> = strict.map(|filter| filter.device.as_str()).collect();
        findings.push(Finding::well(
            id,
            match names.is_empty() {
                true => "no strict filter".to_owned(),
                false => {
                    format!("strict on {}, and all ways back are the same", names.join(", "))
                }
            },
        ));
    }
    findings
}

fn all_ruled(ruled: &[Ruled]) -> Vec<Finding> {
    let mut findings: Vec<Finding> = ruled.iter().filter_map(one_ruled).collect();
    for (id, text) in [
        (Id::ForwardRules, "no rule drops what pods and peers send each other"),
        (Id::TunnelRules, "no rule drops the tunnel's packets"),
    ] {
        if !findings.iter().any(|finding| finding.id == id) {
            findings.push(Finding::well(id, text));
        }
    }
    findings
}

fn one_ruled(ruled: &Ruled) -> Option<Finding> {
    let (id, whose) = match ruled.what {
        Packets::ToPeers => (Id::ForwardRules, "what pods send to peers"),
        Packets::FromPeers => (Id::ForwardRules, "what peers send to pods"),
        Packets::TunnelIn => (Id::TunnelRules, "tunnel packets that come in"),
        Packets::TunnelOut => (Id::TunnelRules, "tunnel packets that go out"),
    };
    match &ruled.fate {
        Fate::Passes => None,
        Fate::Dropped(culprit) => {
            let found = format!("{} drops {whose}", named(culprit));
            Some(Finding::ill(id, Condition::Broken, found, remedy(ruled.what, culprit)))
        }
        Fate::Perhaps(culprit) => {
            let found = format!("{} may drop {whose}, or some of it", named(culprit));
            Some(Finding::ill(id, Condition::Degraded, found, remedy(ruled.what, culprit)))
        }
    }
}

fn named(culprit: &Culprit) -> String {
    let Culprit { family, table, chain, handle, text } = culprit;
    let handle = handle.map(|handle| format!(" handle {handle}")).unwrap_or_default();
    format!("{} {table} {chain}{handle} ({text})", family.name())
}

fn remedy(what: Packets, culprit: &Culprit) -> String {
    let Culprit { family, table, chain, handle, .. } = culprit;
    if &**table == "firewalld" || chain.starts_with(UFW_CHAIN) {
        // It would write a rule that is deleted anew.
        return format!("let its service accept them: see {}", Id::FirewallService.word());
    }
    match (handle, what) {
        (Some(handle), _) => format!(
            "if it is not meant: nft delete rule {} {table} {chain} handle {handle}",
            family.name()
        ),
        (None, Packets::ToPeers | Packets::FromPeers) => {
            "accept the overlay network there, or let the daemon do it (--iptables-forward-rules)"
                .to_owned()
        }
        (None, Packets::TunnelIn | Packets::TunnelOut) => {
            "accept UDP to the tunnel's port from all nodes there".to_owned()
        }
    }
}

fn services(facts: &NodeFacts) -> Vec<Finding> {
    let id = Id::FirewallService;
    let bad = facts
        .rules
        .as_ref()
        .is_ok_and(|ruled| ruled.iter().any(|ruled| ruled.fate != Fate::Passes));
    if facts.firewall_services.is_empty() {
        return vec![Finding::well(id, "neither firewalld nor ufw is active")];
    }
    let all = facts.firewall_services.iter().map(|service| {
        let name = match service {
            FirewallService::Firewalld => "firewalld",
            FirewallService::Ufw => "ufw",
        };
        if !bad {
            return Finding::well(id, format!("{name} is active, and lets packets pass"));
        }
        let found = format!("{name} is active, and rules drop packets");
        Finding::ill(id, Condition::Degraded, found, let_pass(*service, facts))
    });
    all.collect()
}

/// Commands by which a service lets the tunnel and the overlay pass.
fn let_pass(service: FirewallService, facts: &NodeFacts) -> String {
    let known = facts.network.as_ref();
    let network = known
        .and_then(|known| known.network)
        .map_or("<overlay network>".to_owned(), |network| network.to_string());
    let port = facts.own_device().and_then(|own| own.port);
    let commands = match service {
        FirewallService::Firewalld => [
            port.map(|port| format!("firewall-cmd --permanent --add-port={port}/udp")),
            Some(format!("firewall-cmd --permanent --zone=trusted --add-source={network}")),
            Some("firewall-cmd --reload".to_owned()),
        ],
        FirewallService::Ufw => [
            port.map(|port| format!("ufw allow {port}/udp")),
            Some(format!("ufw route allow from {network} to {network}")),
            None,
        ],
    };
    commands.into_iter().flatten().collect::<Vec<String>>().join("; ")
}
