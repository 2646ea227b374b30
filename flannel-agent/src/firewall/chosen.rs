//! [`Chosen`]: the firewall that `--firewall` or the node's other rules ask for,
//! and the end of rules that are elsewhere.

use flannel_core::firewall::Rules;
use flannel_core::firewall::names::Mine;
use flannel_core::firewall::upstream::Place;
use tokio::sync::{Mutex, OnceCell};

use super::iptables::{self, Iptables};
use super::nft::Nft;
use super::present::PresentTables;
use super::{Description, Firewall, FirewallError, Mode, legacy, tool};

#[derive(Debug)]
enum Kind {
    Nftables(Nft),
    Iptables(Iptables),
    None,
}

/// The firewall in use. Its first [`Chosen::ensure`] takes the rules of
/// flannel and of our other modes away, after its own are there.
#[derive(Debug)]
pub struct Chosen {
    kind: Kind,
    reason: String,
    /// What the node was before: old rules of flannel's and ours have these values.
    previous: Vec<Place>,
    /// The rules for which the others were removed.
    swept: Mutex<Option<Rules>>,
}

impl Chosen {
    /// Decides by the mode and, for [`Mode::Auto`], by what is on this node.
    ///
    /// # Errors
    /// A tool that was asked for is missing or does not run.
    pub async fn choose(mode: Mode, previous: Vec<Place>) -> Result<Self, FirewallError> {
        let (kind, reason) = match mode {
            Mode::Nftables => (Kind::Nftables(nft().await?), "--firewall".to_owned()),
            Mode::Iptables => {
                let found = Iptables::find("iptables").await?;
                let found = found.ok_or_else(|| iptables::missing("iptables"))?;
                (Kind::Iptables(found), "--firewall".to_owned())
            }
            Mode::None => (Kind::None, "--firewall".to_owned()),
            Mode::Auto => auto().await?,
        };
        Ok(Self { kind, reason, previous, swept: Mutex::default() })
    }

    /// Name of the firewall and why it is this one.
    pub fn describe(&self) -> (String, &str) {
        let name = match &self.kind {
            Kind::Nftables(_) => "nftables".to_owned(),
            Kind::Iptables(found) => found.describe(),
            Kind::None => "none".to_owned(),
        };
        (name, &self.reason)
    }

    fn nodes(&self, rules: &Rules) -> Vec<Place> {
        let now = Place { network: rules.network, subnet: rules.subnet };
        let before = self.previous.iter().copied().filter(|before| *before != now);
        std::iter::once(now).chain(before).collect()
    }

    fn mine(&self, rules: &Rules) -> Mine {
        self.nodes(rules).iter().map(|node| node.network).collect()
    }

    /// Removes what flannel and our other modes have left.
    async fn sweep(&self, rules: &Rules) -> Result<(), FirewallError> {
        let mut swept = self.swept.lock().await;
        if swept.as_ref() == Some(rules) {
            return Ok(());
        }
        let kept = match &self.kind {
            Kind::Iptables(found) => Some(found.is_legacy()),
            _ => None,
        };
        let mine = self.mine(rules);
        sweep_iptables(kept, &self.nodes(rules), &mine).await?;
        let nft = Nft::default();
        if matches!(self.kind, Kind::Iptables(_)) {
            nft.sweep(true, &mine).await?;
        } else {
            nft.sweep(false, &mine).await?;
        }
        *swept = Some(rules.clone());
        Ok(())
    }

    /// Removes once what an earlier run with rules has left.
    async fn withdraw(&self, rules: &Rules) -> Result<(), FirewallError> {
        let mut swept = self.swept.lock().await;
        if swept.is_none() {
            remove_all(&self.nodes(rules), &self.mine(rules)).await?;
            *swept = Some(rules.clone());
        }
        Ok(())
    }
}

/// A [`Chosen`] that is chosen when it is needed first: the programs that tell are
/// waited for beside everything else.
#[derive(Debug)]
pub struct Later {
    mode: Mode,
    previous: Vec<Place>,
    chosen: OnceCell<Chosen>,
}

impl Later {
    /// By this mode; `previous` is what the node was before.
    pub fn new(mode: Mode, previous: Vec<Place>) -> Self {
        Self { mode, previous, chosen: OnceCell::new() }
    }

    async fn chosen(&self) -> Result<&Chosen, FirewallError> {
        self.chosen.get_or_try_init(|| Chosen::choose(self.mode, self.previous.clone())).await
    }

