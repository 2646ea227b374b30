//! Daemon, kernel, capabilities, pins, hooks.

use super::facts::{Agent, NodeFacts, Whose};
use super::finding::{Condition, Finding, Id};

pub(super) fn findings(facts: &NodeFacts) -> Vec<Finding> {
    let mut findings = vec![agent(facts), features(facts), capabilities(facts), bpffs(facts)];
    findings.extend(foreign(facts));
    findings
}

/// How it is while a daemon does not work: it has ended, or waits for its lease.
fn left_behind(facts: &NodeFacts, daemon: &str) -> (Condition, String) {
    let own = facts.network.as_ref().and_then(|network| network.device.as_ref());
    let told = |what: String| format!("{daemon}{what}");
    match (own, facts.own_device()) {
        (Some(own), None) if facts.devices.is_ok() => {
            (Condition::Broken, told(format!(", and {own} is not there")))
        }
        (_, Some(own)) if own.kind == "tun" => {
            (Condition::Broken, told("; the udp backend forwards nothing meanwhile".to_owned()))
        }
        _ => (Condition::Degraded, told("; what was set up goes on forwarding".to_owned())),
    }
}

fn agent(facts: &NodeFacts) -> Finding {
    let id = Id::Agent;
    match &facts.agent {
        Err(reason) => Finding::unknown(id, format!("it cannot be asked: {reason}")),
        Ok(Agent::Dead { remembered: false }) => Finding::ill(
            id,
            Condition::Broken,
            "no daemon runs, and none has run here",
            "start it: systemctl start flannel-agent",
        ),
        Ok(Agent::Dead { remembered: true }) => {
            let (condition, found) = left_behind(facts, "no daemon runs");
            let remedy = "start it: systemctl start flannel-agent; why it ended says \
                          journalctl -u flannel-agent";
            Finding::ill(id, condition, found, remedy)
        }
        Ok(Agent::Running { .. }) if facts.network.is_none() => Finding::ill(
            id,
            Condition::Broken,
            "it runs, but has no lease yet",
            "flannel-agent status says what it waits for",
        )
        .since("without a lease pods get no network"),
        Ok(Agent::Running { leased: false, .. }) => {
            let (condition, found) = left_behind(facts, "it runs, but has no lease yet");
            let why = match condition {
                Condition::Broken => "without a lease pods get no network",
                _ => "until it has one, changes of other nodes are not followed",
            };
            Finding::ill(id, condition, found, "flannel-agent status says what it waits for")
                .since(why)
        }
        Ok(Agent::Running { complaints, .. }) if !complaints.is_empty() => Finding::ill(
            id,
            Condition::Degraded,
            format!("not well: {}", complaints.join("; ")),
            "docs/troubleshooting.md explains each complaint",
        )
        .since("what it names works less well, or not at all"),
        Ok(Agent::Running { datapath, reason: Some(reason), .. }) => Finding::ill(
            id,
            Condition::Degraded,
            format!("the {datapath} path carries everything: {reason}"),
            "remove the reason, and restart the daemon",
        )
        .since("the fast path would be faster"),
        Ok(Agent::Running { datapath, .. }) => {
            Finding::well(id, format!("it runs, data path {datapath}"))
        }
    }
}

fn features(facts: &NodeFacts) -> Finding {
    let id = Id::KernelFeatures;
    let mut missing = Vec::new();
    let mut lesser = Vec::new();
    let mut unknown = Vec::new();
    for (feature, present) in &facts.features {
        match (present, feature.instead()) {
            (Ok(true), _) => {}
            (Ok(false), None) => missing.push(feature.name().to_owned()),
            (Ok(false), Some(instead)) => {
                lesser.push(format!("no {} ({instead})", feature.name()));
            }
            (Err(reason), _) => unknown.push(format!("{}: {reason}", feature.name())),
        }
    }
    if !missing.is_empty() {
        let found = format!("the kernel lacks {}", missing.join(", "));
        return Finding::ill(
            id,
            Condition::Degraded,
            found,
            "use a kernel with CONFIG_BPF_SYSCALL",
        );
    }
    if !unknown.is_empty() {
        return Finding::unknown(id, format!("cannot be tried: {}", unknown.join("; ")));
    }
    match lesser.is_empty() {
        true => Finding::well(id, "all that the programs use is there"),
        false => Finding::well(id, format!("enough is there; {}", lesser.join(", "))),
    }
}

fn capabilities(facts: &NodeFacts) -> Finding {
    let id = Id::Capabilities;
    let found = match &facts.capabilities {
        Ok(found) => found,
        Err(reason) => return Finding::unknown(id, reason.to_string()),
    };
    let whose = match found.whose {
        Whose::Daemons => "the daemon has",
        Whose::Ours => "this process has (no daemon runs)",
    };
    let lacking: Vec<&str> = [
        (found.net_admin, "CAP_NET_ADMIN"),
        (found.net_raw, "CAP_NET_RAW"),
        (found.bpf, "CAP_BPF with CAP_PERFMON"),
    ]
    .into_iter()
    .filter(|(there, _)| !there)
    .map(|(_, name)| name)
    .collect();
    if lacking.is_empty() {
        return Finding::well(id, format!("{whose} all that are needed"));
    }
    let state = if found.net_admin { Condition::Degraded } else { Condition::Broken };
    let lacking = lacking.join(", ");
    let remedy = format!("add {lacking} in the unit (AmbientCapabilities=), or run it as root");
    Finding::ill(id, state, format!("{whose} no {lacking}"), remedy)
}

fn bpffs(facts: &NodeFacts) -> Finding {
    let id = Id::Bpffs;
    let path = facts.bpffs.path.display();
    match &facts.bpffs.mounted {
        Ok(true) => Finding::well(id, format!("{path} is on a bpffs")),
        Ok(false) => Finding::ill(
            id,
            Condition::Degraded,
            format!("{path} is on no bpffs"),
            "mount -t bpf bpf /sys/fs/bpf, then restart the daemon",
        ),
        Err(reason) => Finding::unknown(id, format!("{path}: {reason}")),
    }
}

fn foreign(facts: &NodeFacts) -> Vec<Finding> {
    let id = Id::ForeignPrograms;
    match &facts.foreign {
        Err(reason) => vec![Finding::unknown(id, reason.to_string())],
        Ok(found) if found.is_empty() => {
            vec![Finding::well(id, "only our programs are on our devices")]
        }
        Ok(found) => found
            .iter()
            .map(|one| {
                let found = format!("{} {} has {}", one.device, one.side, one.what);
                let remedy = "if nobody needs it, remove it: bpftool net, tc filter show";
                Finding::ill(id, Condition::Degraded, found, remedy)
            })
            .collect(),
    }
}
