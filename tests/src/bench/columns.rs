//! What is measured: one line for each figure.

use serde::{Deserialize, Serialize};

use super::rows::matches;

/// What a larger number means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sense {
    /// Better.
    Gain,
    /// Worse: ratios are turned over.
    Cost,
    /// Worse, and 0 is usual: no ratios.
    Fault,
}

/// One figure of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column {
    /// Title.
    pub title: &'static str,
    /// Unit of the numbers.
    pub unit: &'static str,
    /// Kind of load, as `flannel-traffic` knows it, with options.
    pub load: &'static str,
    /// Field of its result.
    pub field: &'static str,
    /// What a larger number means.
    pub sense: Sense,
}

const fn gain(
    title: &'static str,
    unit: &'static str,
    load: &'static str,
    field: &'static str,
) -> Column {
    Column { title, unit, load, field, sense: Sense::Gain }
}

const fn cost(
    title: &'static str,
    unit: &'static str,
    load: &'static str,
    field: &'static str,
) -> Column {
    Column { title, unit, load, field, sense: Sense::Cost }
}

const fn fault(
    title: &'static str,
    unit: &'static str,
    load: &'static str,
    field: &'static str,
) -> Column {
    Column { title, unit, load, field, sense: Sense::Fault }
}

const RR: &str = "requests";
const RR_32: &str = "requests --flows 32";
const CRR: &str = "connects";
const UDP_64: &str = "flood --size 64";
const UDP_1400: &str = "flood --size 1400";
/// More than the flow table holds, less than conntrack does.
const UDP_NEW: &str = "scatter --flows 200000";
const TCP_1: &str = "stream --connections 1";
const TCP_4: &str = "stream --connections 4";
const TCP_32: &str = "stream --connections 32";

/// All figures. Columns of one load come from the same runs.
pub const COLUMNS: &[Column] = &[
    gain("TCP RR", "1/s", RR, "rate"),
    cost("RR p50", "us", RR, "p50_us"),
    cost("RR p99", "us", RR, "p99_us"),
    cost("RR CPU", "us", RR, "cpu_us"),
    gain("RR 32 flows", "1/s", RR_32, "rate"),
    cost("RR 32 p99", "us", RR_32, "p99_us"),
    cost("RR 32 CPU", "us", RR_32, "cpu_us"),
    gain("TCP CRR", "1/s", CRR, "rate"),
    cost("CRR CPU", "us", CRR, "cpu_us"),
    gain("UDP 64 B", "1/s", UDP_64, "rate"),
    fault("UDP 64 loss", "%", UDP_64, "loss_percent"),
    cost("UDP 64 CPU", "us", UDP_64, "cpu_us"),
    gain("UDP 1400 B", "1/s", UDP_1400, "rate"),
    fault("UDP 1400 loss", "%", UDP_1400, "loss_percent"),
    cost("UDP 1400 CPU", "us", UDP_1400, "cpu_us"),
    gain("UDP new flows", "1/s", UDP_NEW, "rate"),
    cost("UDP new CPU", "us", UDP_NEW, "cpu_us"),
    gain("TCP 1", "Gbit/s", TCP_1, "gbits"),
    cost("TCP 1 CPU", "ms/Gbit", TCP_1, "cpu_ms"),
    fault("TCP 1 resent", "1/Gbit", TCP_1, "retransmits"),
    gain("TCP 4", "Gbit/s", TCP_4, "gbits"),
    cost("TCP 4 CPU", "ms/Gbit", TCP_4, "cpu_ms"),
    fault("TCP 4 resent", "1/Gbit", TCP_4, "retransmits"),
    gain("TCP 32", "Gbit/s", TCP_32, "gbits"),
    cost("TCP 32 CPU", "ms/Gbit", TCP_32, "cpu_ms"),
    fault("TCP 32 resent", "1/Gbit", TCP_32, "retransmits"),
];

/// All columns of the loads of which one column's title contains one of
/// `texts`, in any case of letters; all for no texts.
pub fn columns(texts: &[&str]) -> Vec<Column> {
    let wanted =
        |load| COLUMNS.iter().any(|column| column.load == load && matches(column.title, texts));
    COLUMNS.iter().filter(|column| wanted(column.load)).copied().collect()
}

/// The loads of columns, each once.
pub(super) fn loads(columns: &[Column]) -> Vec<&'static str> {
    let mut loads: Vec<_> = columns.iter().map(|column| column.load).collect();
    loads.dedup();
    loads
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn titles_are_unique_and_loads_stand_together() {
        for column in COLUMNS {
            assert_eq!(COLUMNS.iter().filter(|other| other.title == column.title).count(), 1);
        }
        let once = loads(COLUMNS);
        for load in &once {
            assert_eq!(once.iter().filter(|other| other == &load).count(), 1, "{load}");
        }
        assert_eq!(once.len(), 9);
    }

    #[test]
    fn a_column_brings_those_of_its_load() {
        let titles: Vec<_> = columns(&["rr p99"]).iter().map(|column| column.title).collect();
        assert_eq!(titles, ["TCP RR", "RR p50", "RR p99", "RR CPU"]);
        assert_eq!(columns(&[]), COLUMNS);
        assert_eq!(columns(&["nothing of this name"]), []);
    }
}
