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
    /// A rule more on both nodes.
    pub beside: Option<Beside>,
}

/// A rule that stands beside a node's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Beside {
    /// [`packet_rule`] for what is forwarded.
    Judge,
    /// [`untrack`] for the tunnel's packets, both directions.
    Untrack,
}

impl Beside {
    /// In nft's words.
    pub fn text(self) -> String {
        match self {
            Self::Judge => packet_rule(JUDGED_PORT),
            Self::Untrack => untrack(),
        }
    }
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
    Row { title, ends, setup: Setup { backend, left, right, beside: None } }
}

/// The same row with a rule more on both nodes.
const fn with(title: &'static str, beside: Beside, mut row: Row) -> Row {
    row.title = title;
    row.setup.beside = Some(beside);
    row
}

const VXLAN: &str = r#"{"Type":"vxlan","VNI":1}"#;
const HOST_GW: &str = r#"{"Type":"host-gw"}"#;

const BY_KERNEL: Arguments = &["--datapath=kernel"];
const BY_EBPF: Arguments = &["--datapath=ebpf"];
const EAGER: Arguments = &["--datapath=ebpf", "--fast-path=eager"];
const XDP: Arguments = &["--datapath=ebpf", "--xdp=native"];
const COUNTED: Arguments = &["--datapath=ebpf", "--fast-path=off"];

/// UDP port that no load sends to: below all ports that clients get, and no
/// server's.
pub const JUDGED_PORT: u16 = 53;

/// What [`Beside::Judge`] nodes match, in nft's words: a limit counts each
/// packet, so nothing that takes one packet for a whole flow may skip it.
pub fn packet_rule(port: u16) -> String {
    format!("udp dport {port} limit rate over 100/second burst 5 packets drop")
}

/// What keeps tunnel packets from conntrack, in nft's words.
pub fn untrack() -> String {
    "udp dport 8472 notrack".to_owned()
}

/// The row without an overlay.
pub const HOST: &str = "host to host";
/// The row that others are compared with.
pub const KERNEL: &str = "kernel path";
/// The row of the programs.
pub const EBPF: &str = "eBPF path";
/// The same row beside a rule that counts packets of a port that is not used.
pub const JUDGED: &str = "with packet rule";

/// The kernel path without conntrack for outer packets.
pub const UNTRACKED: &str = "kernel path, untracked";

const KERNEL_PATH: Row = row(KERNEL, Ends::Pods, VXLAN, BY_KERNEL, BY_KERNEL);
const EBPF_PATH: Row = row(EBPF, Ends::Pods, VXLAN, BY_EBPF, BY_EBPF);

/// All rows. The client is on the left node: `eBPF to kernel` has the programs
/// on the client's node only.
pub const ROWS: &[Row] = &[
    row(HOST, Ends::Hosts, VXLAN, BY_KERNEL, BY_KERNEL),
    row("host-gw, kernel", Ends::Pods, HOST_GW, BY_KERNEL, BY_KERNEL),
    row("host-gw, eBPF", Ends::Pods, HOST_GW, BY_EBPF, BY_EBPF),
    KERNEL_PATH,
    with(UNTRACKED, Beside::Untrack, KERNEL_PATH),
    EBPF_PATH,
    with(JUDGED, Beside::Judge, EBPF_PATH),
    row("eager", Ends::Pods, VXLAN, EAGER, EAGER),
    row("with XDP", Ends::Pods, VXLAN, XDP, XDP),
    row("eBPF to kernel", Ends::Pods, VXLAN, BY_EBPF, BY_KERNEL),
    row("kernel to eBPF", Ends::Pods, VXLAN, BY_KERNEL, BY_EBPF),
    row("fast path off", Ends::Pods, VXLAN, COUNTED, COUNTED),
];

/// Rows that a person asked for by `texts` (`chosen`); all for no texts.
pub fn rows(texts: &[&str]) -> Vec<Row> {
    let titles: Vec<_> = ROWS.iter().map(|row| row.title).collect();
    ROWS.iter().filter(|row| chosen(row.title, &titles, texts)).copied().collect()
}

/// Whether `title` is meant by one of `texts`, in any case of letters: a text
/// that is one of `titles` means that one, others all that contain them.
pub(super) fn chosen(title: &str, titles: &[&str], texts: &[&str]) -> bool {
    let meant = |text: &&str| {
        let whole = titles.iter().any(|title| title.eq_ignore_ascii_case(text));
        let contains = || title.to_lowercase().contains(&text.to_lowercase());
        if whole { title.eq_ignore_ascii_case(text) } else { contains() }
    };
    texts.is_empty() || texts.iter().any(meant)
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
    fn a_whole_title_means_that_one() {
        let titles = ["TCP 1", "TCP 12", "more TCP 1"];
        let all = |text| titles.iter().filter(|title| chosen(title, &titles, &[text])).count();
        assert_eq!([all("tcp 1"), all("TCP"), all("more"), all("2"), all("UDP")], [1, 3, 1, 1, 0]);
    }

    #[test]
    fn rows_with_a_rule_more_differ_in_that_only() {
        for (plain, other, beside) in
            [(EBPF, JUDGED, Beside::Judge), (KERNEL, UNTRACKED, Beside::Untrack)]
        {
            let [plain, other] = rows(&[plain, other])[..] else { panic!("two rows") };
            assert_eq!(Setup { beside: Some(beside), ..plain.setup }, other.setup);
            assert_eq!(plain.setup.beside, None);
        }
        assert_eq!(ROWS.iter().filter(|row| row.setup.beside.is_some()).count(), 2);
    }
}
