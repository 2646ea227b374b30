//! `flannel-agent status`.

mod packet_rules;

use std::fmt::Write as _;
use std::path::Path;

use comfy_table::Table;
use comfy_table::presets;
use serde_json::{Value, json};

use super::{NOT_RUNNING, ask, could_not_ask, kept, plain, print};
use crate::backend::udp;
use crate::files::state;

/// Prints the agent's status; what the state file says if no agent runs.
pub fn run(state_dir: &Path, as_json: bool) -> u8 {
    match ask(state_dir, "status") {
        Ok(Some(status)) => {
            print(&if as_json { status.to_string() } else { table(&status) });
            0
        }
        Ok(None) => {
            let known = state::load(state_dir).state;
            if as_json {
                print(&json!({ "running": false, "state_file": known }).to_string());
            } else {
                let udp = known
                    .as_ref()
                    .is_some_and(|known| known.device.as_deref() == Some(udp::DEVICE));
                print(match udp {
                    true => "the agent is not running; the udp backend forwards nothing meanwhile",
                    false => "the agent is not running; what it set up goes on forwarding",
                });
                if let Some(known) = known {
                    let device =
                        known.device.map(|name| format!(", device {name} ({})", known.vtep_mac));
                    print(&format!(
                        "last lease {} of {}{}",
                        known.subnet,
                        known.public_ip,
                        device.unwrap_or_default()
                    ));
                }
            }
            NOT_RUNNING
        }
        Err(error) => could_not_ask(state_dir, &error),
    }
}

fn table(status: &Value) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    let mut row = |name: &str, text: String| {
        table.add_row([name.to_owned(), text]);
    };
    row("agent", format!("{}, pid {}", plain(&status["version"]), status["pid"]));
    row("backend", plain(&status["backend"]));
    row("data path", datapath(&status["datapath"]));
    if status["datapath"]["mode"] == "ebpf" {
        row("XDP", xdp(&status["datapath"]["xdp"]));
    }
    if let Some(firewall) = status["firewall"].as_str() {
        row("firewall", firewall.to_owned());
    }
    if !status["packet_rules"].is_null() {
        row("packet rules", packet_rules::summary(&status["packet_rules"]));
    }
    let lease = &status["lease"];
    if lease.is_null() {
        row("lease", "none yet".to_owned());
    } else {
        let left = match lease["expires_in_seconds"].as_u64() {
            Some(seconds) => format!("{seconds} s left"),
            None => "reserved".to_owned(),
        };
        row(
            "lease",
            format!("{} at {}, {left}", plain(&lease["subnet"]), plain(&lease["public_ip"])),
        );
    }
    let flows = &status["datapath"]["flows"];
    if !flows.is_null() {
        let new = match flows["new_per_window"].as_u64() {
            Some(new) => format!(", {new} new in a window"),
            None => String::new(),
        };
        row("flow table", format!("{} entries{new}", flows["size"]));
    }
    let device = &status["device"];
    if !device.is_null() {
        row(
            "device",
            match device["mac"].as_str() {
                Some(mac) => {
                    format!("{}, MAC {mac}, MTU {}", plain(&device["name"]), device["mtu"])
                }
                None => format!("{}, MTU {}", plain(&device["name"]), device["mtu"]),
            },
        );
    }
    let store = &status["store"];
    let connected = store["connected"].as_bool() == Some(true);
    row("store", if connected { "connected".to_owned() } else { plain(&store["detail"]) });
    if !store["api"].is_null() {
        row("etcd API", plain(&store["api"]));
    }
    row("peers", plain(&status["peers"]));
    let mut text = table.to_string();
    if let Some(outcomes) = status["outcomes"].as_object().filter(|all| !all.is_empty()) {
        text.push_str("\n\npackets by outcome");
        for (name, count) in outcomes.iter().filter(|(_, count)| count.as_u64() != Some(0)) {
            let _ = write!(text, "\n  {name:<24}{count:>14}");
        }
    }
    text.push_str(&packet_rules::list(&status["packet_rules"]));
    let kept = kept::lines(&status["datapath"]);
    if !kept.is_empty() {
        text.push_str("\n\nleft to the kernel");
        for line in kept {
            let _ = write!(text, "\n  {line}");
        }
    }
    for (title, lines) in [("not well", &status["health"]), ("left out", &status["ignored"])] {
        if let Some(lines) = lines.as_array().filter(|lines| !lines.is_empty()) {
            let _ = write!(text, "\n\n{title}");
            for line in lines {
                let _ = match line.get("what") {
                    Some(what) => write!(
                        text,
                        "\n  {}: {} (for {} s)",
                        plain(what),
                        plain(&line["reason"]),
                        line["since_seconds"]
                    ),
                    None => write!(text, "\n  {}", plain(line)),
                };
            }
        }
    }
    text
}

fn datapath(datapath: &Value) -> String {
    let mut text = match datapath["mode"].as_str() {
        Some("") => "not chosen yet".to_owned(),
        _ => plain(&datapath["mode"]),
    };
    if let Some(attach) = datapath["attach"].as_str() {
        let _ = write!(text, ", {attach}");
    }
    if datapath["mode"] == "ebpf" && datapath["tcp"] == false {
        text.push_str(", UDP only");
    }
    if let Some(reason) = datapath["reason"].as_str() {
        let _ = write!(text, " ({reason})");
    }
    text
}

fn xdp(xdp: &Value) -> String {
    match xdp["reason"].as_str() {
        Some(reason) => format!("{} ({reason})", plain(&xdp["mode"])),
        None => plain(&xdp["mode"]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_says_what_counts() {
        let text = table(&json!({
            "version": "0.1.0", "pid": 7, "backend": "vxlan",
            "datapath": {
                "mode": "kernel", "reason": "CAP_BPF is missing", "attach": null, "tcp": false,
                "kept": [{"way": "MARKED_ROUTES", "why": [{"device": "", "what": "mark_rule"}]}],
            },
            "lease": {"subnet": "10.5.1.0/24", "public_ip": "192.0.2.1", "expires_in_seconds": 86000},
            "device": {"name": "flannel.1", "mac": "72:35:2e:f2:e7:c9", "mtu": 1450},
            "store": {"connected": false, "detail": "connection refused"},
            "peers": 2,
            "outcomes": {"fast_encap": 5, "fast_decap": 0},
            "health": [{"what": "store", "reason": "connection refused", "since_seconds": 3}],
            "ignored": ["lease 10.9.1.0-24 is not used"],
        }));
        for part in [
            "kernel (CAP_BPF is missing)",
            "10.5.1.0/24 at 192.0.2.1, 86000 s left",
            "flannel.1, MAC 72:35:2e:f2:e7:c9, MTU 1450",
            "fast_encap",
            "left to the kernel\n  packets with a firewall mark (MARKED_ROUTES): an ip rule looks at",
            "store: connection refused (for 3 s)",
            "lease 10.9.1.0-24 is not used",
        ] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
        assert!(!text.contains("fast_decap"), "zero counts are left out");
    }

    #[test]
    fn the_table_says_whether_xdp_runs() {
        let text = |xdp: Value| table(&json!({"datapath": {"mode": "ebpf", "xdp": xdp}}));
        assert!(text(json!({"mode": "native", "reason": null})).contains("native"));
        let off = text(json!({"mode": "off", "reason": "eth0 is a veth"}));
        assert!(off.contains("off (eth0 is a veth)"), "{off}");
    }

    #[test]
    fn without_an_agent_it_says_so() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(run(folder.path(), true), NOT_RUNNING);
    }
}
