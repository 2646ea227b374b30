//! The agent as packages have it.

use std::path::PathBuf;

use anyhow::Result;
use fs_err as fs;
use sha2::{Digest as _, Sha256};

use crate::target::Target;
use crate::workspace::{cargo, root, run, target_dir};

/// cargo's profile for it.
pub(crate) const SHIPPED: &str = "shipped";

/// What the linker is told, which cargo does not know of.
const LINKED_WITH: [&str; 2] = ["packaging/ordered-gcc", "packaging/functions"];

/// Builds it with this profile; returns where it is, with its debug information.
///
/// # Errors
/// It cannot be built.
pub(crate) fn build(target: Target, profile: &str) -> Result<PathBuf> {
    // Paths of this machine have no place in a package.
    let home = std::env::var("CARGO_HOME").ok().map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
    let mut flags = format!("--remap-path-prefix={}=/flannel-ebpf", root().display());
    if let Some(home) = home {
        flags.push_str(&format!(" --remap-path-prefix={}=/cargo", home.display()));
    }
    let dir = target_dir().join("dist-build");
    let triple = target.triple();
    // cargo's own name for the directory of its first profile.
    let folder = if profile == "dev" { "debug" } else { profile };
    let agent = ["--package", "flannel-agent", "--bin", "flannel-agent"];
    run(cargo()
        .args(["rustc", "--profile", profile, "--locked", "--target", triple, "--target-dir"])
        .arg(&dir)
        .args(agent)
        // Another list is another program.
        .args(["--", "--cfg", &format!("linked_with=\"{}\"", linked_with()?)])
        .envs(target.settings())
        .env("RUSTFLAGS", flags))?;
    Ok(dir.join(triple).join(folder).join("flannel-agent"))
}

/// A digest of what the linker is told.
fn linked_with() -> Result<String> {
    let mut digest = Sha256::new();
    for name in LINKED_WITH {
        digest.update(fs::read(root().join(name))?);
    }
    Ok(digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::process::Command;

    use super::*;
    use crate::workspace::output;

    /// What the program's functions are called, by their addresses.
    fn laid_out(program: &Path) -> Vec<String> {
        let text = output(Command::new("nm").arg("-n").arg(program)).unwrap();
        let named = text.lines().filter_map(|line| line.split(' ').next_back());
        named.filter(|name| name.starts_with("_ZN4test")).map(str::to_owned).collect()
    }

    #[test]
    fn the_linker_lays_listed_functions_side_by_side() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::copy(root().join("packaging/ordered-gcc"), path("ordered-gcc")).unwrap();
        let hash = "17h0123456789abcdefE";
        let function = |name: &str| format!("int _ZN4test1{name}{hash}(void) {{ return 1; }}\n");
        let functions = ["a", "b", "c", "d"].map(function).concat();
        fs::write(path("all.c"), functions + "int main(void) { return 0; }\n").unwrap();
        fs::write(path("functions"), "# at rest\n_ZN4test1d\n_ZN4gone\n_ZN4test1b\n").unwrap();
        let mut gcc = Command::new("gcc");
        output(gcc.current_dir(dir.path()).args(["-c", "-ffunction-sections", "all.c"])).unwrap();
        let name = |letter: &str| format!("_ZN4test1{letter}{hash}");
        let mut link = Command::new(path("ordered-gcc"));
        output(link.current_dir(dir.path()).args(["all.o", "-o", "all"])).unwrap();
        let expected = ["d", "b", "a", "c"].map(name);
        assert_eq!(laid_out(&path("all")), expected);
    }
}
