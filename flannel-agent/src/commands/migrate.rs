//! `flannel-agent migrate`.

use schemars::JsonSchema;
use serde::Serialize;

use super::{complain, print, print_json};
use crate::cli::{MigrateArgs, MigrateFrom, MigrateTo};
use crate::source::SourceError;
use crate::source::migration::{Action, Migration, Step};
use crate::source::options::EtcdOptions;

/// What `migrate --json` prints.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct MigrationReport {
    /// How it ended.
    result: Ending,
    /// Nothing was to be written.
    dry_run: bool,
    /// Each key of v2.
    keys: Vec<Step>,
}

/// What it prints where a store cannot be read or written.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Failure {
    /// Always `failed`.
    result: &'static str,
    /// Why.
    error: String,
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(into = "&'static str")]
#[schemars(with = "String")]
enum Ending {
    /// Everything that v3 lacked was copied.
    Copied,
    /// It would have been, without `--dry-run`.
    WouldCopy,
    /// v3 lacked nothing.
    Nothing,
    /// v3 has other values: nothing was written.
    Refused,
    /// Somebody wrote to v3 meanwhile.
    Overtaken,
}

impl Ending {
    fn of(steps: &[Step], dry_run: bool) -> Self {
        let any = |action| steps.iter().any(|step| step.action == action);
        if any(Action::Differs) {
            Self::Refused
        } else if !any(Action::Copy) {
            Self::Nothing
        } else if dry_run {
            Self::WouldCopy
        } else {
            Self::Copied
        }
    }

    fn text(self) -> &'static str {
        match self {
            Self::Copied => "copied",
            Self::WouldCopy => "dry run: nothing was written",
            Self::Nothing => "nothing to do",
            Self::Refused => "refused: v3 has other values, nothing was written",
            Self::Overtaken => "stopped: v3 was written by somebody else meanwhile; run it again",
        }
    }

    fn code(self) -> u8 {
        u8::from(matches!(self, Self::Refused | Self::Overtaken))
    }
}

impl From<Ending> for &'static str {
    fn from(ending: Ending) -> Self {
        ending.text()
    }
}

/// Copies config and leases from v2 to v3.
pub async fn run(args: MigrateArgs) -> u8 {
    let MigrateArgs { from: MigrateFrom::V2, to: MigrateTo::V3, dry_run, json, etcd } = args;
    match migrate(etcd, dry_run).await {
        Ok((steps, ending)) => {
            if json {
                print_json(&MigrationReport { result: ending, dry_run, keys: steps });
            } else {
                for step in &steps {
                    print(&line(step, ending));
                }
                print(ending.text());
            }
            ending.code()
        }
        Err(error) => {
            if json {
                print_json(&Failure { result: "failed", error: error.to_string() });
            }
            complain(&format!("migrate: {error}"));
            1
        }
    }
}

async fn migrate(options: EtcdOptions, dry_run: bool) -> Result<(Vec<Step>, Ending), SourceError> {
    let migration = Migration::new(options).await?;
    let (holds, mut steps) = migration.survey().await?;
    let mut ending = Ending::of(&steps, dry_run);
    if ending != Ending::Copied {
        return Ok((steps, ending));
    }
    // The config comes last: no node starts on v3 before the leases are there.
    for item in holds.items.iter().rev() {
        let step = steps.iter_mut().find(|step| step.key == item.key);
        let Some(step) = step.filter(|step| step.action == Action::Copy) else { continue };
        if !migration.copy(item).await? {
            step.action = Action::Differs;
            step.reason = Some("v3 has it by now".to_owned());
            ending = Ending::Overtaken;
            break;
        }
    }
    Ok((steps, ending))
}

fn line(step: &Step, ending: Ending) -> String {
    let verb = match (step.action, ending) {
        (Action::Copy, Ending::Copied) => "copied",
        (Action::Copy, Ending::WouldCopy) => "would copy",
        (Action::Copy, _) => "not copied",
        (Action::Same, _) => "same",
        (Action::Differs, _) => "differs",
        (Action::Skip, _) => "skipped",
    };
    let mut text = format!("{verb:<11} {}", step.key);
    if let Some(left) = step.seconds_left {
        text.push_str(&format!(" ({left} s left)"));
    } else if step.key != "config" && step.action != Action::Skip {
        text.push_str(" (reserved)");
    }
    if let Some(reason) = &step.reason {
        text.push_str(&format!(": {reason}"));
    }
    text
}
