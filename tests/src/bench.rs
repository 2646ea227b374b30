//! Kernel path against eBPF path: rows, columns, medians.
//!
//! Client and server are pinned to CPUs of their own. The variants of a round
//! run one after another, so that what the machine does meanwhile hits all of
//! them; only ratios within a run mean something.
//!
//! While one request is under way at a time, idle CPUs poll instead of halting
//! (`/dev/cpu_dma_latency`, Documentation/power/pm_qos_interface.rst): how long
//! a halted virtual CPU takes to wake would drown what a path costs.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddrV4};

use serde_json::{Value, json};

use crate::agent::Options;
use crate::netns::Netns;
use crate::pair::Pair;
use crate::pod::{PORT, serve, traffic};
use crate::process::Process;
use crate::rules::Rules;

/// One figure of the table.
#[derive(Clone, Copy)]
pub struct Column {
    /// Title.
    pub title: &'static str,
    /// Unit of the numbers.
    pub unit: &'static str,
    /// Kind of load, as `flannel-traffic` knows it, with options.
    load: &'static str,
    /// Field of its result.
    field: &'static str,
    /// Smaller is better: ratios are turned over.
    cost: bool,
}

const fn column(
    title: &'static str,
    unit: &'static str,
    load: &'static str,
    field: &'static str,
    cost: bool,
) -> Column {
    Column { title, unit, load, field, cost }
}

/// All figures. Columns of one load come from the same runs.
pub const COLUMNS: &[Column] = &[
    column("TCP RR", "1/s", "requests", "rate", false),
    column("RR p99", "us", "requests", "p99_us", true),
    column("RR CPU", "us", "requests", "cpu_us", true),
    column("TCP CRR", "1/s", "connects", "rate", false),
    column("UDP 64 B", "1/s", "flood --size 64", "rate", false),
    column("UDP CPU", "us", "flood --size 64", "cpu_us", true),
    column("TCP 1", "Gbit/s", "stream --connections 1", "gbits", false),
    column("TCP 1 CPU", "ms/Gbit", "stream --connections 1", "cpu_ms", true),
    column("TCP 4", "Gbit/s", "stream --connections 4", "gbits", false),
    column("TCP 4 CPU", "ms/Gbit", "stream --connections 4", "cpu_ms", true),
];

/// The row that others are compared with.
pub const KERNEL: &str = "kernel path";
/// The row of the programs.
pub const EBPF: &str = "eBPF path";
/// The row without an overlay.
pub const HOST: &str = "host to host";

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Interleaved rounds.
    pub rounds: usize,
    /// Seconds of each load in each round.
    pub seconds: f64,
}

impl Effort {
    /// Under two minutes.
    pub const QUICK: Self = Self { rounds: 3, seconds: 1.0 };
    /// What figures are taken from.
    pub const FULL: Self = Self { rounds: 7, seconds: 3.0 };
    /// For the demo: an impression.
    pub const GLANCE: Self = Self { rounds: 1, seconds: 1.0 };
}

/// The nodes that are measured, ready.
pub struct Bench {
    // Before the pairs: the server ends before its namespace.
    _servers: Vec<Process>,
    kernel: Pair,
    ebpf: Pair,
}

/// One series of numbers for each row and column.
#[derive(Default)]
pub struct Figures(BTreeMap<(&'static str, &'static str), Vec<f64>>);

impl Bench {
    /// Makes two labs whose nodes are joined by a cable, with rules as on a
    /// cluster's nodes: one on the kernel path, one on the eBPF path.
    ///
    /// # Panics
    /// They do not come up.
    pub fn new(rules: Rules) -> Self {
        let kernel = Pair::cabled(&Options::kernel());
        let ebpf = Pair::cabled(&Options::ebpf());
        let mut servers = Vec::new();
        for pair in [&kernel, &ebpf] {
            for node in [&pair.left, &pair.right] {
                rules.load(&node.netns);
            }
            pin_server(&pair.server.netns);
        }
        // Without TIME_WAIT: the connections of one round would leave the next
        // without ports.
        for netns in [&kernel.client.netns, &ebpf.client.netns, &kernel.left.netns] {
            netns.sh("sysctl -qw net.ipv4.tcp_max_tw_buckets=0");
        }
        let log = kernel.lab.dir().join("host-server.log");
        servers.push(serve(&kernel.right.netns, &log, &["--cpu", "1"]));
        Self { _servers: servers, kernel, ebpf }
    }

