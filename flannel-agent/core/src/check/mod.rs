//! The doctor: what is wrong with a node, from facts that the agent gathered.
//! Pure.

pub mod facts;
mod finding;
mod network;
mod platform;
mod probes;
mod rules;
mod store;

pub use self::finding::{CheckReport, Condition, Finding, Id};

use self::facts::{Agent, NodeFacts};

/// Judges the facts.
pub fn report(facts: &NodeFacts) -> CheckReport {
    let daemon = matches!(facts.agent, Ok(Agent::Running { .. }));
    CheckReport::new(daemon, findings(facts))
}

fn findings(facts: &NodeFacts) -> Vec<Finding> {
    let mut findings = platform::findings(facts);
    findings.extend(rules::findings(facts));
    findings.extend(network::findings(facts));
    findings.extend(probes::findings(facts));
    findings.extend(store::findings(facts));
    findings
}

#[cfg(test)]
mod tests;
