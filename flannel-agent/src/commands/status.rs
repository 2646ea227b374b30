//! `flannel-agent status`.

mod packet_rules;

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use comfy_table::Table;
use comfy_table::presets;
use flannel_core::checksum::TunnelChecksum;
use flannel_core::status::{
    DatapathKind, DatapathStatus, DeviceStatus, LeaseStatus, NarrowPeer, Status, XdpStatus,
};
use flannel_core::text::{counted, lasting};
use nix::net::if_::if_nametoindex;
use schemars::JsonSchema;
use serde::Serialize;

use super::{NOT_RUNNING, ask, could_not_ask, kept, print, print_json, show};
use crate::backend::udp;
use crate::cli::ReaderArgs;
use crate::control::Request;
use crate::files::state::{self, Loaded, NodeState};

/// Peers by narrow routes that are listed at most.
const NARROW: usize = 20;

/// What `status --json` prints where no agent runs.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct NotRunning {
    /// Always false.
    running: bool,
    /// What the last one wrote down; `null` if there was none.
    state_file: Option<NodeState>,
}

/// Prints the agent's status; what the state file says if no agent runs.
pub fn run(args: &ReaderArgs) -> u8 {
    let (state_dir, as_json) = (args.state.dir.as_path(), args.json);
    match ask(state_dir, Request::Status) {
        Ok(Some(answer)) => show(&answer, as_json, table),
        Ok(None) => {
            let loaded = state::load(state_dir);
            if as_json {
                print_json(&NotRunning { running: false, state_file: loaded.state });
            } else {
                say_not_running(&loaded, state_dir);
            }
            NOT_RUNNING
        }
        Err(error) => could_not_ask(state_dir, &error),
    }
}

fn say_not_running(loaded: &Loaded, state_dir: &Path) {
    let Some(known) = &loaded.state else {
        let what = match &loaded.warning {
            Some(warning) => warning.clone(),
            None => format!("none has held a lease with --state-dir={}", state_dir.display()),
        };
        return print(&format!("the agent is not running; {what}"));
    };
    let device = known.device.as_deref();
    let meanwhile = match device {
        Some(name) if if_nametoindex(name).is_err() => format!(", and {name} is not there"),
        Some(udp::DEVICE) => "; the udp backend forwards nothing meanwhile".to_owned(),
        _ => "; what it set up goes on forwarding".to_owned(),
    };
    print(&format!("the agent is not running{meanwhile}"));
    let device = device.map(|name| format!(", device {name} ({})", known.vtep_mac));
    print(&format!(
        "last lease {} of {}{}",
        known.subnet,
        known.public_ip,
        device.unwrap_or_default()
    ));
}

fn table(status: &Status) -> String {
    let mut text = rows(status);
    let counted = status.outcomes.iter().filter(|(_, count)| **count != 0);
    let counted = counted.map(|(name, count)| format!("{name:<24}{count:>14}"));
    section(&mut text, "packets by outcome", &counted.collect::<Vec<_>>());
    if let Some(rules) = &status.packet_rules {
        text.push_str(&packet_rules::list(rules));
    }
    section(&mut text, "left to the kernel", &kept::lines(&status.datapath.envelope));
    section(&mut text, "peers by narrow routes", &narrow(&status.narrow_peers));
    let not_well = status.health.iter().map(|line| {
        let since = lasting(Duration::from_secs(line.since_seconds));
        format!("{}: {} (for {since})", line.what, line.reason)
    });
    section(&mut text, "not well", &not_well.collect::<Vec<_>>());
    section(&mut text, "left out", &status.ignored);
    text
}