    /// Makes our rules exactly these, and leaves alone what is elsewhere.
    ///
    /// # Errors
    /// A program that is needed is missing, or fails.
    pub async fn put(&self, rules: &Rules) -> Result<(), FirewallError> {
        self.chosen().await?.put(rules).await.map(drop)
    }
}

impl Firewall for Later {
    async fn choose(&self) -> Result<Description, FirewallError> {
        let (name, reason) = self.chosen().await?.describe();
        Ok(Description { name, reason: reason.to_owned() })
    }

    async fn ensure(&self, rules: &Rules) -> Result<bool, FirewallError> {
        self.chosen().await?.ensure(rules).await
    }
}

impl Chosen {
    /// Makes our rules exactly these, and takes away what is elsewhere. Whether it had to
    /// write.
    ///
    /// # Errors
    /// A program fails.
    pub async fn ensure(&self, rules: &Rules) -> Result<bool, FirewallError> {
        if matches!(self.kind, Kind::None) {
            return self.withdraw(rules).await.map(|()| false);
        }
        let written = self.put(rules).await?;
        self.sweep(rules).await?;
        Ok(written)
    }

    async fn put(&self, rules: &Rules) -> Result<bool, FirewallError> {
        match &self.kind {
            Kind::Nftables(nft) => nft.put(rules, &self.mine(rules)).await,
            Kind::Iptables(found) => {
                let written =
                    found.sync(Some(rules), &self.nodes(rules), &self.mine(rules)).await?;
                if written {
                    tracing::info!(
                        network = %rules.network,
                        subnet = %rules.subnet,
                        program = %found.describe(),
                        "firewall rules written"
                    );
                }
                Ok(written)
            }
            Kind::None => Ok(false),
        }
    }
}

/// Removes our rules of every mode from this node, and what flannel has left for
/// these nodes. Without nodes flannel's stay: it may use them already. Rules about
/// networks that are not `mine` stay in any case. Whether there were any.
///
/// # Errors
/// A tool that is there does not run. All are tried.
pub async fn remove_all(nodes: &[Place], mine: &Mine) -> Result<bool, FirewallError> {
    let nft = match nft().await {
        Ok(nft) => nft.withdraw(!nodes.is_empty(), mine).await,
        Err(_) => Ok(false),
    };
    let iptables = sweep_iptables(None, nodes, mine).await;
    Ok(nft? | iptables?)
}

/// Removes our rules and flannel's from both kinds of iptables but the kept one
/// (`Some(true)`: legacy). A kind without a program has no rules to be seen. Whether there
/// were any.
async fn sweep_iptables(
    kept: Option<bool>,
    nodes: &[Place],
    mine: &Mine,
) -> Result<bool, FirewallError> {
    let mut removed = false;
    let present = PresentTables::read();
    let rules_may_be = |legacy: bool| match legacy {
        true => legacy::has_tables(),
        false => ["nat", "filter"].iter().any(|table| present.may_have("ip", table)),
    };
    for legacy in [false, true] {
        if kept == Some(legacy) || !rules_may_be(legacy) {
            continue;
        }
        if let Some(found) = of_kind(legacy).await?
            && found.sync(None, nodes, mine).await?
        {
            tracing::info!(program = %found.describe(), "former firewall rules removed");
            removed = true;
        }
    }
    Ok(removed)
}

async fn of_kind(legacy: bool) -> Result<Option<Iptables>, FirewallError> {
    let own = if legacy { "iptables-legacy" } else { "iptables-nft" };
    for program in [own, "iptables"] {
        if let Some(found) = Iptables::find(program).await?
            && found.is_legacy() == legacy
        {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

async fn nft() -> Result<Nft, FirewallError> {
    let nft = Nft::default();
    nft.check().await.map(|()| nft)
}

async fn auto() -> Result<(Kind, String), FirewallError> {
    if legacy::has_tables()
        && let Some(found) = of_kind(true).await?
        && found.in_use().await?
    {
        return Ok((Kind::Iptables(found), "the node has rules of legacy iptables".to_owned()));
    }
    if tool::is_there("nft") {
        let reason = "the node has no rules of legacy iptables".to_owned();
        return Ok((Kind::Nftables(Nft::default()), reason));
    }
    let missing = Nft::default().missing();
    match Iptables::find("iptables").await? {
        Some(found) => Ok((Kind::Iptables(found), missing.to_string())),
        None => Err(missing),
    }
}
