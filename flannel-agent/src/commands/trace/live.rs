//! `trace --live`: what becomes of real packets.

use std::path::Path;
use std::time::Duration;

use flannel_core::check::facts::{Known, Unknown};
use flannel_core::monitor::net;
use flannel_core::trace::{ByHook, Counts};
use flannel_ebpf::monitor::{Filter, Rate, Settings, flag};
use ipnetwork::Ipv4Network;

use crate::bpf::monitor::{self, Monitor};
use crate::bpf::{BpfError, lookup};
use crate::cli::TraceArgs;

/// Packets that are counted in a second on each CPU, at most.
const RATE: u32 = 50_000;

/// What was seen.
pub(super) struct Live {
    /// By how much each counter of the node grew.
    pub(super) node: Known<Counts>,
    /// The packets between both addresses.
    pub(super) hooks: Known<Watched>,
}

/// Packets of the question and of its answer.
pub(super) struct Watched {
    pub(super) counts: ByHook,
    /// Those that were too many.
    pub(super) not_counted: u64,
}

/// Watches for this time.
pub(super) async fn watch(pin_dir: &Path, args: &TraceArgs, time: Duration) -> Live {
    let monitor = start(pin_dir, args).map_err(Unknown::because);
    let node = growth(pin_dir, time).await;
    let seen = |monitor: Monitor| -> Result<Watched, BpfError> {
        Ok(Watched { counts: monitor.counts()?, not_counted: monitor.missed()? })
    };
    Live { node, hooks: monitor.and_then(|monitor| seen(monitor).map_err(Unknown::because)) }
}

fn start(pin_dir: &Path, args: &TraceArgs) -> Result<Monitor, BpfError> {
    let host = |address| net(Ipv4Network::from(address));
    let destination = host(args.destination);
    let settings = Settings {
        filter: Filter {
            pod: host(args.source),
            peer: [destination; 2],
            port: args.port.unwrap_or(0).to_be_bytes(),
            proto: args.protocol.number(),
            reserved: 0,
        },
        rate: Rate::per_second(RATE),
        flags: flag::COUNT,
        port: monitor::config(pin_dir)?.port,
        ..Settings::default()
    };
    let mut monitor = Monitor::open(pin_dir, settings)?;
    monitor.attach()?;
    Ok(monitor)
}

/// By how much each counter of the programs grows in this time.
async fn growth(pin_dir: &Path, time: Duration) -> Known<Counts> {
    let before = lookup::outcomes(pin_dir);
    tokio::time::sleep(time).await;
    let (before, after) = (before?, lookup::outcomes(pin_dir)?);
    let grown = after.into_iter().map(|(name, count)| {
        let since = count.saturating_sub(before.get(name).copied().unwrap_or_default());
        (name.to_owned(), since)
    });
    Ok(grown.filter(|(_, count)| *count != 0).collect())
}