/// A line for each of the first peers to which not all packets are fast.
fn narrow(peers: &[NarrowPeer]) -> Vec<String> {
    let line = |peer: &NarrowPeer| match peer.largest {
        0 => format!("{}: the kernel sends all", peer.subnet),
        largest => {
            format!("{}: packets of more than {largest} bytes are the kernel's", peer.subnet)
        }
    };
    let mut lines: Vec<String> = peers.iter().take(NARROW).map(line).collect();
    let more = peers.len().saturating_sub(NARROW);
    if more > 0 {
        lines.push(format!("{}; status --json has them all", counted(more, "more peer")));
    }
    lines
}

/// Adds lines below a title, if there are any.
fn section(text: &mut String, title: &str, lines: &[String]) {
    if !lines.is_empty() {
        let _ = write!(text, "\n\n{title}");
    }
    for line in lines {
        let _ = write!(text, "\n  {line}");
    }
}

fn rows(status: &Status) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    let mut row = |name: &str, text: String| {
        table.add_row([name.to_owned(), text]);
    };
    row("agent", format!("{}, pid {}", status.version, status.pid));
    row(
        "backend",
        status.backend.map_or("not known yet".to_owned(), |backend| backend.to_string()),
    );
    row("data path", datapath(&status.datapath));
    if status.datapath.mode == Some(DatapathKind::Ebpf) {
        row("XDP", xdp(&status.datapath.xdp));
    }
    if let Some(firewall) = &status.firewall {
        row("firewall", firewall.clone());
    }
    if let Some(rules) = &status.packet_rules {
        row("packet rules", packet_rules::summary(rules));
    }
    row("lease", status.lease.as_ref().map_or("none yet".to_owned(), lease));
    if let Some(flows) = status.datapath.flows {
        let new = flows.new_per_window.map(|new| format!(", {new} new in a window"));
        row("flow table", format!("{} entries{}", flows.size, new.unwrap_or_default()));
    }
    if let Some(told) = &status.device {
        row("device", device(told));
    }
    let detail = || status.store.detail.clone().unwrap_or("-".to_owned());
    row("store", if status.store.connected { "connected".to_owned() } else { detail() });
    if let Some(api) = &status.store.api {
        row("etcd API", api.clone());
    }
    row("peers", status.peers.to_string());
    table.trim_fmt()
}

fn lease(lease: &LeaseStatus) -> String {
    let left = match lease.expires_in_seconds {
        Some(seconds) => format!("{} left", lasting(Duration::from_secs(seconds))),
        None => "reserved".to_owned(),
    };
    format!("{} at {}, {left}", lease.subnet, lease.public_ip)
}

fn device(device: &DeviceStatus) -> String {
    let mac = device.mac.map(|mac| format!(", MAC {mac}")).unwrap_or_default();
    let kernels = device.checksum == Some(TunnelChecksum::Kernel);
    let checksums = if kernels { ", checksums by the kernel" } else { "" };
    format!("{}{mac}, MTU {}{checksums}", device.name, device.mtu)
}

fn datapath(datapath: &DatapathStatus) -> String {
    let mut text = datapath.mode.map_or("not chosen yet", DatapathKind::text).to_owned();
    if let Some(attach) = datapath.attach {
        let _ = write!(text, ", {attach}");
    }
    if datapath.mode == Some(DatapathKind::Ebpf) && !datapath.tcp {
        text.push_str(", UDP only");
    }
    if let Some(reason) = &datapath.reason {
        let _ = write!(text, " ({reason})");
    }
    text
}

