//! All that a run has found out: what is written as JSON, and what tables and
//! plots are made of.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::columns::{Column, Sense};
use super::figures::Cell;
use super::lanes::Build;
use super::wire::Wire;
use flannel_tests::process::output;
use flannel_tests::traffic::cpu::busy_seconds;

/// Share of the CPUs that other things may use; agents and etcd that wait use
/// about a hundredth.
const DISTURBED: f64 = 0.05;

/// A run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Circumstances.
    pub about: About,
    /// Columns, in the table's order.
    pub columns: Vec<Heading>,
    /// Results, one entry for each wire.
    pub wires: Vec<Wired>,
}

impl Report {
    /// Whether other things ran between the loads.
    pub(super) fn disturbed(&self) -> bool {
        self.about.busy_meanwhile.is_some_and(|share| share > DISTURBED)
    }
}

/// Circumstances of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct About {
    /// The command line.
    pub command: String,
    /// When it began, UTC, RFC 3339.
    pub date: String,
    /// The agents that ran: this one, and the one that it was compared with.
    pub builds: Vec<Built>,
    /// Commit of the source tree of this build, if it was built in one; `-dirty`
    /// with changes.
    pub commit: Option<String>,
    /// Kernel release.
    pub kernel: String,
    /// Name of the processor.
    pub processor: String,
    /// CPUs that are online.
    pub cpus: usize,
    /// Memory in GiB.
    pub memory_gib: f64,
    /// Share (0..=1) of its CPUs that the machine used for other things, in the
    /// second before the run.
    pub busy_before: f64,
    /// The same in pauses between the loads: how much the figures were
    /// disturbed.
    #[serde(default)]
    pub busy_meanwhile: Option<f64>,
    /// Netfilter rules on the nodes besides the agent's own.
    pub rules: String,
    /// Interleaved rounds.
    pub rounds: usize,
    /// Seconds of each load in each round.
    pub seconds: f64,
}

/// A build of the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Built {
    /// Which one.
    pub build: Build,
    /// Path of the program.
    pub program: PathBuf,
    /// `flannel-agent --version`.
    pub version: String,
    /// SHA-256 of the program: a version does not tell builds apart.
    pub digest: String,
}

impl Built {
    /// This build, and the other one if there is one.
    pub(super) fn all(other: Option<&Path>) -> Vec<Self> {
        let this = (Build::This, flannel_tests::agent::program());
        let other = other.map(|path| (Build::Other, path.to_path_buf()));
        std::iter::once(this)
            .chain(other)
            .map(|(build, program)| Self::of(build, program))
            .collect()
    }

    fn of(build: Build, program: PathBuf) -> Self {
        let version = said(&program, &["--version"]).unwrap_or_default();
        let digest = said("sha256sum", &[&program.to_string_lossy()]).unwrap_or_default();
        let digest = digest.split_whitespace().next().unwrap_or_default().to_owned();
        Self { build, program, version, digest }
    }
}

/// A column.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Heading {
    /// Title.
    pub title: String,
    /// Unit.
    pub unit: String,
    /// Arguments of `flannel-traffic`, and where it goes.
    pub load: String,
    /// What a larger number means.
    pub sense: Sense,
}

impl From<&Column> for Heading {
    fn from(column: &Column) -> Self {
        Self {
            title: column.title.into(),
            unit: column.unit.into(),
            load: column.load.to_string(),
            sense: column.sense,
        }
    }
}

/// Results on one wire.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Wired {
    /// The wire.
    pub wire: Wire,
    /// Rows, in the table's order.
    pub rows: Vec<Line>,
    /// Numbers.
    pub cells: Vec<Cell>,
}

