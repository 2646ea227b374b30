//! `flannel-agent peers`.

use std::path::Path;

use comfy_table::Table;
use comfy_table::presets;
use serde_json::Value;

use super::{NOT_RUNNING, ask, could_not_ask, plain, print};

const COLUMNS: [(&str, &str); 9] = [
    ("SUBNET", "subnet"),
    ("PUBLIC IP", "public_ip"),
    ("VTEP MAC", "vtep_mac"),
    ("PATH", "path"),
    ("TX FAST", "tx_fast_packets"),
    ("TX KERNEL", "tx_kernel_packets"),
    ("RX FAST", "rx_fast_packets"),
    ("RX KERNEL", "rx_kernel_packets"),
    ("STATE", "state"),
];

/// Prints the peers of the running agent, with packets by path.
pub fn run(state_dir: &Path, as_json: bool) -> u8 {
    match ask(state_dir, "peers") {
        Ok(Some(peers)) => {
            print(&if as_json { peers.to_string() } else { table(&peers) });
            0
        }
        Ok(None) => {
            print(if as_json { "[]" } else { "the agent is not running" });
            NOT_RUNNING
        }
        Err(error) => could_not_ask(state_dir, &error),
    }
}

fn table(peers: &Value) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(COLUMNS.map(|(title, _)| title));
    for peer in peers.as_array().into_iter().flatten() {
        table.add_row(COLUMNS.map(|(_, field)| plain(&peer[field])));
    }
    table.to_string()
}
