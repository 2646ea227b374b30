//! What is compared: one line for each row.

use serde::Serialize;

/// Who talks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Ends {
    /// The nodes themselves: no overlay, no bridge, no forwarding.
    Hosts,
    /// A pod on each node.
    Pods,
}

/// How two nodes are set up. Rows with equal setups share their nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Setup {
    /// `Backend` of the network config.
    pub backend: &'static str,
    /// Arguments of the agent on the client's node.
    pub left: &'static [&'static str],
    /// Arguments of the agent on the server's node.
    pub right: &'static [&'static str],
}

/// One row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// Title.
    pub title: &'static str,
    /// Who talks.
    pub ends: Ends,
    /// On what nodes.
    pub setup: Setup,
}

type Arguments = &'static [&'static str];

const fn row(
    title: &'static str,
    ends: Ends,
    backend: &'static str,
    left: Arguments,
    right: Arguments,
) -> Row {
    Row { title, ends, setup: Setup { backend, left, right } }
}

const VXLAN: &str = r#"{"Type":"vxlan","VNI":1}"#;
const HOST_GW: &str = r#"{"Type":"host-gw"}"#;

const BY_KERNEL: Arguments = &["--datapath=kernel"];
const BY_EBPF: Arguments = &["--datapath=ebpf"];
const EAGER: Arguments = &["--datapath=ebpf", "--fast-path=eager"];
const COUNTED: Arguments = &["--datapath=ebpf", "--fast-path=off"];

/// The row without an overlay.
pub const HOST: &str = "host to host";
/// The row that others are compared with.
pub const KERNEL: &str = "kernel path";
/// The row of the programs.
pub const EBPF: &str = "eBPF path";

/// All rows. The client is on the left node: `eBPF to kernel` has the programs
/// on the client's node only.
pub const ROWS: &[Row] = &[
    row(HOST, Ends::Hosts, VXLAN, BY_KERNEL, BY_KERNEL),
    row("host-gw, kernel", Ends::Pods, HOST_GW, BY_KERNEL, BY_KERNEL),
    row("host-gw, eBPF", Ends::Pods, HOST_GW, BY_EBPF, BY_EBPF),
    row(KERNEL, Ends::Pods, VXLAN, BY_KERNEL, BY_KERNEL),
    row(EBPF, Ends::Pods, VXLAN, BY_EBPF, BY_EBPF),
    row("eager", Ends::Pods, VXLAN, EAGER, EAGER),
    row("eBPF to kernel", Ends::Pods, VXLAN, BY_EBPF, BY_KERNEL),
    row("kernel to eBPF", Ends::Pods, VXLAN, BY_KERNEL, BY_EBPF),
    row("fast path off", Ends::Pods, VXLAN, COUNTED, COUNTED),
];

/// Rows whose title contains one of `texts`, in any case of letters; all for
/// no texts.
pub fn rows(texts: &[&str]) -> Vec<Row> {
    ROWS.iter().filter(|row| matches(row.title, texts)).copied().collect()
}

/// Whether a title is among those that a person asked for.
pub(super) fn matches(title: &str, texts: &[&str]) -> bool {
    let title = title.to_lowercase();
    texts.is_empty() || texts.iter().any(|text| title.contains(&text.to_lowercase()))
}

/// The setups of rows, each once.
pub(super) fn setups(rows: &[Row]) -> Vec<Setup> {
    let mut setups = Vec::new();
    for row in rows {
        if !setups.contains(&row.setup) {
            setups.push(row.setup);
        }
    }
    setups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn titles_are_unique_and_selectable() {
        for row in ROWS {
            assert_eq!(ROWS.iter().filter(|other| other.title == row.title).count(), 1);
            assert!(rows(&[&row.title.to_uppercase()]).contains(row));
        }
        assert_eq!(rows(&[]), ROWS);
        assert_eq!(rows(&["nothing of this name"]), []);
        let titles: Vec<_> = rows(&["host to", "ebpf path"]).iter().map(|row| row.title).collect();
        assert_eq!(titles, [HOST, EBPF]);
    }

    #[test]
    fn equal_setups_are_made_once() {
        let shared = setups(&rows(&[HOST, KERNEL]));
        assert_eq!(shared.len(), 1, "hosts of the kernel path's nodes");
        assert_eq!(setups(ROWS).len(), ROWS.len() - 1);
    }
}
