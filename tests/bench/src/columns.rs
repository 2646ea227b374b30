//! What is measured: one line for each figure.

use std::fmt;
use std::net::SocketAddrV4;

use flannel_tests::load::{CONNECTS, FLOOD, REQUESTS, SCATTER, STREAM, try_traffic};
use flannel_tests::netns::Netns;
use flannel_tests::traffic::client::{Flood, Throughput};
use flannel_tests::traffic::transactions::Transactions;
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

/// What is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadKind {
    /// TCP, one byte there and back.
    Requests,
    /// TCP, one byte there and back on a connection of its own.
    Connects,
    /// UDP as fast as it goes.
    Flood,
    /// UDP, each datagram from another port.
    Scatter,
    /// TCP in one direction.
    Stream,
}

/// What the client told of it.
#[derive(Debug)]
pub enum LoadResult {
    /// Of what has answers.
    Transactions(Transactions),
    /// Of datagrams.
    Flood(Flood),
    /// Of a stream.
    Throughput(Throughput),
}

impl LoadKind {
    /// Sends it.
    ///
    /// # Errors
    /// The client fails, and this is what it says.
    pub(super) fn run(
        self,
        netns: &Netns,
        to: SocketAddrV4,
        options: &str,
    ) -> Result<LoadResult, String> {
        match self {
            Self::Requests => {
                try_traffic(netns, REQUESTS, to, options).map(LoadResult::Transactions)
            }
            Self::Connects => {
                try_traffic(netns, CONNECTS, to, options).map(LoadResult::Transactions)
            }
            Self::Flood => try_traffic(netns, FLOOD, to, options).map(LoadResult::Flood),
            Self::Scatter => try_traffic(netns, SCATTER, to, options).map(LoadResult::Flood),
            Self::Stream => try_traffic(netns, STREAM, to, options).map(LoadResult::Throughput),
        }
    }
}

impl fmt::Display for LoadKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Requests => REQUESTS.fmt(f),
            Self::Connects => CONNECTS.fmt(f),
            Self::Flood => FLOOD.fmt(f),
            Self::Scatter => SCATTER.fmt(f),
            Self::Stream => STREAM.fmt(f),
        }
    }
}

/// A number of what the client told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// Transactions or datagrams per second.
    Rate,
    /// Half of the transactions took at most this, in microseconds.
    P50,
    /// 99 of 100 took at most this, in microseconds.
    P99,
    /// Busy time of all CPUs: microseconds for a transaction or datagram, milliseconds for
    /// a Gbit.
    Cpu,
    /// Datagrams that did not come, of 100.
    Loss,
    /// 10^9 bits per second.
    Gbits,
    /// Segments that were sent again, per Gbit.
    Resent,
}

impl Field {
    /// The number; `None` where such a load has none.
    pub(super) fn of(self, told: &LoadResult) -> Option<f64> {
        Some(match (self, told) {
            (Self::Rate, LoadResult::Transactions(told)) => told.rate,
            (Self::P50, LoadResult::Transactions(told)) => told.p50_us,
            (Self::P99, LoadResult::Transactions(told)) => told.p99_us,
            (Self::Cpu, LoadResult::Transactions(told)) => told.cpu_us,
            (Self::Rate, LoadResult::Flood(told)) => told.rate,
            (Self::Loss, LoadResult::Flood(told)) => told.loss_percent,
            (Self::Cpu, LoadResult::Flood(told)) => told.cpu_us,
            (Self::Gbits, LoadResult::Throughput(told)) => told.gbits,
            (Self::Cpu, LoadResult::Throughput(told)) => told.cpu_ms,
            (Self::Resent, LoadResult::Throughput(told)) => told.retransmits,
            _ => return None,
        })
    }
}

/// One kind of load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// What is sent.
    pub kind: LoadKind,
    /// How `flannel-traffic` sends it.
    pub options: &'static str,
    /// Where it goes.
    pub to: To,
}

impl Load {
    const fn new(kind: LoadKind, options: &'static str) -> Self {
        Self { kind, options, to: To::Server }
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
        matches!(self.kind, LoadKind::Requests | LoadKind::Connects)
    }
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let blank = if self.options.is_empty() { "" } else { " " };
        let to = if self.to == To::Service { ", to a service" } else { "" };
        write!(f, "{}{blank}{}{to}", self.kind, self.options)
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
    pub field: Field,
    /// What a larger number means.
    pub sense: Sense,
}

