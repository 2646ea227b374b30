//! What an agent tells of itself, in the types that the agent has for it.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use flannel_core::envelope::EnvelopeReport;
use flannel_core::health::{Line, Subject};
use flannel_core::status::{Counters, LeaseStatus, PeerCounters, PeerStatus, Status, UdpOutcome};
use flannel_ebpf::abi::Outcome;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::node::Node;
use crate::process::output;

/// Runs a command of the agent with `--json`. Gives its exit code, and what it printed.
///
/// # Panics
/// It printed something else.
#[track_caller]
pub fn told<T: Serialize + DeserializeOwned>(command: &mut Command) -> (Option<i32>, T) {
    let output = output(command.arg("--json"));
    let said = read(&String::from_utf8_lossy(&output.stdout)).unwrap_or_else(|error| {
        panic!(
            "{command:?}, {}: {error}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        )
    });
    (output.status.code(), said)
}

/// Reads JSON of the agent.
///
/// # Errors
/// Names the member that the type does not have, that the JSON does not have, or that
/// says something else in the type.
pub fn read<T: Serialize + DeserializeOwned>(json: &str) -> Result<T, String> {
    let whole: Value = serde_json::from_str(json).map_err(|error| format!("{error}: {json:?}"))?;
    let typed = T::deserialize(&whole).map_err(|error| format!("{error}: {whole:#}"))?;
    let again = serde_json::to_value(&typed).map_err(|error| error.to_string())?;
    difference(&whole, &again).map_or(Ok(typed), |member| Err(format!("{member}: {whole:#}")))
}

/// The first member in which `again` is not what was told.
fn difference(told: &Value, again: &Value) -> Option<String> {
    match (told, again) {
        (Value::Object(told), Value::Object(again)) => {
            let names: BTreeSet<&String> = told.keys().chain(again.keys()).collect();
            names.into_iter().find_map(|name| match (told.get(name), again.get(name)) {
                (Some(told), Some(again)) => Some(format!(".{name}{}", difference(told, again)?)),
                (Some(_), None) => Some(format!(".{name} is unknown")),
                (None, _) => Some(format!(".{name} is missing")),
            })
        }
        (Value::Array(told), Value::Array(again)) if told.len() == again.len() => {
            let mut pairs = told.iter().zip(again).enumerate();
            pairs.find_map(|(index, (told, again))| {
                Some(format!("[{index}]{}", difference(told, again)?))
            })
        }
        _ => (told != again).then(|| format!(" is {told}, read as {again}")),
    }
}

/// The reason of the first complaint about this, if there is one.
pub fn complaint(status: &Status, subject: Subject) -> Option<&str> {
    let line = status.health.iter().find(|line| line.subject == subject)?;
    Some(&line.reason)
}

/// All that status says in words: why something is left to the kernel, why the store is
/// not followed, what is not well, what is left out.
pub fn words(status: &Status) -> String {
    let EnvelopeReport { kept, veths, not_served, hooks } = &status.datapath.envelope;
    let whys = kept.iter().flat_map(|kept| &kept.why);
    let whys = whys.chain(veths.iter().flat_map(|veth| &veth.why)).map(ToString::to_string);
    let hooks = hooks.iter().map(|hook| format!("{}: {}", hook.hook, hook.reason));
    let not_well = status.health.iter().map(|line| format!("{}: {}", line.what, line.reason));
    let reasons = [&status.datapath.reason, &status.datapath.xdp.reason, &status.store.detail];
    let mut lines: Vec<String> = reasons.into_iter().flatten().cloned().collect();
    lines.extend(whys.chain(not_served.iter().map(ToString::to_string)).chain(hooks));
    lines.extend(not_well.chain(status.ignored.iter().cloned()));
    lines.join("\n")
}

impl Node {
    /// `status --json`, if the agent answers.
    ///
    /// # Panics
    /// What it answers is no status.
    #[track_caller]
    pub fn try_status(&self) -> Option<Status> {
        let output = output(self.agent_command("status").arg("--json"));
        output.status.success().then(|| {
            read(&String::from_utf8_lossy(&output.stdout)).unwrap_or_else(|error| panic!("{error}"))
        })
    }

    /// `status --json`.
    ///
    /// # Panics
    /// The agent does not answer.
    #[track_caller]
    pub fn status(&self) -> Status {
        told(&mut self.agent_command("status")).1
    }

    /// What is not well.
    ///
    /// # Panics
    /// The agent does not answer.
    #[track_caller]
    pub fn not_well(&self) -> Vec<Line> {
        self.status().health
    }

    /// Why this is not well, if it is not.
    ///
    /// # Panics
    /// The agent does not answer.
    #[track_caller]
    pub fn complaint(&self, subject: Subject) -> Option<String> {
        complaint(&self.status(), subject).map(str::to_owned)
    }

    /// Whether there is a complaint about this, whose reason has these words.
    ///
    /// # Panics
    /// The agent does not answer.
    #[track_caller]
    pub fn complains(&self, subject: Subject, words: &str) -> bool {
        let mut lines = self.not_well().into_iter().filter(|line| line.subject == subject);
        lines.any(|line| line.reason.contains(words))
    }

    /// The node's lease, as status shows it.
    ///
    /// # Panics
    /// The agent does not answer, or has none.
    #[track_caller]
    pub fn lease(&self) -> LeaseStatus {
        self.status().lease.expect("a lease")
    }

    /// `peers --json`.
    ///
    /// # Panics
    /// The agent does not answer.
    #[track_caller]
    pub fn peers(&self) -> Vec<PeerStatus> {
        told(&mut self.agent_command("peers")).1
    }

    /// The peer with this underlay address, as `peers --json` shows it.
    ///
    /// # Panics
    /// It is not there.
    #[track_caller]
    pub fn peer(&self, of: &Node) -> PeerStatus {
        let found = self.peers().into_iter().find(|peer| peer.public_ip == of.address);
        found.unwrap_or_else(|| panic!("{} is no peer of {}", of.address, self.address))
    }

    /// What the programs counted of this peer.
    ///
    /// # Panics
    /// It is no peer, or no programs count it.
    #[track_caller]
    pub fn counted(&self, of: &Node) -> PeerCounters {
        let peer = self.peer(of);
        programs(&peer).unwrap_or_else(|| panic!("not counted by programs: {peer:?}"))
    }

    /// Packets by outcome; absent names are 0 with [`Outcomes::get`].
    #[track_caller]
    pub fn outcomes(&self) -> Outcomes {
        self.status().into()
    }
}

/// What the programs counted of a peer, if they did.
pub fn programs(peer: &PeerStatus) -> Option<PeerCounters> {
    match peer.counters {
        Counters::Programs(counters) => Some(counters),
        Counters::Udp(_) | Counters::Shared {} => None,
    }
}

/// Share (0..=1) of a peer's packets, both directions, that the fast path
/// carried between two looks.
pub fn fast_share(before: &PeerCounters, after: &PeerCounters) -> f64 {
    let grown = |of: fn(&PeerCounters) -> u64| of(after).saturating_sub(of(before)) as f64;
    let fast = grown(|of| of.tx_fast_packets + of.rx_fast_packets);
    let kernel = grown(|of| of.tx_kernel_packets + of.rx_kernel_packets);
    fast / (fast + kernel).max(1.0)
}

/// What packets are counted by.
pub trait Counted: Copy {
    /// Its name in `status`.
    fn counter(self) -> &'static str;
}

impl Counted for Outcome {
    fn counter(self) -> &'static str {
        self.name()
    }
}

