//! The store, its leases, its clock, and the certificates for it.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::time::Duration;

use super::facts::{Held, NodeFacts, StoreFault};
use super::finding::{Condition, Finding, Id};
use crate::text;

/// An answer that takes longer is slow, in milliseconds.
const SLOW: u64 = 1000;
/// Clocks that differ by more are wrong, in seconds. etcd tells whole seconds.
const APART: i64 = 5;
/// A certificate that ends within this time is near its end, in seconds.
const NEAR: i64 = 14 * DAY;
const DAY: i64 = 24 * 60 * 60;
/// Duplicates that are listed.
const LISTED: usize = 10;

pub(super) fn findings(facts: &NodeFacts) -> Vec<Finding> {
    let mut findings = vec![store(facts), clock(facts)];
    findings.extend(duplicates(facts));
    findings.extend(certificates(facts));
    findings
}

fn store(facts: &NodeFacts) -> Finding {
    let finding = answer(facts);
    match &facts.store_settings {
        Some(whose) => {
            let found = format!("{}; asked with the settings of {whose}", finding.found);
            Finding { found, ..finding }
        }
        None => finding,
    }
}

fn answer(facts: &NodeFacts) -> Finding {
    let id = Id::Store;
    match &facts.store {
        Err(StoreFault::NotNamed(why)) => Finding::unknown(
            id,
            format!("neither daemon nor unit tells where etcd is; give the --etcd flags ({why})"),
        ),
        Err(fault) => {
            let remedy = match fault {
                StoreFault::Unavailable(_) | StoreFault::NotNamed(_) => {
                    "look at etcd and the way to it"
                }
                StoreFault::Config(_) => {
                    "write a network config that can be used to this key, or give \
                     --etcd-prefix; see configuration.md"
                }
            };
            Finding::ill(id, Condition::Degraded, fault.to_string(), remedy)
        }
        Ok(store) if store.millis > SLOW => Finding::ill(
            id,
            Condition::Degraded,
            format!("it answers after {} ms", store.millis),
            "look at the load, disks and network of etcd",
        ),
        Ok(store) => Finding::well(
            id,
            format!(
                "it answers after {} ms, {}",
                store.millis,
                text::counted(store.leases.len(), "lease")
            ),
        ),
    }
}

fn clock(facts: &NodeFacts) -> Finding {
    let id = Id::Clock;
    match facts.clock {
        Err(ref reason) => Finding::unknown(id, reason.to_string()),
        Ok(ahead) if ahead.abs() > APART => Finding::ill(
            id,
            Condition::Degraded,
            format!(
                "etcd's clock is {} {} ours",
                text::lasting(Duration::from_secs(ahead.unsigned_abs())),
                if ahead > 0 { "ahead of" } else { "behind" }
            ),
            "let a time service (chrony, systemd-timesyncd) set both clocks",
        ),
        Ok(_) => Finding::well(id, "it agrees with etcd's"),
    }
}

fn duplicates(facts: &NodeFacts) -> Vec<Finding> {
    let id = Id::DuplicateLeases;
    let leases = match &facts.store {
        Ok(store) => &store.leases,
        Err(_) => return vec![Finding::unknown(id, "leases cannot be listed")],
    };
    let mut found = by(leases, "PublicIP", |lease| Some(lease.public_ip));
    found.extend(by(leases, "VTEP MAC", |lease| lease.vtep_mac));
    found.extend(overlaps(leases));
    if found.is_empty() {
        let among = text::counted(leases.len(), "lease");
        return vec![Finding::well(id, format!("none among {among}"))];
    }
    let remedy = "find the node that should not have it: a cloned machine, or a lease that a node \
                  left behind; give it its own, or delete the lease";
    found.truncate(LISTED);
    found.into_iter().map(|found| Finding::ill(id, Condition::Broken, found, remedy)).collect()
}

fn by<K: Ord + Display>(
    leases: &[Held],
    what: &str,
    key: impl Fn(&Held) -> Option<K>,
) -> Vec<String> {
    let mut holders = BTreeMap::<K, Vec<String>>::new();
    for lease in leases {
        if let Some(key) = key(lease) {
            holders.entry(key).or_default().push(lease.subnet.to_string());
        }
    }
    let several = holders.into_iter().filter(|(_, subnets)| subnets.len() > 1);
    several.map(|(key, subnets)| format!("{what} {key} has {}", subnets.join(" and "))).collect()
}

/// In the order of their addresses, one that overlaps another begins before its end.
fn overlaps(leases: &[Held]) -> Vec<String> {
    let mut sorted: Vec<&Held> = leases.iter().collect();
    sorted.sort_by_key(|lease| (lease.subnet.network(), lease.subnet.prefix()));
    let mut found = Vec::new();
    let mut widest: Option<&Held> = None;
    for lease in sorted {
        if let Some(before) = widest.filter(|wide| wide.subnet.contains(lease.subnet.network())) {
            found.push(format!(
                "{} of {} and {} of {} overlap",
                before.subnet, before.public_ip, lease.subnet, lease.public_ip
            ));
            if before.subnet.broadcast() >= lease.subnet.broadcast() {
                continue;
            }
        }
        widest = Some(lease);
    }
    found
}

fn days(seconds: i64) -> String {
    match usize::try_from(seconds / DAY) {
        Ok(0) | Err(_) => "less than a day".to_owned(),
        Ok(days) => text::counted(days, "day"),
    }
}

fn certificates(facts: &NodeFacts) -> Vec<Finding> {
    let id = Id::Certificates;
    if facts.certificates.is_empty() {
        return vec![Finding::well(id, "none is in use")];
    }
    facts
        .certificates
        .iter()
        .map(|certificate| {
            let path = certificate.path.display();
            let remedy = "put a new one there; the daemon reads it at its next connection";
            match certificate.seconds_left {
                Err(ref reason) => Finding::unknown(id, format!("{path}: {reason}")),
                Ok(left) if left < 0 => {
                    Finding::ill(id, Condition::Broken, format!("{path} has ended"), remedy)
                }
                Ok(left) if left < NEAR => {
                    let found = format!("{path} ends in {}", days(left));
                    Finding::ill(id, Condition::Degraded, found, remedy)
                }
                Ok(left) => Finding::well(id, format!("{path} lasts {}", days(left))),
            }
        })
        .collect()
}