const fn gain(title: &'static str, unit: &'static str, load: Load, field: Field) -> Column {
    Column { title, unit, load, field, sense: Sense::Gain }
}

const fn cost(title: &'static str, unit: &'static str, load: Load, field: Field) -> Column {
    Column { title, unit, load, field, sense: Sense::Cost }
}

const fn fault(title: &'static str, unit: &'static str, load: Load, field: Field) -> Column {
    Column { title, unit, load, field, sense: Sense::Fault }
}

pub(super) const RR: Load = Load::new(LoadKind::Requests, "");
const RR_32: Load = Load::new(LoadKind::Requests, "--flows 32");
const CRR: Load = Load::new(LoadKind::Connects, "");
pub(super) const UDP_64: Load = Load::new(LoadKind::Flood, "--size 64");
pub(super) const UDP_1400: Load = Load::new(LoadKind::Flood, "--size 1400");
/// More than the flow table holds, less than conntrack does.
const UDP_NEW: Load = Load::new(LoadKind::Scatter, "--flows 200000");
pub(super) const TCP_1: Load = Load::new(LoadKind::Stream, "--connections 1");
pub(super) const TCP_4: Load = Load::new(LoadKind::Stream, "--connections 4");
const TCP_32: Load = Load::new(LoadKind::Stream, "--connections 32");
const SERVICE_RR: Load = RR.to_service();
const SERVICE_CRR: Load = CRR.to_service();
const SERVICE_UDP_64: Load = UDP_64.to_service();

/// All figures. Columns of one load come from the same runs. Loads to services
/// stand after those that they are compared with: what the machine does
/// meanwhile hits both.
pub const COLUMNS: &[Column] = &[
    gain("TCP RR", "1/s", RR, Field::Rate),
    cost("RR p50", "us", RR, Field::P50),
    cost("RR p99", "us", RR, Field::P99),
    cost("RR CPU", "us", RR, Field::Cpu),
    gain("service RR", "1/s", SERVICE_RR, Field::Rate),
    cost("service RR p99", "us", SERVICE_RR, Field::P99),
    cost("service RR CPU", "us", SERVICE_RR, Field::Cpu),
    gain("RR 32 flows", "1/s", RR_32, Field::Rate),
    cost("RR 32 p99", "us", RR_32, Field::P99),
    cost("RR 32 CPU", "us", RR_32, Field::Cpu),
    gain("TCP CRR", "1/s", CRR, Field::Rate),
    cost("CRR CPU", "us", CRR, Field::Cpu),
    gain("service CRR", "1/s", SERVICE_CRR, Field::Rate),
    cost("service CRR CPU", "us", SERVICE_CRR, Field::Cpu),
    gain("UDP 64 B", "1/s", UDP_64, Field::Rate),
    fault("UDP 64 loss", "%", UDP_64, Field::Loss),
    cost("UDP 64 CPU", "us", UDP_64, Field::Cpu),
    gain("service UDP 64 B", "1/s", SERVICE_UDP_64, Field::Rate),
    fault("service UDP 64 loss", "%", SERVICE_UDP_64, Field::Loss),
    cost("service UDP 64 CPU", "us", SERVICE_UDP_64, Field::Cpu),
    gain("UDP 1400 B", "1/s", UDP_1400, Field::Rate),
    fault("UDP 1400 loss", "%", UDP_1400, Field::Loss),
    cost("UDP 1400 CPU", "us", UDP_1400, Field::Cpu),
    gain("UDP new flows", "1/s", UDP_NEW, Field::Rate),
    cost("UDP new CPU", "us", UDP_NEW, Field::Cpu),
    gain("TCP 1", "Gbit/s", TCP_1, Field::Gbits),
    cost("TCP 1 CPU", "ms/Gbit", TCP_1, Field::Cpu),
    fault("TCP 1 resent", "1/Gbit", TCP_1, Field::Resent),
    gain("TCP 4", "Gbit/s", TCP_4, Field::Gbits),
    cost("TCP 4 CPU", "ms/Gbit", TCP_4, Field::Cpu),
    fault("TCP 4 resent", "1/Gbit", TCP_4, Field::Resent),
    gain("TCP 32", "Gbit/s", TCP_32, Field::Gbits),
    cost("TCP 32 CPU", "ms/Gbit", TCP_32, Field::Cpu),
    fault("TCP 32 resent", "1/Gbit", TCP_32, Field::Resent),
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