/// A row.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// Title: the row's, with that of the build if there are two.
    pub title: String,
    /// Title of the row.
    pub row: String,
    /// Which build's agents ran, if there are two.
    pub build: Option<Build>,
    /// Who talked: `hosts` or `pods`.
    pub ends: String,
    /// `Backend` of the network config.
    pub backend: String,
    /// Arguments of the agent on the client's node.
    pub left: String,
    /// Arguments of the agent on the server's node.
    pub right: String,
    /// Rule for forwarded packets on both nodes, besides the others.
    pub rule: Option<String>,
    /// Share (0..=1) of the overlay's packets that the fast path of each node
    /// (client's, server's) carried.
    pub fast_shares: Option<[f64; 2]>,
    /// Mean length in bytes of the frames that the client's node sent in all
    /// loads of all rows of these nodes; a super-packet counts as one.
    pub mean_frame: f64,
}

impl Wired {
    /// The numbers of a row's column.
    pub fn cell(&self, row: &str, column: &str) -> Option<&Cell> {
        self.cells.iter().find(|cell| cell.row == row && cell.column == column)
    }
}

impl About {
    /// Of this machine, now.
    ///
    /// # Panics
    /// /proc cannot be read.
    pub fn now(
        command: String,
        builds: Vec<Built>,
        rules: String,
        rounds: usize,
        seconds: f64,
    ) -> Self {
        let read = |path: &str| {
            std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{path}: {error}"))
        };
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let mut others = Others::default();
        others.look(Duration::from_secs(1));
        Self {
            command,
            date: said("date", &["-u", "+%Y-%m-%dT%H:%M:%SZ"]).unwrap_or_default(),
            builds,
            commit: said("git", &["describe", "--always", "--dirty", "--abbrev=12"]),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            processor: after(&read("/proc/cpuinfo"), "model name").unwrap_or_default(),
            cpus,
            memory_gib: memory_gib(&read("/proc/meminfo")).unwrap_or_default(),
            busy_before: others.share().unwrap_or_default(),
            busy_meanwhile: None,
            rules,
            rounds,
            seconds,
        }
    }
}

/// What else the machine does.
#[derive(Default)]
pub(super) struct Others {
    /// CPU seconds.
    busy: f64,
    /// Seconds.
    time: f64,
}

impl Others {
    /// Looks on for a while; nothing of ours may run.
    pub(super) fn look(&mut self, time: Duration) {
        let (busy, start) = (busy_seconds(), Instant::now());
        std::thread::sleep(time);
        self.busy += busy_seconds() - busy;
        self.time += start.elapsed().as_secs_f64();
    }

    /// Share (0..=1) of all CPUs; `None` before the first look.
    pub(super) fn share(&self) -> Option<f64> {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        (self.time > 0.0).then(|| self.busy / self.time / cpus as f64)
    }
}

fn said(program: impl AsRef<std::ffi::OsStr>, arguments: &[&str]) -> Option<String> {
    let output = output(Command::new(program).args(arguments));
    // flannel's --version writes to standard error.
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).trim().to_owned();
    (output.status.success() && !text.is_empty()).then_some(text)
}

