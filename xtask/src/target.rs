//! The machines that packages are made for, and the tools for each.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};
use clap::ValueEnum;

use crate::setup;
use crate::workspace::root;

/// A target by its triple, as rustc has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Target {
    /// Debian's amd64
    #[value(name = "x86_64-unknown-linux-gnu")]
    X86_64,
    /// Debian's arm64
    #[value(name = "aarch64-unknown-linux-gnu")]
    Aarch64,
}

impl Target {
    /// This machine.
    pub(crate) fn host() -> Result<Self> {
        match std::env::consts::ARCH {
            "x86_64" => Ok(Self::X86_64),
            "aarch64" => Ok(Self::Aarch64),
            other => bail!("no package for {other}"),
        }
    }

    pub(crate) fn triple(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64-unknown-linux-gnu",
            Self::Aarch64 => "aarch64-unknown-linux-gnu",
        }
    }

    /// Debian's name.
    pub(crate) fn debian(self) -> &'static str {
        match self {
            Self::X86_64 => "amd64",
            Self::Aarch64 => "arm64",
        }
    }

    /// The kernel's name, and rpm's.
    pub(crate) fn machine(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
        }
    }

    /// Installs what building for another machine needs.
    ///
    /// # Errors
    /// It cannot be had.
    pub(crate) fn prepare(self) -> Result<()> {
        match self {
            Self::Aarch64 if self.foreign() => setup::arm64(self.triple()),
            _ => Ok(()),
        }
    }

    /// Settings for cargo: what links programs, and what runs them.
    pub(crate) fn settings(self) -> Vec<(String, String)> {
        let name = self.triple().to_uppercase().replace('-', "_");
        let linker = match self.foreign() {
            true => self.tool("gcc"),
            false => root().join("packaging/ordered-gcc").display().to_string(),
        };
        let mut settings = vec![(format!("CARGO_TARGET_{name}_LINKER"), linker)];
        if self.foreign() {
            settings.push((format!("CARGO_TARGET_{name}_RUNNER"), self.emulator().join(" ")));
        }
        settings
    }

    fn emulator(self) -> [String; 3] {
        let machine = self.machine();
        [format!("qemu-{machine}-static"), "-L".into(), format!("/usr/{machine}-linux-gnu")]
    }

    fn foreign(self) -> bool {
        std::env::consts::ARCH != self.machine()
    }

    /// A program of binutils or gcc.
    pub(crate) fn tool(self, name: &str) -> String {
        match self.foreign() {
            true => format!("{}-linux-gnu-{name}", self.machine()),
            false => name.to_owned(),
        }
    }

    /// Runs a program of this target; qemu emulates a foreign machine.
    pub(crate) fn run(self, program: &Path) -> Command {
        if !self.foreign() {
            return Command::new(program);
        }
        let [emulator, words @ ..] = self.emulator();
        let mut command = Command::new(emulator);
        command.args(words).arg(program);
        command
    }
}