impl Counted for UdpOutcome {
    fn counter(self) -> &'static str {
        self.name()
    }
}

/// Packets by outcome.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcomes(BTreeMap<String, u64>);

impl<T: Counted> FromIterator<(T, u64)> for Outcomes {
    fn from_iter<I: IntoIterator<Item = (T, u64)>>(counts: I) -> Self {
        let named = |(outcome, count): (T, u64)| (outcome.counter().to_owned(), count);
        Self(counts.into_iter().map(named).collect())
    }
}

impl From<Status> for Outcomes {
    fn from(status: Status) -> Self {
        Self(status.outcomes)
    }
}

impl Outcomes {
    /// One counter.
    pub fn get(&self, outcome: impl Counted) -> u64 {
        self.0.get(outcome.counter()).copied().unwrap_or(0)
    }

    /// All that have counted, by name.
    pub fn by_name(&self) -> &BTreeMap<String, u64> {
        &self.0
    }

    /// Adds what another agent counted.
    pub fn add(&mut self, other: &Outcomes) {
        for (name, count) in &other.0 {
            *self.0.entry(name.clone()).or_default() += count;
        }
    }

    /// What has been counted since `before`.
    pub fn since(&self, before: &Outcomes) -> Outcomes {
        let grown =
            self.0.iter().map(|(name, now)| (name.clone(), now - before.0.get(name).unwrap_or(&0)));
        Outcomes(grown.filter(|(_, count)| *count > 0).collect())
    }

    /// Packets that the fast path carried, both directions.
    pub fn fast(&self) -> u64 {
        [Outcome::FastEncap, Outcome::FastDecap, Outcome::FastXdp, Outcome::FastAggregate]
            .map(|outcome| self.get(outcome))
            .iter()
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn fault(change: impl FnOnce(&mut Value)) -> Option<String> {
        let mut value = serde_json::to_value(Status::default()).unwrap();
        change(&mut value);
        let error = read::<Status>(&value.to_string()).err()?;
        Some(error.lines().next().unwrap_or_default().trim_end_matches([':', '{', ' ']).to_owned())
    }

    #[test]
    fn a_member_too_many_or_too_few_is_named() {
        assert_eq!(fault(|_| {}), None);
        let named = |change: fn(&mut Value)| fault(change).unwrap();
        assert_eq!(named(|status| status["new"] = json!(1)), ".new is unknown");
        let more = named(|status| status["datapath"]["more"] = json!([]));
        assert_eq!(more, ".datapath.more is unknown");
        let less =
            |status: &mut Value| drop(status["store"].as_object_mut().unwrap().remove("api"));
        assert_eq!(named(less), ".store.api is missing");
        let lost = |status: &mut Value| drop(status.as_object_mut().unwrap().remove("health"));
        assert_eq!(named(lost), "missing field `health`");
        let odd = named(|status| status["datapath"]["mode"] = json!("magic"));
        assert!(odd.starts_with("unknown variant `magic`"), "{odd}");
        let line =
            json!([{"subject": "peer", "what": "", "reason": "", "since_seconds": 0, "x": 1}]);
        let inner = fault(|status| status["health"] = line).unwrap();
        assert_eq!(inner, ".health[0].x is unknown");
    }

    #[test]
    fn shares_are_of_both_directions() {
        let counts = |tx_fast, rx_fast, tx_kernel, rx_kernel| PeerCounters {
            tx_fast_packets: tx_fast,
            rx_fast_packets: rx_fast,
            tx_kernel_packets: tx_kernel,
            rx_kernel_packets: rx_kernel,
            ..PeerCounters::default()
        };
        let before = counts(10, 0, 5, 5);
        assert!((fast_share(&before, &counts(40, 30, 15, 15)) - 0.75).abs() < 1e-9);
        assert!(fast_share(&before, &before).abs() < 1e-9);
    }
}