    fn rows(&self) -> [(&'static str, &Netns, Ipv4Addr); 3] {
        let pods = |pair: &Pair| pair.server.address;
        [
            (HOST, &self.kernel.left.netns, self.kernel.right.address),
            (KERNEL, &self.kernel.client.netns, pods(&self.kernel)),
            (EBPF, &self.ebpf.client.netns, pods(&self.ebpf)),
        ]
    }

    /// Measures; `progress` hears of each round's loads.
    ///
    /// # Panics
    /// A load fails.
    pub fn run(&self, effort: Effort, only: &str, mut progress: impl FnMut(&str)) -> Figures {
        let mut figures = Figures::default();
        let mut loads: Vec<_> = COLUMNS
            .iter()
            .filter(|column| column.title.contains(only))
            .map(|column| column.load)
            .collect();
        loads.dedup();
        for round in 0..effort.rounds {
            for load in &loads {
                progress(&format!("round {} of {}: {load}", round + 1, effort.rounds));
                let one_at_a_time =
                    ["requests", "connects"].iter().any(|kind| load.starts_with(kind));
                let _awake = one_at_a_time.then(awake);
                // Another order in each round: no row is always the first.
                let mut rows = self.rows();
                let length = rows.len();
                rows.rotate_left(round % length);
                for (name, netns, address) in rows {
                    let to = SocketAddrV4::new(address, PORT);
                    let (kind, options) = load.split_once(' ').unwrap_or((load, ""));
                    let seconds = effort.seconds;
                    let line = format!("--cpu 0 {kind} {to} --seconds {seconds} {options}");
                    figures.add(name, load, &traffic(netns, &line));
                }
            }
        }
        figures
    }

    /// Share of packets that the fast path carried of what the eBPF row sent
    /// and received so far.
    ///
    /// # Panics
    /// The agent does not answer.
    pub fn fast_share(&self) -> f64 {
        let mut none = self.ebpf.left.peer(&self.ebpf.right);
        let after = none.clone();
        for (_, value) in none.as_object_mut().expect("a peer").iter_mut() {
            *value = json!(0);
        }
        crate::pair::fast_share(&none, &after)
    }
}

/// Keeps idle CPUs polling until the file is closed; `None` where the kernel
/// cannot.
fn awake() -> Option<File> {
    let mut file = File::options().write(true).open("/dev/cpu_dma_latency").ok()?;
    file.write_all(&0_i32.to_ne_bytes()).ok()?;
    Some(file)
}

/// Moves the pod's server, which runs already, to CPU 1 with all its threads.
fn pin_server(netns: &Netns) {
    let pids = netns.sh(&format!("ip netns pids {}", netns.name()));
    for pid in pids.split_whitespace() {
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        if name.starts_with("flannel-traffic") {
            netns.sh(&format!("taskset --all-tasks --pid --cpu-list 1 {pid}"));
        }
    }
}

impl Figures {
    fn add(&mut self, row: &'static str, load: &str, result: &Value) {
        for column in COLUMNS.iter().filter(|column| column.load == load) {
            let number = result[column.field].as_f64();
            let number = number.unwrap_or_else(|| panic!("{} in {result}", column.field));
            self.0.entry((row, column.title)).or_default().push(number);
        }
    }

    /// Median of a row's column.
    pub fn median(&self, row: &str, column: &str) -> f64 {
        let found = self.0.iter().find(|((r, c), _)| *r == row && *c == column);
        let mut numbers = found.map(|(_, numbers)| numbers.clone()).unwrap_or_default();
        numbers.sort_by(f64::total_cmp);
        numbers.get(numbers.len() / 2).copied().unwrap_or(f64::NAN)
    }

    /// How many times better than the kernel path: the median of the ratios
    /// within each round.
    pub fn ratio(&self, row: &str, column: Column) -> f64 {
        let series = |wanted: &str| {
            self.0
                .iter()
                .find(|((r, c), _)| *r == wanted && *c == column.title)
                .map(|(_, numbers)| numbers.clone())
                .unwrap_or_default()
        };
        let (ours, kernel) = (series(row), series(KERNEL));
        let mut ratios: Vec<f64> = ours
            .iter()
            .zip(&kernel)
            .map(|(ours, kernel)| if column.cost { kernel / ours } else { ours / kernel })
            .collect();
        ratios.sort_by(f64::total_cmp);
        ratios.get(ratios.len() / 2).copied().unwrap_or(f64::NAN)
    }

    /// The table, for people.
    pub fn table(&self) -> String {
        let mut text = format!("{:<12}{:>9}", "", "unit");
        for row in [HOST, KERNEL, EBPF] {
            text += &format!("{row:>15}");
        }
        text += &format!("{:>14}{:>14}\n", "host/kernel", "eBPF/kernel");
        for column in COLUMNS {
            text += &format!("{:<12}{:>9}", column.title, column.unit);
            for row in [HOST, KERNEL, EBPF] {
                text += &format!("{:>15}", number(self.median(row, column.title)));
            }
            let (host, ebpf) = (self.ratio(HOST, *column), self.ratio(EBPF, *column));
            text += &format!("{:>14}{:>14}\n", format!("{host:.2} x"), format!("{ebpf:.2} x"));
        }
        text
    }

    /// Everything that was measured, for programs.
    pub fn json(&self) -> Value {
        let columns: Vec<_> = COLUMNS
            .iter()
            .map(|column| {
                let rows: BTreeMap<_, _> = [HOST, KERNEL, EBPF]
                    .map(|row| {
                        let numbers = self.0.get(&(row, column.title));
                        let median = self.median(row, column.title);
                        let ratio = self.ratio(row, *column);
                        (row, json!({"median": median, "times_kernel": ratio, "rounds": numbers}))
                    })
                    .into();
                json!({"title": column.title, "unit": column.unit, "rows": rows})
            })
            .collect();
        json!({ "columns": columns })
    }
}

fn number(value: f64) -> String {
    if value >= 1000.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_of_rounds_and_turned_over_for_costs() {
        let mut figures = Figures::default();
        for (kernel, ebpf) in [(100.0, 200.0), (10.0, 30.0), (50.0, 50.0)] {
            let result = |rate: f64| json!({"rate": rate, "p99_us": 1000.0 / rate, "cpu_us": 1.0});
            figures.add(KERNEL, "requests", &result(kernel));
            figures.add(EBPF, "requests", &result(ebpf));
        }
        let [rate, p99, ..] = COLUMNS else { panic!("columns") };
        assert_eq!(figures.median(KERNEL, rate.title), 50.0);
        assert_eq!(figures.ratio(EBPF, *rate), 2.0);
        assert!((figures.ratio(EBPF, *p99) - 2.0).abs() < 1e-9);
        assert!(figures.median(HOST, rate.title).is_nan());
    }
}
