//! [`Iptables`]: the rules through `iptables-save` and `iptables-restore`.

use flannel_core::firewall::names::Mine;
use flannel_core::firewall::saved;
use flannel_core::firewall::saved::Table;
use flannel_core::firewall::upstream::Place;
use flannel_core::firewall::{Rules, chains};

use super::{FirewallError, legacy, tool};

/// One set of iptables programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Iptables {
    program: String,
    /// Works on the kernel's old tables instead of nftables.
    legacy: bool,
    /// Knows `--random-fully`.
    random: bool,
}

impl Iptables {
    /// The programs of this name (`iptables`, `iptables-legacy`,
    /// `iptables-nft`); `None` if there is none.
    ///
    /// # Errors
    /// The program does not run.
    pub async fn find(program: &str) -> Result<Option<Self>, FirewallError> {
        let Some(output) = tool::run(program, &["--version"], "").await? else { return Ok(None) };
        let version = String::from_utf8_lossy(&output.stdout);
        let legacy = !version.contains("nf_tables");
        let random = knows_random(&version);
        Ok(Some(Self { program: program.to_owned(), legacy, random }))
    }

    /// Its name, and what it works on.
    pub fn describe(&self) -> String {
        format!("{} ({})", self.program, if self.legacy { "legacy" } else { "nf_tables" })
    }

    /// Whether it works on the kernel's old tables.
    pub fn is_legacy(&self) -> bool {
        self.legacy
    }

    /// Whether there are rules, chains or policies of somebody.
    pub(super) async fn in_use(&self) -> Result<bool, FirewallError> {
        Ok(saved::in_use(&self.save().await?))
    }

    /// Makes our rules exactly these (without any: none), and removes
    /// flannel's of these nodes. Says whether anything was written.
    pub(super) async fn sync(
        &self,
        rules: Option<&Rules>,
        nodes: &[Place],
        mine: &Mine,
    ) -> Result<bool, FirewallError> {
        let rules = rules.map(|rules| Rules {
            fully_random: rules.fully_random && self.random,
            ..rules.clone()
        });
        let plan = async || {
            let saved = self.save().await?;
            Ok::<_, FirewallError>(chains::plan(&saved, rules.as_ref(), nodes, mine))
        };
        let Some(text) = plan().await? else { return Ok(false) };
        self.restore(&text).await?;
        match plan().await? {
            None => Ok(true),
            Some(_) => Err(tool::in_vain(format!("{}-restore", self.program))),
        }
    }

    async fn save(&self) -> Result<Vec<Table>, FirewallError> {
        // Asking for tables that are not there would create them.
        if self.legacy && !legacy::has_tables() {
            return Ok(Vec::new());
        }
        let output = self.run(&format!("{}-save", self.program), &[], "").await?;
        Ok(saved::parse(&String::from_utf8_lossy(&output)))
    }

    async fn restore(&self, text: &str) -> Result<(), FirewallError> {
        let program = format!("{}-restore", self.program);
        self.run(&program, &["-w", "5", "--noflush"], text).await.map(drop)
    }

    async fn run(
        &self,
        program: &str,
        arguments: &[&str],
        input: &str,
    ) -> Result<Vec<u8>, FirewallError> {
        let call = || tool::call(program, arguments);
        match tool::run(program, arguments, input).await? {
            Some(output) if output.status.success() => Ok(output.stdout),
            Some(output) => Err(FirewallError { call: call(), reason: tool::complaint(&output) }),
            None => Err(missing(program)),
        }
    }
}

/// There is no such program.
pub(super) fn missing(program: &str) -> FirewallError {
    FirewallError {
        call: program.to_owned(),
        reason: format!("there is no program {program}; install the package iptables"),
    }
}

/// Whether `--version` is one that has `--random-fully`: 1.6.2 and later.
fn knows_random(version: &str) -> bool {
    let number = version.split_whitespace().find_map(|word| word.strip_prefix('v'));
    let parts = number.unwrap_or_default().split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    parts.collect::<Vec<_>>() >= vec![1, 6, 2]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_source_ports_depend_on_the_version() {
        assert!(knows_random("iptables v1.8.9 (nf_tables)\n"));
        assert!(knows_random("iptables v1.6.2\n"));
        assert!(!knows_random("iptables v1.4.21\n"));
        assert!(!knows_random("iptables v1.6.1\n"));
        assert!(!knows_random(""));
    }
}