/// The value of the first line `key : value`.
fn after(text: &str, key: &str) -> Option<String> {
    let line = text.lines().find(|line| line.starts_with(key))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn memory_gib(meminfo: &str) -> Option<f64> {
    let value = after(meminfo, "MemTotal")?;
    let kib: f64 = value.split_whitespace().next()?.parse().ok()?;
    Some((kib / 1_048_576.0 * 10.0).round() / 10.0)
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::columns::columns;
    use super::super::figures::Figures;
    use super::super::lanes::{Lane, lanes};
    use super::super::rows::rows;
    use super::*;

    /// Three rows, all columns, two rounds; `host to host` twice as good as
    /// `kernel path`, `eBPF path` three times.
    pub(in super::super) fn example() -> Report {
        filled(None)
    }

    /// The same with two builds, of which this one is `factor` times as good as
    /// the other on `eBPF path`.
    pub(in super::super) fn compared(factor: f64) -> Report {
        filled(Some(factor))
    }

    fn filled(factor: Option<f64>) -> Report {
        let columns = columns(&[]);
        let lanes = lanes(&rows(&["host to host", "kernel path", "eBPF path"]), factor.is_some());
        let mut figures = Figures::default();
        for lane in &lanes {
            let better = factor.filter(|_| lane.build == Some(Build::This)).unwrap_or(1.0);
            let times = match lane.row.title {
                "host to host" => 2.0,
                "kernel path" => 1.0,
                _ => 3.0 * better,
            };
            for column in columns.iter().filter(|column| column.load.fits(&lane.row)) {
                for round in [1.0, 1.5] {
                    let number = match column.sense {
                        Sense::Gain => 1000.0 * times * round,
                        Sense::Cost => 24.0 / times * round,
                        Sense::Fault => 0.0,
                    };
                    figures.add(lane, column, number);
                }
            }
        }
        let built = |(build, digest): (Build, &str)| Built {
            build,
            program: "agent".into(),
            version: "flannel-agent 0.1.0".into(),
            digest: digest.repeat(32),
        };
        let builds = [(Build::This, "0a"), (Build::Other, "0b")];
        let builds = builds.into_iter().take(1 + usize::from(factor.is_some()));
        Report {
            about: About {
                command: "cargo xtask bench --quick".into(),
                date: "2026-01-02T03:04:05Z".into(),
                builds: builds.map(built).collect(),
                commit: None,
                kernel: "6.18.0".into(),
                processor: "Processor".into(),
                cpus: 2,
                memory_gib: 24.0,
                busy_before: 0.5,
                busy_meanwhile: Some(0.25),
                rules: "iptables".into(),
                rounds: 2,
                seconds: 0.5,
            },
            columns: columns.iter().map(Heading::from).collect(),
            wires: vec![Wired {
                wire: Wire::Gso,
                rows: lanes.iter().map(described).collect(),
                cells: figures.cells(&lanes, &columns),
            }],
        }
    }

    fn described(lane: &Lane) -> Line {
        Line {
            title: lane.title(),
            row: lane.row.title.into(),
            build: lane.build,
            ends: "pods".into(),
            backend: r#"{"Type":"vxlan"}"#.into(),
            left: "--datapath=ebpf".into(),
            right: "--datapath=kernel".into(),
            rule: None,
            fast_shares: (lane.row.title != "host to host").then_some([0.999, 0.0]),
            mean_frame: 1400.4,
        }
    }

    #[test]
    fn json_keeps_everything() {
        let report = example();
        let text = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), report);
        let cell = report.wires[0].cell("eBPF path", "RR CPU").unwrap();
        assert_eq!(cell.rounds, [8.0, 12.0]);
        assert_eq!(report.wires[0].cell("eBPF path", "no such column"), None);
    }

    #[test]
    fn builds_are_told_apart_by_what_they_are() {
        let built = |path: &str| Built::of(Build::Other, path.into());
        let (sh, cat) = (built("/bin/sh"), built("/bin/cat"));
        assert_eq!((sh.digest.len(), cat.digest.len()), (64, 64), "{sh:?} {cat:?}");
        assert_ne!(sh.digest, cat.digest);
        assert_eq!(sh.digest, built("/bin/sh").digest);
        assert!(cat.version.starts_with("cat "), "{cat:?}");
    }

    #[test]
    fn machine_files_are_read() {
        let cpuinfo = "processor\t: 0\nmodel name\t: A CPU @ 3 GHz\nmodel name\t: other\n";
        assert_eq!(after(cpuinfo, "model name").as_deref(), Some("A CPU @ 3 GHz"));
        assert_eq!(after(cpuinfo, "Model"), None);
        assert_eq!(memory_gib("MemTotal:       25165824 kB\nMemFree: 1 kB\n"), Some(24.0));
        assert_eq!(memory_gib("nothing"), None);
    }

    #[test]
    fn circumstances_are_this_machines() {
        let about = About::now("bench".into(), Vec::new(), "none".into(), 1, 1.0);
        assert!(about.date.ends_with('Z') && about.date.len() == 20, "{about:?}");
        assert!(about.cpus > 0 && about.memory_gib > 0.0 && !about.kernel.is_empty());
        assert!((0.0..=1.1).contains(&about.busy_before), "{about:?}");
    }
}
