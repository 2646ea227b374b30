//! `flannel-agent keep-rules`: puts our firewall rules back while no agent runs.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use crate::control;
use crate::files::rules::{self, Wanted};
use crate::firewall::chosen::Later;
use crate::kernel::KernelEvent;
use crate::kernel::events;

/// How often it is looked whether it is still wanted.
const LOOK: Duration = Duration::from_secs(5);
/// How often the rules are compared: nobody tells of legacy iptables.
const RESYNC: Duration = Duration::from_secs(60);
/// Changes that follow each other are answered once.
const SETTLE: Duration = Duration::from_millis(100);

/// Keeps the rules that the agent of this state directory has left, until an agent or
/// flanneld runs, or no rules are wanted any more.
pub async fn run(state_dir: &Path) -> u8 {
    let mut changes = match events::rule_sets() {
        Ok(changes) => Some(changes),
        Err(error) => {
            tracing::info!(%error, "kernel events unavailable; rules are compared every minute");
            None
        }
    };
    let mut kept: Option<(Wanted, Later)> = None;
    let mut compared: Option<Instant> = None;
    loop {
        let wanted = match still_wanted(state_dir) {
            Ok(wanted) => wanted,
            Err(why) => {
                tracing::info!(%why, "rule keeper ends");
                return 0;
            }
        };
        if kept.as_ref().is_none_or(|(before, _)| *before != wanted) {
            let firewall = Later::new(wanted.firewall, Vec::new());
            kept = Some((wanted, firewall));
            compared = None;
        }
        if let Some((wanted, firewall)) = &kept
            && compared.is_none_or(|compared| compared.elapsed() >= RESYNC)
        {
            compared = Some(Instant::now());
            if let Err(error) = firewall.put(&wanted.rules).await {
                tracing::error!(%error, "firewall rules not written");
            }
        }
        if changed(&mut changes).await {
            compared = None;
        }
    }
}

/// What the agent has left, or why nothing of it is to be kept here.
fn still_wanted(state_dir: &Path) -> Result<Wanted, String> {
    if control::is_served(state_dir) {
        return Err("an agent runs, which keeps its rules itself".to_owned());
    }
    if flanneld_runs() {
        return Err("flanneld runs, which has rules of its own".to_owned());
    }
    match rules::load(state_dir) {
        Ok(Some(wanted)) => Ok(wanted),
        Ok(None) => Err(format!("no agent has left rules in {}", state_dir.display())),
        Err(error) => Err(format!("{}: {error}", rules::path(state_dir).display())),
    }
}

/// Our own daemon of that name has been asked before.
fn flanneld_runs() -> bool {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter_map(|process| fs::read_to_string(process.path().join("comm")).ok())
        .any(|name| name.trim_end() == "flanneld")
}

/// Waits for a while, or until rule sets have changed, which it tells.
async fn changed(changes: &mut Option<mpsc::Receiver<KernelEvent>>) -> bool {
    let heard = async {
        match changes {
            Some(changes) => changes.recv().await,
            None => std::future::pending().await,
        }
    };
    match tokio::time::timeout(LOOK, heard).await {
        Err(_) => false,
        Ok(None) => {
            *changes = None;
            true
        }
        Ok(Some(_)) => {
            tokio::time::sleep(SETTLE).await;
            while changes.as_mut().is_some_and(|changes| changes.try_recv().is_ok()) {}
            true
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::{Shared, SharedDatapath};

    #[tokio::test]
    async fn it_ends_where_it_is_not_wanted() {
        let folder = tempfile::tempdir().unwrap();
        let why = still_wanted(folder.path()).unwrap_err();
        assert!(why.contains("no agent has left rules"), "{why}");
        control::serve(folder.path(), Shared::default(), SharedDatapath::default()).unwrap();
        let why = still_wanted(folder.path()).unwrap_err();
        assert!(why.contains("an agent runs"), "{why}");
    }
}
