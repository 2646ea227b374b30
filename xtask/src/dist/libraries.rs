//! The libraries that the agent is linked with, as cargo knows them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::workspace::{cargo, output};

/// A crate that is linked into the agent.
pub(super) struct Library {
    /// cargo's name for it, unlike all others'.
    pub(super) id: String,
    pub(super) name: String,
    pub(super) version: String,
    /// An SPDX expression, as its manifest has it.
    pub(super) licence: String,
    pub(super) manifest: PathBuf,
    /// A crate of this workspace.
    pub(super) own: bool,
    /// Ids of the crates that it uses.
    pub(super) uses: Vec<String>,
}

/// The agent's crates for a target, itself among them, in cargo's order.
///
/// # Errors
/// cargo cannot tell.
pub(super) fn linked(triple: &str) -> Result<Vec<Library>> {
    let metadata = output(cargo().args([
        "metadata",
        "--format-version=1",
        "--locked",
        "--filter-platform",
        triple,
    ]))?;
    let metadata: Value =
        serde_json::from_str(&metadata).context("read what cargo metadata told")?;
    let uses = reached(&metadata);
    let library = |package: &Value| {
        let uses = uses.get(text(&package["id"]))?;
        Some(Library {
            id: text(&package["id"]).to_owned(),
            name: text(&package["name"]).to_owned(),
            version: text(&package["version"]).to_owned(),
            licence: text(&package["license"]).to_owned(),
            manifest: text(&package["manifest_path"]).into(),
            own: package["source"].is_null(),
            uses: uses.iter().map(|id| (*id).to_owned()).collect(),
        })
    };
    Ok(list(&metadata["packages"]).iter().filter_map(library).collect())
}

/// What the agent reaches by dependencies other than those of builds and tests, with
/// what each uses.
fn reached(metadata: &Value) -> BTreeMap<&str, BTreeSet<&str>> {
    let nodes = list(&metadata["resolve"]["nodes"]);
    let by_id: BTreeMap<&str, &Value> =
        nodes.iter().map(|node| (text(&node["id"]), node)).collect();
    let packages = list(&metadata["packages"]).iter();
    let agent = packages.filter(|package| package["name"] == "flannel-agent");
    let mut open: Vec<&str> = agent.map(|package| text(&package["id"])).collect();
    let mut found = BTreeMap::new();
    while let Some(id) = open.pop() {
        if found.contains_key(id) {
            continue;
        }
        let dependencies = by_id.get(id).map_or(&[][..], |node| list(&node["deps"]));
        let normal = dependencies.iter().filter(|dependency| {
            list(&dependency["dep_kinds"]).iter().any(|kind| kind["kind"].is_null())
        });
        let uses: BTreeSet<&str> = normal.map(|dependency| text(&dependency["pkg"])).collect();
        open.extend(&uses);
        found.insert(id, uses);
    }
    found
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
