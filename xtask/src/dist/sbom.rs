//! The bill of materials of the agent: CycloneDX 1.5, as JSON.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use cyclonedx_bom::models::component::Classification;
use cyclonedx_bom::models::dependency::{Dependencies, Dependency};
use cyclonedx_bom::models::license::{LicenseChoice, Licenses};
use cyclonedx_bom::prelude::{
    Bom, Component, Components, DateTime, Metadata, Purl, SpdxExpression, SpecVersion,
};

use super::libraries::Library;

/// Lists the agent and its libraries. `date` is RFC 3339's.
///
/// # Errors
/// A licence or a name cannot be written.
pub(super) fn json(libraries: &[Library], date: &str) -> Result<Vec<u8>> {
    let references: BTreeMap<&str, String> =
        libraries.iter().map(|library| (library.id.as_str(), reference(library))).collect();
    let (agent, others): (Vec<_>, Vec<_>) =
        libraries.iter().partition(|library| library.name == "flannel-agent");
    let [agent] = agent[..] else { anyhow::bail!("cargo knows no single flannel-agent") };
    let components = others.into_iter().map(|library| component(library, Classification::Library));
    let dependencies = libraries.iter().map(|library| Dependency {
        dependency_ref: reference(library),
        dependencies: library.uses.iter().map(|id| references[id.as_str()].clone()).collect(),
    });
    let bom = Bom {
        // A random one, as the standard would have it, would differ in each build.
        serial_number: None,
        metadata: Some(Metadata {
            timestamp: Some(
                DateTime::try_from(date.to_owned())
                    .with_context(|| format!("read the date {date:?}"))?,
            ),
            component: Some(component(agent, Classification::Application)?),
            ..Metadata::default()
        }),
        components: Some(Components(components.collect::<Result<_>>()?)),
        dependencies: Some(Dependencies(dependencies.collect())),
        ..Bom::default()
    };
    let mut written = Vec::new();
    bom.output_as_json(&mut written, SpecVersion::V1_5).context("write the bill of materials")?;
    written.push(b'\n');
    Ok(written)
}

/// Tells crates apart, the same on every machine: cargo's ids have paths.
fn reference(library: &Library) -> String {
    format!("{}@{}", library.name, library.version)
}

fn component(library: &Library, kind: Classification) -> Result<Component> {
    let Library { name, version, licence, .. } = library;
    let mut component = Component::new(kind, name, version, Some(reference(library)));
    let licence = SpdxExpression::parse_lax(licence.clone())
        .with_context(|| format!("read {name}'s licence {licence:?}"))?;
    component.licenses = Some(Licenses(vec![LicenseChoice::Expression(licence)]));
    if !library.own {
        component.purl = Some(
            Purl::new("cargo", name, version)
                .with_context(|| format!("make the package URL of {name}"))?,
        );
    }
    Ok(component)
}

#[cfg(test)]
mod tests {
    use cyclonedx_bom::prelude::Validate as _;

    use super::*;
    use crate::dist::libraries;

    #[test]
    fn it_is_valid_and_names_what_is_linked() {
        let libraries = libraries::linked("x86_64-unknown-linux-gnu").unwrap();
        let written = json(&libraries, "2026-01-02T03:04:05Z").unwrap();
        let bom = Bom::parse_from_json_v1_5(written.as_slice()).unwrap();
        let found = bom.validate_version(SpecVersion::V1_5);
        assert!(found.passed(), "{found:?}");
        let names: Vec<String> =
            bom.components.iter().flat_map(|all| &all.0).map(|one| one.name.to_string()).collect();
        for library in ["aya", "tokio", "ring", "flannel-core"] {
            assert!(names.iter().any(|name| name == library), "{library} in {names:?}");
        }
        assert!(!names.iter().any(|name| name == "proptest"), "tools are not linked");
        assert_eq!(names.len() + 1, bom.dependencies.map_or(0, |all| all.0.len()));
        let again = json(&libraries, "2026-01-02T03:04:05Z").unwrap();
        assert_eq!(written, again, "the same bytes each time");
        let text = String::from_utf8(written).unwrap();
        assert!(!text.contains("path+file"), "a path of this machine");
    }
}
