//! Which compiler builds the TC programs.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow, bail};

use crate::workspace::{output, root};

/// Beginnings of the environment variables that cargo and rustup set, or that
/// would change the object.
const AROUND_US: &[&str] = &[
    "CARGO_BUILD_",
    "CARGO_ENCODED_",
    "CARGO_MANIFEST_",
    "CARGO_PKG_",
    "CARGO_PROFILE_",
    "CARGO_TARGET_",
    "RUSTC",
    "RUSTFLAGS",
    "RUSTUP_TOOLCHAIN",
];

/// A rustc with the sources of `core` at its sysroot, and its cargo.
pub(crate) struct Toolchain {
    cargo: PathBuf,
    rustc: PathBuf,
    sysroot: PathBuf,
    /// A stable compiler that is allowed unstable features.
    bootstrap: bool,
    /// Which one was chosen and why, for people.
    pub(crate) why: String,
}

impl Toolchain {
    fn environment(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        // What the cargo around us set is about another toolchain.
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if AROUND_US.iter().any(|prefix| text.starts_with(prefix)) {
                command.env_remove(&name);
            }
        }
        command.env("RUSTC", &self.rustc);
        if self.bootstrap {
            command.env("RUSTC_BOOTSTRAP", "1");
        }
        command
    }

    /// Its cargo.
    pub(crate) fn cargo(&self) -> Command {
        self.environment(&self.cargo)
    }

    /// Its rustc.
    pub(crate) fn rustc(&self) -> Command {
        self.environment(&self.rustc)
    }

    /// Compiler flags: BTF from debug information, and no path of this
    /// machine in it, so that every directory gives the same bytes.
    pub(crate) fn flags(&self) -> Result<Vec<String>> {
        let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
        let cargo_home =
            std::env::var_os("CARGO_HOME").map_or_else(|| home.join(".cargo"), PathBuf::from);
        let remap = |from: &Path, to: &str| format!("--remap-path-prefix={}={to}", from.display());
        let root = root().canonicalize().context("find the root of the workspace")?;
        // Without the last one, zeros are written by calls of a memset that goes by bytes.
        let link = ["--btf", "--disable-expand-memcpy-in-order"];
        let mut flags = ["-C", "debuginfo=2"].map(String::from).to_vec();
        flags.extend(link.into_iter().flat_map(|it| ["-C".into(), format!("link-arg={it}")]));
        // The compiler takes the last prefix that fits: the most special ones
        // go last. A registry's directory is named by a hash of its address.
        flags.extend([remap(&cargo_home, "/cargo"), remap(&root, "/flannel")]);
        flags.push(remap(&self.sysroot, "/rust"));
        for registry in std::fs::read_dir(cargo_home.join("registry/src")).into_iter().flatten() {
            flags.push(remap(&registry?.path(), "/cargo"));
        }
        Ok(flags)
    }
}

/// rustup's nightly with rust-src if it is there, else the distribution's pair.
pub(crate) fn choose() -> Result<Toolchain> {
    let nightly = match rustup_nightly() {
        Ok(toolchain) => return Ok(toolchain),
        Err(reason) => reason,
    };
    distribution().map_err(|reason| {
        anyhow!(
            "no compiler for the TC programs: {nightly:#}; {reason:#}. Either `rustup toolchain \
             install nightly --component rust-src`, or on Debian `cargo xtask setup --ebpf`"
        )
    })
}

/// `rustup run nightly`.
///
/// # Errors
/// There is no rustup, no nightly, or no rust-src in it.
pub(crate) fn rustup_nightly() -> Result<Toolchain> {
    let path = |tool: &str| {
        output(Command::new("rustup").args(["which", "--toolchain", "nightly", tool]))
            .map(PathBuf::from)
            .context("rustup has no nightly")
    };
    let (cargo, rustc) = (path("cargo")?, path("rustc")?);
    let sysroot = sysroot(&rustc)?;
    Ok(Toolchain {
        cargo,
        rustc,
        sysroot,
        bootstrap: false,
        why: "rustup's nightly, which has rust-src".into(),
    })
}

/// /usr/bin/rustc and /usr/bin/cargo.
fn distribution() -> Result<Toolchain> {
    let rustc = PathBuf::from("/usr/bin/rustc");
    let version = output(Command::new(&rustc).arg("--version"))
        .with_context(|| format!("ask {} for its version", rustc.display()))?;
    let minor = version.split('.').nth(1).and_then(|minor| minor.parse::<u32>().ok());
    if minor.is_none_or(|minor| minor < 85) {
        bail!("{version} is too old: edition 2024 needs 1.85");
    }
    let sysroot = sysroot(&rustc)?;
    Ok(Toolchain {
        cargo: "/usr/bin/cargo".into(),
        rustc,
        sysroot,
        bootstrap: true,
        why:
            "the distribution's /usr/bin/rustc with rust-src (rustup has no nightly with rust-src)"
                .into(),
    })
}

fn sysroot(rustc: &Path) -> Result<PathBuf> {
    let sysroot = PathBuf::from(output(Command::new(rustc).args(["--print", "sysroot"]))?);
    let core = sysroot.join("lib/rustlib/src/rust/library/core/src/lib.rs");
    if !core.exists() {
        bail!("{} has no rust-src", rustc.display());
    }
    Ok(sysroot)
}

/// llvm-objcopy; LLVM 22's where it is, since it goes with bpf-linker.
pub(crate) fn objcopy() -> Result<PathBuf> {
    let versioned = PathBuf::from("/usr/lib/llvm-22/bin/llvm-objcopy");
    if versioned.exists() {
        return Ok(versioned);
    }
    crate::workspace::which("llvm-objcopy").context("llvm-objcopy (Debian package llvm-22)")
}
