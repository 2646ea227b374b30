//! Copying the network config and the leases from v2 to v3.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Serialize;

use super::SourceError;
use super::etcd2::Etcd2;
use super::etcd3::Etcd3;
use super::holdings::{Holdings, Item};
use super::options::EtcdOptions;

/// What is to be done about a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// v3 has no such key.
    Copy,
    /// v3 has it already.
    Same,
    /// v3 has it with another value.
    Differs,
    /// It is no lease.
    Skip,
}

/// One key of a plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Step {
    /// Without the prefix.
    pub key: String,
    /// What is to be done.
    pub action: Action,
    /// Seconds that are left; `None` for the config and for a reservation.
    pub seconds_left: Option<u64>,
    /// Why it is left alone, if it is.
    pub reason: Option<String>,
}

/// Compares what v2 `holds` with what `there` is in v3. Pure.
pub fn plan(holds: &Holdings, there: &BTreeMap<String, String>) -> Vec<Step> {
    let mut steps: Vec<_> = holds
        .items
        .iter()
        .map(|item| {
            let (action, reason) = match there.get(&item.key) {
                None => (Action::Copy, None),
                Some(value) if *value == item.value => (Action::Same, None),
                Some(value) => {
                    let reason = format!("v2 has {}, v3 has {value}", item.value);
                    (Action::Differs, Some(reason))
                }
            };
            Step { key: item.key.clone(), action, seconds_left: item.seconds_left, reason }
        })
        .collect();
    steps.extend(holds.unreadable.iter().map(|(key, cause)| Step {
        key: key.clone(),
        action: Action::Skip,
        seconds_left: None,
        reason: Some(cause.clone()),
    }));
    steps
}

/// Both APIs of one etcd.
pub struct Migration {
    v2: Etcd2,
    v3: Etcd3,
}

impl Migration {
    /// Reads the files that `options` name; connects to nothing yet.
    ///
    /// # Errors
    /// [`SourceError::Options`] names the unusable setting.
    pub async fn new(options: EtcdOptions) -> Result<Self, SourceError> {
        let v3 = Etcd3::connect(options.clone()).await?;
        Ok(Self { v2: Etcd2::connect(options).await?, v3 })
    }

    /// Reads both sides and compares them.
    ///
    /// # Errors
    /// One of them does not answer, or v2 has no config.
    pub async fn survey(&self) -> Result<(Holdings, Vec<Step>), SourceError> {
        let holds = self.v2.holdings().await?;
        let steps = plan(&holds, &self.v3.values().await?);
        Ok((holds, steps))
    }

    /// Copies one key; `false` if v3 has one by now.
    ///
    /// # Errors
    /// v3 does not answer.
    pub async fn copy(&self, item: &Item) -> Result<bool, SourceError> {
        self.v3.create(item).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_v3_lacks_is_copied() {
        let item = |key: &str, value: &str| Item {
            key: key.to_owned(),
            value: value.to_owned(),
            seconds_left: Some(7),
        };
        let holds = Holdings {
            items: vec![item("config", "a"), item("subnets/x", "b"), item("subnets/y", "c")],
            unreadable: vec![("subnets/z".to_owned(), "no key".to_owned())],
        };
        let there = [("config", "a"), ("subnets/y", "other"), ("subnets/more", "d")];
        let there = there.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        let steps = plan(&holds, &there);
        let actions: Vec<_> = steps.iter().map(|step| step.action).collect();
        assert_eq!(actions, [Action::Same, Action::Copy, Action::Differs, Action::Skip]);
        assert_eq!(steps[2].reason.as_deref(), Some("v2 has c, v3 has other"));
        assert_eq!(steps[1].seconds_left, Some(7));
    }
}
