//! What programs write that were built to log.

use std::time::Duration;

use aya::Ebpf;

/// Forwards what the programs log, if they were built to (feature `log`).
pub(super) fn forward(ebpf: &mut Ebpf) {
    if ebpf.map("AYA_LOGS").is_none() || tokio::runtime::Handle::try_current().is_err() {
        return;
    }
    match aya_log::EbpfLogger::init(ebpf) {
        Ok(mut logger) => {
            tokio::spawn(async move {
                let mut tick = tokio::time::interval(Duration::from_millis(100));
                loop {
                    tick.tick().await;
                    logger.flush();
                }
            });
        }
        Err(error) => tracing::warn!(%error, "programs' log unavailable"),
    }
}
