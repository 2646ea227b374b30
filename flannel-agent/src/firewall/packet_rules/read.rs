//! Runs the tools that list a node's rules, and finds the ones that matter.

use std::collections::BTreeSet;
use std::process::Output;
use std::time::{Duration, Instant};

use flannel_core::firewall::packet_rules::iptables;
use flannel_core::firewall::packet_rules::matches::Names;
use flannel_core::firewall::packet_rules::nft::{Devices, Listing};
use flannel_core::firewall::packet_rules::ruleset::{Family, RuleSet};
use flannel_core::firewall::packet_rules::walk::{self, EgressChain, Findings, Overlay};

use crate::firewall::{FirewallError, legacy, tool};
use crate::kernel::KernelError;
use crate::kernel::nftables::{self, BaseChain};

/// A listing of tens of thousands of rules takes seconds on a busy node.
const LIMIT: Duration = Duration::from_secs(30);

/// Tables of iptables but for `nat`, which sees the first packet of a connection
/// only.
const TABLES: [&str; 4] = ["raw", "mangle", "filter", "security"];

/// Reads the rules of the calling thread's network namespace.
#[derive(Debug)]
pub struct Reader {
    overlay: Overlay,
    /// The number of nftables' rule set, and what was found in it.
    nft: Option<(u32, Findings)>,
    /// The old tables, as last seen.
    legacy: Vec<String>,
    tables: legacy::Tables,
    /// When they were read last.
    read: Option<Instant>,
    /// They are read so often: nothing ever tells that their rules changed.
    every: Duration,
    /// What was found in them.
    in_legacy: Findings,
}

impl Reader {
    /// Reads for this overlay. Decisions are repeated for `window` at most.
    pub fn new(overlay: Overlay, window: Duration) -> Self {
        Self {
            overlay,
            nft: None,
            legacy: Vec::new(),
            tables: legacy::Tables::default(),
            read: None,
            // A look, and what follows, takes its time.
            every: window / 2,
            in_legacy: Findings::default(),
        }
    }

    /// Whether the old tables are others than at the last look, or have to be read again.
    pub fn has_to_look(&mut self) -> bool {
        let due =
            !self.legacy.is_empty() && self.read.is_none_or(|read| read.elapsed() >= self.every);
        due || self.tables.names() != self.legacy
    }

    /// What matters of the node's rules; `None` if nothing tells that they changed.
    /// Nothing ever tells that of the old tables' rules: they are read `thoroughly`,
    /// and when other tables are there.
    ///
    /// # Errors
    /// They cannot be read.
    pub async fn look(&mut self, thoroughly: bool) -> Result<Option<Findings>, FirewallError> {
        let first = self.nft.is_none();
        let number = nftables::generation().map_err(failed)?.unwrap_or(0);
        let changed = self.nft.as_ref().is_none_or(|(known, _)| *known != number);
        if changed {
            self.nft = Some((number, of_nftables(self.overlay).await?));
        }
        let tables = self.tables.names();
        let anew = tables != self.legacy || (thoroughly && !tables.is_empty()) || first;
        if anew {
            self.read = Some(Instant::now());
            let found = of_legacy(&tables, self.overlay).await;
            // Not as if they had been read.
            self.legacy = if found.is_ok() { tables } else { Vec::new() };
            self.in_legacy = found?;
        }
        let in_nft = self.nft.as_ref().map(|(_, found)| found.clone()).unwrap_or_default();
        Ok((changed || anew).then(|| in_nft.join(self.in_legacy.clone())))
    }
}

fn failed(error: KernelError) -> FirewallError {
    FirewallError { call: error.call.to_owned(), reason: error.to_string() }
}

/// The tables with chains that judge more than the first packet of a connection.
fn tables_of(chains: &[BaseChain]) -> BTreeSet<(Family, String)> {
    let judging = chains.iter().filter(|chain| chain.kind != "nat");
    judging.filter_map(|chain| Some((Family::named(chain.family)?, chain.table.clone()))).collect()
}

fn egress_of(chains: &[BaseChain]) -> Vec<EgressChain> {
    let chains = chains.iter().filter(|chain| chain.egress);
    chains
        .map(|chain| EgressChain {
            chain: format!("{}/{}", chain.table, chain.name),
            devices: Names::of(chain.devices.iter().cloned()),
        })
        .collect()
}

/// All rules of the calling thread's network namespace: those of nftables, and those
/// of legacy iptables. A packet has to pass both.
///
/// # Errors
/// They cannot be read.
pub async fn rule_sets() -> Result<[RuleSet; 2], FirewallError> {
    let chains = nftables::base_chains().map_err(failed)?;
    let (rules, opaque) = list(chains).await?;
    let unclear: Vec<&str> = TABLES
        .into_iter()
        .filter(|table| opaque.contains(&(Family::Ip, (*table).to_owned())))
        .collect();
    let rules = match unclear.is_empty() {
        true => rules,
        false => ask_iptables(rules, &unclear).await?,
    };
    Ok([rules, legacy_rules(&legacy::tables()).await?])
}

