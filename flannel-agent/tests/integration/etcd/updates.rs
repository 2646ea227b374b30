//! What a watch tells.

use std::collections::BTreeMap;
use std::time::Duration;

use flannel_core::lease::update::LeaseUpdate;
use tokio::sync::mpsc::Receiver;

pub(crate) type Updates = Receiver<LeaseUpdate>;

pub(crate) async fn next(updates: &mut Updates) -> LeaseUpdate {
    let update = tokio::time::timeout(Duration::from_secs(30), updates.recv()).await;
    update.expect("no update within 30 s").expect("the watch ended")
}

/// The next update, which must be a snapshot: PublicIP by subnet.
pub(crate) async fn next_snapshot(updates: &mut Updates) -> BTreeMap<String, String> {
    match next(updates).await {
        LeaseUpdate::Snapshot { leases, .. } => leases
            .into_iter()
            .map(|lease| (lease.subnet.to_string(), lease.attrs.public_ip.to_string()))
            .collect(),
        other => panic!("no snapshot: {other:?}"),
    }
}

pub(crate) async fn next_break(updates: &mut Updates) -> String {
    match next(updates).await {
        LeaseUpdate::Disconnected { reason } => reason,
        other => panic!("no break: {other:?}"),
    }
}

pub(crate) fn map(leases: &[(&str, &str)]) -> BTreeMap<String, String> {
    leases.iter().map(|(subnet, ip)| ((*subnet).to_owned(), (*ip).to_owned())).collect()
}
