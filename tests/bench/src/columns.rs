//! What is measured: one line for each figure.

use serde::{Deserialize, Serialize};

use super::rows::{Ends, Row, chosen};

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

/// Where a load goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum To {
    /// To the server's own address.
    Server,
    /// To the address of a service, which the client's node translates into the
    /// server's.
    Service,
}

/// One kind of load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// What `flannel-traffic` is told: a kind, with options.
    pub arguments: &'static str,
    /// Where it goes.
    pub to: To,
}

impl Load {
    const fn new(arguments: &'static str) -> Self {
        Self { arguments, to: To::Server }
    }

    /// The same load to a service.
    const fn to_service(mut self) -> Self {
        self.to = To::Service;
        self
    }

    /// Whether a row can carry it: services are for pods.
    pub(super) fn fits(&self, row: &Row) -> bool {
        self.to == To::Server || row.ends == Ends::Pods
    }

    /// Whether it is requests of which one waits for the other.
    pub(super) fn waits(&self) -> bool {
        ["requests", "connects"].iter().any(|kind| self.arguments.starts_with(kind))
    }
}

impl std::fmt::Display for Load {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let to = if self.to == To::Service { ", to a service" } else { "" };
        write!(f, "{}{to}", self.arguments)
    }
}

/// One figure of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column {
    /// Title.
    pub title: &'static str,
    /// Unit of the numbers.
    pub unit: &'static str,
    /// What it is taken from.
    pub load: Load,
    /// Field of its result.
    pub field: &'static str,
    /// What a larger number means.
    pub sense: Sense,
}

const fn gain(title: &'static str, unit: &'static str, load: Load, field: &'static str) -> Column {
    Column { title, unit, load, field, sense: Sense::Gain }
}

const fn cost(title: &'static str, unit: &'static str, load: Load, field: &'static str) -> Column {
    Column { title, unit, load, field, sense: Sense::Cost }
}

const fn fault(title: &'static str, unit: &'static str, load: Load, field: &'static str) -> Column {
    Column { title, unit, load, field, sense: Sense::Fault }
}

const RR: Load = Load::new("requests");
const RR_32: Load = Load::new("requests --flows 32");
const CRR: Load = Load::new("connects");
const UDP_64: Load = Load::new("flood --size 64");
const UDP_1400: Load = Load::new("flood --size 1400");
/// More than the flow table holds, less than conntrack does.
const UDP_NEW: Load = Load::new("scatter --flows 200000");
const TCP_1: Load = Load::new("stream --connections 1");
const TCP_4: Load = Load::new("stream --connections 4");
const TCP_32: Load = Load::new("stream --connections 32");
const SERVICE_RR: Load = RR.to_service();
const SERVICE_CRR: Load = CRR.to_service();
const SERVICE_UDP_64: Load = UDP_64.to_service();

/// All figures. Columns of one load come from the same runs. Loads to services
/// stand after those that they are compared with: what the machine does
/// meanwhile hits both.
pub const COLUMNS: &[Column] = &[
    gain("TCP RR", "1/s", RR, "rate"),
    cost("RR p50", "us", RR, "p50_us"),
    cost("RR p99", "us", RR, "p99_us"),
    cost("RR CPU", "us", RR, "cpu_us"),
    gain("service RR", "1/s", SERVICE_RR, "rate"),
    cost("service RR p99", "us", SERVICE_RR, "p99_us"),
    cost("service RR CPU", "us", SERVICE_RR, "cpu_us"),
    gain("RR 32 flows", "1/s", RR_32, "rate"),
    cost("RR 32 p99", "us", RR_32, "p99_us"),
    cost("RR 32 CPU", "us", RR_32, "cpu_us"),
    gain("TCP CRR", "1/s", CRR, "rate"),
    cost("CRR CPU", "us", CRR, "cpu_us"),
    gain("service CRR", "1/s", SERVICE_CRR, "rate"),
    cost("service CRR CPU", "us", SERVICE_CRR, "cpu_us"),
    gain("UDP 64 B", "1/s", UDP_64, "rate"),
    fault("UDP 64 loss", "%", UDP_64, "loss_percent"),
    cost("UDP 64 CPU", "us", UDP_64, "cpu_us"),
    gain("service UDP 64 B", "1/s", SERVICE_UDP_64, "rate"),
    fault("service UDP 64 loss", "%", SERVICE_UDP_64, "loss_percent"),
    cost("service UDP 64 CPU", "us", SERVICE_UDP_64, "cpu_us"),
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

impl Column {
    /// The column of the same load without a service between, for one with.
    pub(super) fn direct(&self) -> Option<&'static Self> {
        let load = Load { to: To::Server, ..self.load };
        let same = |other: &&Self| other.load == load && other.field == self.field;
        COLUMNS.iter().find(same).filter(|_| self.load.to == To::Service)
    }
}

/// All columns of the loads of which one column was asked for by `texts`
/// (`chosen`); all for no texts.
pub fn columns(texts: &[&str]) -> Vec<Column> {
    let titles: Vec<_> = COLUMNS.iter().map(|column| column.title).collect();
    let asked = |column: &Column| chosen(column.title, &titles, texts);
    let wanted = |load| COLUMNS.iter().any(|column| column.load == load && asked(column));
    COLUMNS.iter().filter(|column| wanted(column.load)).copied().collect()
}

/// The loads of columns, each once.
pub(super) fn loads(columns: &[Column]) -> Vec<Load> {
    let mut loads: Vec<_> = columns.iter().map(|column| column.load).collect();
    loads.dedup();
    loads
}

#[cfg(test)]
mod tests {
    use super::super::rows::{EBPF, HOST, rows};
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
        assert_eq!(once.len(), 12);
    }

    #[test]
    fn services_have_columns_without_them() {
        let direct = |title: &str| {
            let column = COLUMNS.iter().find(|column| column.title == title);
            column.unwrap().direct().map(|column| column.title)
        };
        assert_eq!(direct("service RR"), Some("TCP RR"));
        assert_eq!(direct("service CRR CPU"), Some("CRR CPU"));
        assert_eq!(direct("service UDP 64 loss"), Some("UDP 64 loss"));
        assert_eq!(direct("TCP RR"), None);
        for column in COLUMNS.iter().filter(|column| column.load.to == To::Service) {
            let direct = column.direct().unwrap();
            assert_eq!((direct.unit, direct.sense), (column.unit, column.sense));
        }
    }

    #[test]
    fn services_are_for_pods() {
        let hosts = rows(&[HOST])[0];
        let pods = rows(&[EBPF])[0];
        assert!(RR.fits(&hosts) && RR.fits(&pods) && SERVICE_RR.fits(&pods));
        assert!(!SERVICE_RR.fits(&hosts));
        assert_eq!(SERVICE_UDP_64.to_string(), "flood --size 64, to a service");
    }

    #[test]
    fn a_column_brings_those_of_its_load() {
        let titles =
            |text| -> Vec<_> { columns(&[text]).iter().map(|column| column.title).collect() };
        assert_eq!(titles("rr p99"), ["TCP RR", "RR p50", "RR p99", "RR CPU"]);
        assert_eq!(titles("service RR"), ["service RR", "service RR p99", "service RR CPU"]);
        assert_eq!(titles("service").len(), 8);
        assert_eq!(columns(&[]), COLUMNS);
        assert_eq!(columns(&["nothing of this name"]), []);
    }
}