fn xdp(xdp: &XdpStatus) -> String {
    match &xdp.reason {
        Some(reason) => format!("{} ({reason})", xdp.mode),
        None => xdp.mode.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use flannel_core::backend::BackendKind;
    use flannel_core::envelope::{EnvelopeReport, Kept, KeptWay, Obstacle, Reason};
    use flannel_core::health::{Line, Subject};
    use flannel_core::status::{StoreStatus, XdpPlace};

    use super::*;
    use crate::cli::StateDir;

    fn busy() -> Status {
        let why = vec![Reason { device: String::new(), what: Obstacle::MarkRule }];
        let kept = vec![Kept { way: KeptWay::MarkedRoutes, why }];
        Status {
            version: "0.1.0".to_owned(),
            pid: 7,
            backend: Some(BackendKind::Vxlan),
            datapath: DatapathStatus {
                mode: Some(DatapathKind::Kernel),
                reason: Some("CAP_BPF is missing".to_owned()),
                envelope: EnvelopeReport { kept, ..EnvelopeReport::default() },
                ..DatapathStatus::default()
            },
            lease: Some(LeaseStatus {
                subnet: "10.5.1.0/24".parse().unwrap(),
                public_ip: "192.0.2.1".parse().unwrap(),
                expires_in_seconds: Some(86_000),
            }),
            device: Some(DeviceStatus {
                name: "flannel.1".to_owned(),
                mac: Some("72:35:2e:f2:e7:c9".parse().unwrap()),
                mtu: 1450,
                checksum: Some(TunnelChecksum::Kernel),
            }),
            store: StoreStatus {
                detail: Some("connection refused".to_owned()),
                ..StoreStatus::default()
            },
            peers: 2,
            outcomes: BTreeMap::from([("fast_encap".to_owned(), 5), ("fast_decap".to_owned(), 0)]),
            health: vec![Line {
                subject: Subject::Store,
                what: "store".to_owned(),
                reason: "connection refused".to_owned(),
                since_seconds: 3,
            }],
            ignored: vec!["lease 10.9.1.0-24 is not used".to_owned()],
            ..Status::default()
        }
    }

    #[test]
    fn the_table_says_what_counts() {
        let text = table(&busy());
        for part in [
            "kernel (CAP_BPF is missing)",
            "10.5.1.0/24 at 192.0.2.1, 23 h 53 min left\n",
            "flannel.1, MAC 72:35:2e:f2:e7:c9, MTU 1450",
            "fast_encap",
            "left to the kernel\n  packets with a firewall mark: an ip rule looks at",
            "store: connection refused (for 3 s)",
            "lease 10.9.1.0-24 is not used",
        ] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
        assert!(!text.contains("fast_decap"), "zero counts are left out");
    }

    #[test]
    fn peers_by_narrow_routes_are_listed_as_far_as_they_are_few() {
        let peer = |number: u8, largest| NarrowPeer {
            subnet: format!("10.5.{number}.0/24").parse().unwrap(),
            largest,
        };
        let text = |narrow_peers| table(&Status { narrow_peers, ..Status::default() });
        let some = text(vec![peer(7, 1300), peer(8, 0)]);
        let lines = "peers by narrow routes\n  10.5.7.0/24: packets of more than 1300 bytes are the \
                     kernel's\n  10.5.8.0/24: the kernel sends all";
        assert!(some.ends_with(lines), "{some}");
        let many = text((0..=20).map(|number| peer(number, 1300)).collect());
        assert!(many.ends_with("\n  1 more peer; status --json has them all"), "{many}");
        assert!(!text(vec![]).contains("narrow"));
    }

    #[test]
    fn the_table_says_whether_xdp_runs() {
        let text = |mode, reason: Option<&str>| {
            let mut status = Status::default();
            status.datapath.mode = Some(DatapathKind::Ebpf);
            status.datapath.xdp = XdpStatus { mode, reason: reason.map(str::to_owned) };
            table(&status)
        };
        assert!(text(XdpPlace::Native, None).contains("native"));
        let off = text(XdpPlace::Off, Some("eth0 is a veth"));
        assert!(off.contains("off (eth0 is a veth)"), "{off}");
    }

    #[test]
    fn without_an_agent_it_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir { dir: folder.path().to_owned() };
        let args = ReaderArgs { json: true, state };
        assert_eq!(run(&args), NOT_RUNNING);
        let said = NotRunning { running: false, state_file: None };
        assert_eq!(serde_json::to_string(&said).unwrap(), r#"{"running":false,"state_file":null}"#);
    }
}
