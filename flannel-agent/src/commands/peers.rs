//! `flannel-agent peers`.

use comfy_table::{CellAlignment, Table, presets};
use flannel_core::status::{Counters, PeerStatus};

use super::{NOT_RUNNING, ask, could_not_ask, print, show};
use crate::cli::ReaderArgs;
use crate::control::Request;

/// Prints the peers of the running agent, with packets by path.
pub fn run(args: &ReaderArgs) -> u8 {
    let (state_dir, as_json) = (args.state.dir.as_path(), args.json);
    match ask(state_dir, Request::Peers) {
        Ok(Some(answer)) => show(&answer, as_json, |peers: &Vec<PeerStatus>| table(peers)),
        Ok(None) => {
            print(if as_json { "[]" } else { "the agent is not running" });
            NOT_RUNNING
        }
        Err(error) => could_not_ask(state_dir, &error),
    }
}

fn table(peers: &[PeerStatus]) -> String {
    let mut table = Table::new();
    let counted: &[&str] = match peers.first().map(|peer| &peer.counters) {
        Some(Counters::Udp(_)) => &["TX", "RX"],
        Some(Counters::Programs(_) | Counters::Shared {}) | None => {
            &["TX FAST", "TX KERNEL", "RX FAST", "RX KERNEL"]
        }
    };
    let who = ["SUBNET", "PUBLIC IP", "VTEP MAC", "PATH"];
    let columns = who.iter().chain(counted).copied().chain(["STATE"]);
    table.load_style(presets::NOTHING).set_header(columns);
    for column in table.column_iter_mut().skip(who.len()).take(counted.len()) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    for peer in peers {
        let who = [
            peer.subnet.to_string(),
            peer.public_ip.to_string(),
            peer.vtep_mac.map_or("-".to_owned(), |mac| mac.to_string()),
            peer.path.to_string(),
        ];
        let counted = packets(&peer.counters).into_iter();
        let counted = counted.map(|packets| packets.map_or("-".to_owned(), |all| all.to_string()));
        table.add_row(who.into_iter().chain(counted).chain([peer.state.to_string()]));
    }
    table.trim_fmt()
}

/// In the order of the columns.
fn packets(counters: &Counters) -> Vec<Option<u64>> {
    match counters {
        Counters::Programs(all) => vec![
            Some(all.tx_fast_packets),
            Some(all.tx_kernel_packets),
            Some(all.rx_fast_packets),
            Some(all.rx_kernel_packets),
        ],
        Counters::Udp(all) => vec![Some(all.tx_udp_packets), Some(all.rx_udp_packets)],
        Counters::Shared {} => vec![None; 4],
    }
}

#[cfg(test)]
mod tests {
    use flannel_core::backend::BackendKind;
    use flannel_core::status::{PeerCounters, PeerPath, PeerState, UdpCounters};

    use super::*;

    fn peer(backend: BackendKind, counters: Counters) -> PeerStatus {
        PeerStatus {
            subnet: "10.2.1.0/24".parse().unwrap(),
            public_ip: "192.0.2.1".parse().unwrap(),
            vtep_mac: None,
            path: PeerPath::Backend(backend),
            state: PeerState::Ok,
            counters,
        }
    }

    #[test]
    fn the_backend_decides_what_is_counted() {
        let counters = UdpCounters { tx_udp_packets: 5, ..UdpCounters::default() };
        let udp = table(&[peer(BackendKind::Udp, Counters::Udp(counters))]);
        assert!(udp.contains("TX") && udp.contains('5') && !udp.contains("FAST"), "{udp}");
        let counters = PeerCounters { tx_fast_packets: 5, ..PeerCounters::default() };
        let vxlan = table(&[peer(BackendKind::Vxlan, Counters::Programs(counters))]);
        assert!(vxlan.contains("TX FAST"), "{vxlan}");
        let ends = |word: &str| {
            let line = vxlan.lines().find(|line| line.contains(word)).unwrap();
            line.find(word).unwrap() + word.len()
        };
        assert_eq!(ends("TX FAST"), ends(" 5"), "numbers end below their titles: {vxlan}");
        let shared = table(&[peer(BackendKind::Vxlan, Counters::Shared {})]);
        assert!(shared.contains("TX FAST"), "{shared}");
        assert_eq!(shared.lines().last().unwrap().matches(" - ").count(), 5, "{shared}");
        assert!(table(&[]).contains("SUBNET"));
    }
}
