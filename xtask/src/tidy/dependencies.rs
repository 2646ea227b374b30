//! What `deny.toml` says of the libraries: licences, crates that are not wanted, and where
//! they come from. `cargo deny check` reads the same file and says more; building it takes
//! longer than all that it would look at here.

use std::path::Path;

use anyhow::{Context, Result};
use cargo_metadata::{CargoOpt, Metadata, MetadataCommand, Package};
use fs_err as fs;
use serde::Deserialize;
use spdx::{Expression, Licensee, ParseMode};

/// What of `deny.toml` is looked at.
#[derive(Deserialize)]
struct Rules {
    graph: Graph,
    licenses: Licences,
    bans: Bans,
    sources: Sources,
}

#[derive(Deserialize)]
struct Graph {
    targets: Vec<String>,
}

#[derive(Deserialize)]
struct Licences {
    allow: Vec<String>,
}

#[derive(Deserialize)]
struct Bans {
    deny: Vec<Ban>,
}

#[derive(Deserialize)]
struct Ban {
    #[serde(rename = "crate")]
    name: String,
    reason: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Sources {
    allow_registry: Vec<String>,
    allow_git: Vec<String>,
}

/// What is wrong with the dependencies of this workspace.
///
/// # Errors
/// `deny.toml` or cargo cannot be read.
pub(super) fn complaints(root: &Path) -> Result<Vec<String>> {
    let path = root.join("deny.toml");
    let text = fs::read_to_string(&path)?;
    let rules: Rules =
        toml::from_str(&text).with_context(|| format!("read the rules of {}", path.display()))?;
    let allowed: Vec<Licensee> = rules
        .licenses
        .allow
        .iter()
        .map(|name| {
            Licensee::parse(name).with_context(|| format!("read the licence {name} of deny.toml"))
        })
        .collect::<Result<_>>()?;
    let mut complaints = Vec::new();
    for target in &rules.graph.targets {
        let metadata = MetadataCommand::new()
            .manifest_path(root.join("Cargo.toml"))
            .features(CargoOpt::SomeFeatures(Vec::new()))
            .other_options(["--locked", "--filter-platform", target].map(str::to_owned).to_vec())
            .exec()
            .with_context(|| format!("run cargo metadata for {target}"))?;
        for package in used(&metadata) {
            complaints.extend(look(package, &rules, &allowed));
        }
    }
    complaints.sort();
    complaints.dedup();
    Ok(complaints)
}

/// The packages that are built for the target, ours and others.
fn used(metadata: &Metadata) -> impl Iterator<Item = &Package> {
    let nodes = metadata.resolve.iter().flat_map(|resolve| &resolve.nodes);
    nodes.map(|node| &metadata[&node.id])
}

fn look(package: &Package, rules: &Rules, allowed: &[Licensee]) -> Vec<String> {
    let name = format!("{} {}", package.name, package.version);
    let mut found = Vec::new();
    if let Some(ban) = rules.bans.deny.iter().find(|ban| package.name.as_str() == ban.name) {
        found.push(format!("{name} is not wanted: {}", ban.reason));
    }
    let licence = package.license.as_deref().unwrap_or_default();
    if let Err(why) = permitted(licence, allowed) {
        found.push(format!("{name}: {why} (deny.toml lists the licences)"));
    }
    if let Some(source) = &package.source
        && !known(&source.repr, &rules.sources)
    {
        found.push(format!("{name} comes from {source}, which deny.toml does not list"));
    }
    for dependency in &package.dependencies {
        let ours = package.source.is_none() && dependency.path.is_none();
        if ours && dependency.req.to_string() == "*" {
            found.push(format!("{name}: any version of {} would do", dependency.name));
        }
    }
    found
}

/// Whether the licences that are allowed satisfy an expression.
fn permitted(licence: &str, allowed: &[Licensee]) -> Result<(), String> {
    let expression = Expression::parse_mode(licence, ParseMode::LAX)
        .map_err(|error| format!("licence {licence:?} is not understood: {}", error.reason))?;
    match expression.evaluate(|wanted| allowed.iter().any(|one| one.satisfies(wanted))) {
        true => Ok(()),
        false => Err(format!("licence {licence} is not allowed")),
    }
}

fn known(source: &str, sources: &Sources) -> bool {
    let is = |kind: &str, list: &[String]| {
        let address = source.strip_prefix(kind);
        address.is_some_and(|address| list.iter().any(|known| known == address))
    };
    is("registry+", &sources.allow_registry) || is("git+", &sources.allow_git)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn licences_are_judged_by_the_whole_expression() {
        let allowed = ["MIT", "Apache-2.0"].map(|name| Licensee::parse(name).unwrap());
        let may = |licence| permitted(licence, &allowed).is_ok();
        assert!(may("MIT") && may("MIT OR GPL-3.0-only") && may("Apache-2.0/MIT"));
        assert!(!may("GPL-3.0-only") && !may("MIT AND GPL-3.0-only"));
        assert!(!may("") && !may("what its author wants"));
    }

    #[test]
    fn sources_are_those_of_the_list() {
        let sources = Sources {
            allow_registry: vec!["https://github.com/rust-lang/crates.io-index".into()],
            allow_git: Vec::new(),
        };
        assert!(known("registry+https://github.com/rust-lang/crates.io-index", &sources));
        assert!(!known("registry+https://crates.invalid/index", &sources));
        assert!(!known("git+https://github.com/rust-lang/crates.io-index", &sources));
    }

    #[test]
    fn a_ban_and_a_licence_are_found() {
        let root = crate::workspace::root();
        let rules = |ban: &str, licence: &str| {
            let text = fs::read_to_string(root.join("deny.toml")).unwrap();
            toml::from_str::<Rules>(&text.replace("native-tls", ban).replace("\"MIT\",", licence))
                .unwrap()
        };
        let metadata =
            MetadataCommand::new().manifest_path(root.join("Cargo.toml")).exec().unwrap();
        let found = |rules: &Rules| -> Vec<String> {
            let allowed = rules.licenses.allow.iter().map(|name| Licensee::parse(name).unwrap());
            let allowed: Vec<_> = allowed.collect();
            used(&metadata).flat_map(|package| look(package, rules, &allowed)).collect()
        };
        let told = found(&rules("tokio", "\"MIT\","));
        assert!(told.iter().any(|line| line.starts_with("tokio ")), "{told:?}");
        let told = found(&rules("native-tls", ""));
        assert!(told.iter().any(|line| line.contains("licence MIT is not")), "{told:?}");
    }
}
