//! [`Nft`]: the rules in nftables, through the `nft` program.

use std::sync::{Mutex, OnceLock, PoisonError};

use flannel_core::firewall::Rules;
use flannel_core::firewall::names::{Mine, Names};
use flannel_core::firewall::rules;
use flannel_core::firewall::rules::Found;

use super::present::PresentTables;
use super::{FirewallError, legacy, tool};
use crate::kernel::nftables;

/// nftables. Nothing is written when the rules are as they should be.
#[derive(Debug)]
pub struct Nft {
    program: String,
    beside: OnceLock<bool>,
    /// Networks of the rules that this process has written.
    written: Mutex<Mine>,
}

impl Default for Nft {
    fn default() -> Self {
        Self::with_program("nft")
    }
}

impl Nft {
    /// Uses this program instead of the `nft` in PATH.
    pub fn with_program(program: impl Into<String>) -> Self {
        Self { program: program.into(), beside: OnceLock::new(), written: Mutex::default() }
    }

    /// Whether the program is there and runs.
    pub(super) async fn check(&self) -> Result<(), FirewallError> {
        self.run(&["--version"], "").await.map(drop)
    }

    /// Removes flannel's table of IPv6, and where the rules are in iptables
    /// now, ours as well. Without nft there is nothing to be seen.
    pub(super) async fn sweep(&self, ours: bool, mine: &Mine) -> Result<(), FirewallError> {
        let present = PresentTables::read();
        if present.may_have("ip6", rules::TABLE_V6)
            && self.check().await.is_ok()
            && self.list(&["table", "ip6", rules::TABLE_V6]).await?.is_some()
        {
            self.commit(&format!("delete table ip6 {}\n", rules::TABLE_V6)).await?;
        }
        if ours && tool::is_there(&self.program) {
            self.withdraw(true, mine).await?;
        }
        Ok(())
    }

    /// Removes our rules, and those that flannel has in our table. Whether there were any.
    pub(super) async fn withdraw(
        &self,
        flannels_too: bool,
        mine: &Mine,
    ) -> Result<bool, FirewallError> {
        let mut removed = false;
        let beside = mine.networks().map(Names::beside);
        for names in std::iter::once(Names::flannels()).chain(beside) {
            let found = self.found(&names).await?;
            if let Some(script) = rules::removal(&found, flannels_too, &names, mine) {
                self.commit(&script).await?;
                tracing::info!(table = names.table, "firewall rules removed");
                removed = true;
            }
        }
        Ok(legacy::remove(mine).await? || removed)
    }

    /// Makes our rules exactly these. Our table is beside flannel's where that is
    /// another overlay network's, and stays there. Whether it had to write.
    pub(super) async fn put(&self, rules: &Rules, mine: &Mine) -> Result<bool, FirewallError> {
        let mine = &{
            let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
            written.add(mine.networks());
            written.clone()
        };
        let beside = Names::beside(rules.network);
        let mut names = Names::flannels();
        let mut found = self.found(&names).await?;
        if found.is_anothers(mine) || self.is_beside(&beside).await? {
            found = self.found(&beside).await?;
            names = beside;
        }
        let woken = self.wake(&names).await?;
        let script = rules::script(rules, &found, &names, mine);
        if let Some(script) = &script {
            self.commit(script).await?;
            tracing::info!(
                network = %rules.network,
                subnet = %rules.subnet,
                masquerade = rules.masquerade,
                table = names.table,
                "firewall rules written"
            );
        }
        Ok(legacy::ensure(rules, mine).await? || script.is_some() || woken)
    }

    /// Puts the table's chains on their hooks again, if somebody made it dormant: its
    /// rules are listed as before then, and no packet meets them. Whether it was so.
    async fn wake(&self, names: &Names) -> Result<bool, FirewallError> {
        let table = &names.table;
        if !PresentTables::read().is_dormant("ip", table) {
            return Ok(false);
        }
        self.commit(&format!("add table ip {table}\n")).await?;
        tracing::warn!(table, "firewall table made dormant by somebody; it works again");
        Ok(true)
    }

    /// Whether the table beside flannel's is there. Asked once: nobody but us
    /// makes it.
    async fn is_beside(&self, beside: &Names) -> Result<bool, FirewallError> {
        if let Some(known) = self.beside.get() {
            return Ok(*known);
        }
        let may_be = PresentTables::read().may_have("ip", &beside.table);
        let there = may_be && self.list(&["table", "ip", &beside.table]).await?.is_some();
        Ok(*self.beside.get_or_init(|| there))
    }

    async fn run(
        &self,
        arguments: &[&str],
        input: &str,
    ) -> Result<std::process::Output, FirewallError> {
        let output = tool::run(&self.program, arguments, input).await?;
        output.ok_or_else(|| self.missing())
    }

    /// There is no such program.
    pub(super) fn missing(&self) -> FirewallError {
        let reason = format!("there is no program {}; install the package nftables", self.program);
        FirewallError { call: self.program.clone(), reason }
    }

    /// A listing, or `None` if what is to be listed does not exist.
    async fn list(&self, what: &[&str]) -> Result<Option<String>, FirewallError> {
        let arguments = [&["-j", "list"], what].concat();
        let output = self.run(&arguments, "").await?;
        if output.status.success() {
            return Ok(Some(String::from_utf8_lossy(&output.stdout).into_owned()));
        }
        let reason = tool::complaint(&output);
        if reason.contains("No such file or directory") {
            return Ok(None);
        }
        Err(FirewallError { call: tool::call(&self.program, &arguments), reason })
    }

    async fn found(&self, names: &Names) -> Result<Found, FirewallError> {
        let present = PresentTables::read();
        let list = async |wanted: bool, what: &[&str]| match wanted {
            true => self.list(what).await,
            false => Ok(None),
        };
        let ours = ["table", "ip", &names.table];
        let (table, forward) = tokio::try_join!(
            list(present.may_have("ip", &names.table), &ours),
            list(present.may_have("ip", "filter"), &["chain", "ip", "filter", "FORWARD"]),
        )?;
        Found::parse(table.as_deref(), forward.as_deref()).map_err(|error| FirewallError {
            call: format!("{} -j list", self.program),
            reason: format!("its JSON is not understood: {error}"),
        })
    }

    async fn commit(&self, script: &str) -> Result<(), FirewallError> {
        let before = number();
        let output = self.run(&["-f", "-"], script).await?;
        let call = tool::call(&self.program, &["-f", "-"]);
        if output.status.success() {
            // Every script changes something.
            let in_vain = before.is_some() && number() == before;
            return if in_vain { Err(tool::in_vain(call)) } else { Ok(()) };
        }
        Err(FirewallError { call, reason: tool::complaint(&output) })
    }
}

/// The number of the rule set: each transaction makes it another. `None`: the kernel does
/// not tell.
fn number() -> Option<u32> {
    nftables::generation().ok().flatten()
}

impl Nft {
    /// Makes our rules exactly these, in one transaction; changes nothing when they
    /// are there already. Whether it had to write.
    ///
    /// # Errors
    /// The program fails.
    pub async fn ensure(&self, rules: &Rules) -> Result<bool, FirewallError> {
        self.put(rules, &[rules.network].into_iter().collect()).await
    }

    /// Removes all our rules; nothing else.
    ///
    /// # Errors
    /// The program fails.
    pub async fn remove(&self) -> Result<(), FirewallError> {
        self.withdraw(false, &Mine::default()).await.map(drop)
    }
}
