//! `flannel-agent peers`.

use std::path::Path;

use comfy_table::Table;
use comfy_table::presets;
use serde_json::Value;

use super::{NOT_RUNNING, ask, could_not_ask, plain, print};

type Column = (&'static str, &'static str);

const WHO: [Column; 4] =
    [("SUBNET", "subnet"), ("PUBLIC IP", "public_ip"), ("VTEP MAC", "vtep_mac"), ("PATH", "path")];
const BY_PATH: [Column; 4] = [
    ("TX FAST", "tx_fast_packets"),
    ("TX KERNEL", "tx_kernel_packets"),
    ("RX FAST", "rx_fast_packets"),
    ("RX KERNEL", "rx_kernel_packets"),
];
const OF_UDP: [Column; 2] = [("TX", "tx_udp_packets"), ("RX", "rx_udp_packets")];
const STATE: Column = ("STATE", "state");

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
    let peers = peers.as_array().map(Vec::as_slice).unwrap_or_default();
    let udp = peers.first().is_some_and(|peer| peer.get(OF_UDP[0].1).is_some());
    let counters: &[Column] = if udp { &OF_UDP } else { &BY_PATH };
    let columns: Vec<Column> = WHO.iter().chain(counters).copied().chain([STATE]).collect();
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(columns.iter().map(|(title, _)| *title));
    for peer in peers {
        table.add_row(columns.iter().map(|(_, field)| plain(&peer[*field])));
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_backend_decides_what_is_counted() {
        let udp = table(&json!([{"subnet": "10.2.1.0/24", "tx_udp_packets": 5, "state": "ok"}]));
        assert!(udp.contains("TX") && udp.contains('5') && !udp.contains("FAST"), "{udp}");
        let vxlan = table(&json!([{"subnet": "10.2.1.0/24", "tx_fast_packets": 5}]));
        assert!(vxlan.contains("TX FAST"), "{vxlan}");
        assert!(table(&json!([])).contains("SUBNET"));
    }
}
