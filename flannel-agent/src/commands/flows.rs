//! `flannel-agent flows`.

use std::collections::BTreeMap;
use std::net::SocketAddrV4;
use std::time::Duration;

use comfy_table::{Table, presets};
use flannel_core::flows::{self, FlowFilter};
use flannel_core::status::{FlowDirection, FlowPath, FlowProto, FlowStatus, NotFast};

use super::{ask, complain, print, print_json};
use crate::bpf::{BpfError, PinnedFlows};
use crate::cli::FlowsArgs;
use crate::control::Request;

/// Between two looks at the table.
const PAUSE: Duration = Duration::from_secs(1);

/// Prints the flows that the programs know, from their pinned maps.
pub fn run(args: &FlowsArgs) -> u8 {
    if matches!(ask(&args.reader.state.dir, Request::Status), Ok(None)) {
        complain("the agent is not running");
    }
    let told = PinnedFlows::open(&args.pins.dir).and_then(|pinned| tell(&pinned, args));
    match told {
        Ok(()) => 0,
        Err(error) => {
            complain(&error.to_string());
            1
        }
    }
}

fn tell(pinned: &PinnedFlows, args: &FlowsArgs) -> Result<(), BpfError> {
    let filter = args.filter();
    let first = read(pinned, &filter)?;
    if !args.follow {
        if args.reader.json {
            print_json(&first);
        } else {
            print(&table(&first));
        }
        return Ok(());
    }
    let mut known = Known::default();
    let mut next = first;
    loop {
        for flow in known.news(next) {
            if args.reader.json {
                print_json(&flow);
            } else {
                print(&line(&flow));
            }
        }
        std::thread::sleep(PAUSE);
        next = read(pinned, &filter)?;
    }
}

/// The wanted flows, in the order of their addresses.
pub(super) fn read(pinned: &PinnedFlows, filter: &FlowFilter) -> Result<Vec<FlowStatus>, BpfError> {
    let view = pinned.view()?;
    let entries = pinned.entries()?;
    let all = entries.iter().filter_map(|(key, flow)| flows::describe(key, flow, &view));
    let mut wanted: Vec<FlowStatus> = all.filter(|flow| filter.takes(flow)).collect();
    wanted.sort_by_key(id);
    Ok(wanted)
}

type Id = (FlowProto, SocketAddrV4, SocketAddrV4, FlowDirection);

fn id(flow: &FlowStatus) -> Id {
    (flow.proto, flow.source, flow.destination, flow.direction)
}

/// What was told of the flows that are in the table.
#[derive(Default)]
struct Known(BTreeMap<Id, (FlowPath, Option<NotFast>)>);

impl Known {
    /// Those that are new, or go another way than before.
    fn news(&mut self, now: Vec<FlowStatus>) -> Vec<FlowStatus> {
        let before = std::mem::take(&mut self.0);
        self.0 = now.iter().map(|flow| (id(flow), (flow.path, flow.why))).collect();
        now.into_iter()
            .filter(|flow| before.get(&id(flow)) != Some(&(flow.path, flow.why)))
            .collect()
    }
}

const COLUMNS: [&str; 8] =
    ["PROTO", "DIRECTION", "SOURCE", "DESTINATION", "TRANSLATED", "PEER", "CONFIRMED", "PATH"];

fn cells(flow: &FlowStatus) -> [String; 8] {
    let dash = || "-".to_owned();
    [
        flow.proto.to_string(),
        flow.direction.to_string(),
        flow.source.to_string(),
        flow.destination.to_string(),
        flow.translated
            .as_ref()
            .map_or_else(dash, |ends| format!("{} > {}", ends.source, ends.destination)),
        flow.peer.map_or_else(dash, |peer| peer.to_string()),
        flow.confirmed_ms_ago.map_or_else(dash, |age| format!("{:.1} s ago", age as f64 / 1000.0)),
        match flow.why {
            Some(why) => format!("{}: {why}", flow.path),
            None => flow.path.to_string(),
        },
    ]
}

fn table(flows: &[FlowStatus]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(COLUMNS);
    for flow in flows {
        table.add_row(cells(flow));
    }
    table.trim_fmt()
}

fn line(flow: &FlowStatus) -> String {
    cells(flow).join("  ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(port: u16, why: Option<NotFast>) -> FlowStatus {
        FlowStatus {
            direction: FlowDirection::Out,
            proto: FlowProto::Udp,
            source: SocketAddrV4::new([10, 5, 1, 2].into(), port),
            destination: "10.5.2.2:53".parse().unwrap(),
            translated: None,
            peer: Some("10.5.2.0/24".parse().unwrap()),
            peer_ip: None,
            device: 4,
            path: if why.is_some() { FlowPath::Kernel } else { FlowPath::Fast },
            why,
            confirmed_ms_ago: Some(1_250),
        }
    }

    #[test]
    fn what_goes_another_way_is_news() {
        let mut known = Known::default();
        assert_eq!(known.news(vec![flow(1, None), flow(2, None)]).len(), 2);
        assert_eq!(known.news(vec![flow(1, None), flow(2, None)]), []);
        let changed = flow(2, Some(NotFast::Expired));
        assert_eq!(known.news(vec![flow(1, None), changed.clone()]), [changed]);
        assert_eq!(known.news(Vec::new()), []);
        assert_eq!(known.news(vec![flow(1, None)]).len(), 1, "it came again");
    }

    #[test]
    fn the_table_says_why() {
        let text = table(&[flow(7, Some(NotFast::Exempt))]);
        for part in ["10.5.1.2:7", "10.5.2.0/24", "1.2 s ago", "kernel: a rule of the node"] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }
}