async fn of_nftables(overlay: Overlay) -> Result<Findings, FirewallError> {
    let chains = nftables::base_chains().map_err(failed)?;
    let egress = egress_of(&chains);
    let (rules, opaque) = list(chains).await?;
    let (found, rules) = follow(rules, overlay).await?;
    let unclear: Vec<&str> =
        TABLES.into_iter().filter(|table| is_unclear(&found, &opaque, table)).collect();
    let found = match unclear.as_slice() {
        [] => found,
        unclear => follow(ask_iptables(rules, unclear).await?, overlay).await?.0,
    };
    Ok(Findings { egress, ..found })
}

/// The tables of which nft shows names of iptables' matches only.
type Opaque = BTreeSet<(Family, String)>;

/// What nft lists of the tables of these chains.
async fn list(chains: Vec<BaseChain>) -> Result<(RuleSet, Opaque), FirewallError> {
    let tables = tables_of(&chains);
    let devices: Devices = chains
        .into_iter()
        .filter(|chain| !chain.devices.is_empty())
        .filter_map(|chain| {
            Some(((Family::named(chain.family)?, chain.table, chain.name), chain.devices))
        })
        .collect();
    let mut listing = Listing::new(devices);
    for (family, table) in &tables {
        let arguments = ["-j", "list", "table", family.name(), table];
        let Some(json) = output("nft", &arguments).await? else { continue };
        listing = aside(move || listing.add(&json).map(|()| listing)).await?.map_err(|error| {
            FirewallError {
                call: tool::call("nft", &arguments),
                reason: format!("its JSON is not understood: {error}"),
            }
        })?;
    }
    Ok(listing.finish())
}

/// Whether something was found in a table of which nft shows names only, so that
/// iptables may tell that there is less to it.
fn is_unclear(found: &Findings, opaque: &Opaque, table: &str) -> bool {
    let judging = found.rules.iter().filter(|rule| rule.reach.is_some());
    opaque.contains(&(Family::Ip, table.to_owned()))
        && judging.chain(&found.outer).any(|rule| {
            let place = rule.place.as_ref();
            place.is_some_and(|(family, of, _)| *family == Family::Ip && **of == *table)
        })
}

/// Takes what iptables says of these tables instead. Where it cannot, what nft
/// says stays: that is more than need be.
async fn ask_iptables(mut rules: RuleSet, tables: &[&str]) -> Result<RuleSet, FirewallError> {
    let Some(program) = saving(false).await? else { return Ok(rules) };
    for table in tables {
        match output(&program, &["-t", table]).await {
            Ok(Some(text)) => {
                let saved = iptables::read(&String::from_utf8_lossy(&text));
                // "Table `filter' is incompatible, use 'nft' tool."
                if saved.chains.iter().any(|chain| *chain.table == **table) {
                    rules.replace_table(Family::Ip, table, saved);
                }
            }
            Ok(None) => {}
            Err(error) => {
                tracing::debug!(%error, table, "iptables-nft-save failed; nft's listing is used")
            }
        }
    }
    Ok(rules)
}

async fn of_legacy(tables: &[String], overlay: Overlay) -> Result<Findings, FirewallError> {
    follow(legacy_rules(tables).await?, overlay).await.map(|(found, _)| found)
}

async fn legacy_rules(tables: &[String]) -> Result<RuleSet, FirewallError> {
    let wanted: Vec<&str> =
        TABLES.into_iter().filter(|table| tables.iter().any(|there| there == table)).collect();
    if wanted.is_empty() {
        return Ok(RuleSet::default());
    }
    let program = saving(true).await?.ok_or_else(|| FirewallError {
        call: "iptables-legacy-save".to_owned(),
        reason: "the node has tables of legacy iptables, and no program to list them".to_owned(),
    })?;
    let mut rules = RuleSet::default();
    for table in wanted {
        if let Some(text) = output(&program, &["-t", table]).await? {
            let saved = iptables::read(&String::from_utf8_lossy(&text));
            rules.replace_table(Family::Ip, table, saved);
        }
    }
    Ok(rules)
}

/// The program that lists rules of legacy iptables, or of iptables on nftables.
async fn saving(legacy: bool) -> Result<Option<String>, FirewallError> {
    let own = if legacy { "iptables-legacy-save" } else { "iptables-nft-save" };
    if tool::run(own, &["--version"], "").await?.is_some() {
        return Ok(Some(own.to_owned()));
    }
    let plain = tool::run("iptables-save", &["--version"], "").await?.is_some()
        && legacy::is_legacy("iptables").await? == legacy;
    Ok(plain.then(|| "iptables-save".to_owned()))
}

/// What a program prints; `None` if what it was asked about has gone.
async fn output(program: &str, arguments: &[&str]) -> Result<Option<Vec<u8>>, FirewallError> {
    let failed = |reason| FirewallError { call: tool::call(program, arguments), reason };
    match tool::run_within(LIMIT, program, arguments, "").await? {
        Some(Output { status, stdout, .. }) if status.success() => Ok(Some(stdout)),
        Some(output) => match tool::complaint(&output) {
            reason if reason.contains("No such file or directory") => Ok(None),
            reason => Err(failed(reason)),
        },
        None => Err(failed(format!("there is no program {program}"))),
    }
}

/// Follows the rules where nobody waits for it.
async fn follow(rules: RuleSet, overlay: Overlay) -> Result<(Findings, RuleSet), FirewallError> {
    aside(move || (walk::findings(&rules, overlay), rules)).await
}

async fn aside<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, FirewallError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| FirewallError {
        call: "read the rules".to_owned(),
        reason: error.to_string(),
    })
}
