//! `docs/schemas/`: what `--json` prints, by command, as JSON Schema.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use clap::CommandFactory as _;
use flannel_core::check;
use flannel_core::connectivity::Matrix;
use flannel_core::status::{Event, FlowStatus, PacketEvent, PeerStatus, Status, SysdumpReport};
use flannel_core::trace::TraceReport;
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema};

use super::{migrate, status};
use crate::cli::Cli;

/// A command and what it prints.
type Printed = (&'static str, fn() -> Schema);

/// All with `--json`.
const COMMANDS: &[Printed] = &[
    ("events", of::<Vec<Event>>),
    ("flows", of::<Vec<FlowStatus>>),
    ("check", of::<check::CheckReport>),
    ("connectivity", of::<Matrix>),
    ("migrate", of::<MigrateJson>),
    ("monitor", of::<PacketEvent>),
    ("peers", of::<Vec<PeerStatus>>),
    ("status", of::<StatusJson>),
    ("trace", of::<TraceReport>),
    ("sysdump", of::<SysdumpReport>),
];

/// `status --json`.
#[derive(JsonSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "its schema is what counts")]
enum StatusJson {
    Running(Box<Status>),
    NotRunning(Box<status::NotRunning>),
}

/// `migrate --json`.
#[derive(JsonSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "its schema is what counts")]
enum MigrateJson {
    Report(migrate::MigrationReport),
    Failure(migrate::Failure),
}

fn of<T: JsonSchema>() -> Schema {
    SchemaSettings::draft2020_12().for_serialize().into_generator().into_root_schema_for::<T>()
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/schemas")
}

#[test]
fn each_command_has_the_schema_that_its_types_have() {
    let write = std::env::var_os("FLANNEL_WRITE_DOCS").is_some();
    for (command, schema) in COMMANDS {
        let path = folder().join(format!("{command}.json"));
        let mut schema = schema();
        schema.insert("title".to_owned(), format!("flannel-agent {command} --json").into());
        let text = serde_json::to_string_pretty(&schema).unwrap() + "\n";
        if write {
            std::fs::create_dir_all(folder()).unwrap();
            std::fs::write(&path, &text).unwrap();
        }
        assert!(
            std::fs::read_to_string(&path).is_ok_and(|written| written == text),
            "docs/schemas/{command}.json is not what the code says; write it anew with \
             FLANNEL_WRITE_DOCS=1 cargo test -p flannel-agent --lib commands::schemas"
        );
    }
}

#[test]
fn no_command_with_json_is_forgotten() {
    let with_json: BTreeSet<String> = Cli::command()
        .get_subcommands()
        .filter(|command| command.get_arguments().any(|argument| argument.get_id() == "json"))
        .map(|command| command.get_name().to_owned())
        .collect();
    let listed: BTreeSet<String> =
        COMMANDS.iter().map(|(command, _)| (*command).to_owned()).collect();
    assert_eq!(listed, with_json);
    let written: BTreeSet<String> = std::fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let files: BTreeSet<String> = listed.iter().map(|command| format!("{command}.json")).collect();
    assert_eq!(written, files);
}
