//! Ways of a packet side by side: rows, columns, wires, medians.
//!
//! Client and server are pinned to CPUs of their own. The rows of a round run
//! one after another, so that what the machine does meanwhile hits all of them;
//! only ratios within a run mean something.
//!
//! While requests wait for answers, idle CPUs poll instead of halting
//! (`/dev/cpu_dma_latency`, Documentation/power/pm_qos_interface.rst): how long
//! a halted virtual CPU takes to wake would drown what a path costs.
//!
//! Two builds of the agent can be compared: each row has two nodes for each of
//! them, and runs with both, one right after the other, in each round.
//!
//! A new row is a line of [`rows::ROWS`], a new figure one of
//! [`columns::COLUMNS`].

pub mod columns;
pub mod control;
pub mod figures;
mod grid;
pub mod kept;
pub mod lanes;
pub mod markdown;
pub mod plot;
pub mod report;
pub mod rows;
pub mod sites;
pub mod table;
pub mod udp;
pub mod versus;
pub mod wire;

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use columns::{Column, Load, LoadResult, To};
use figures::Figures;
use flannel_tests::rules::Rules;
use lanes::{Lane, lanes};
use report::{About, Built, Heading, Line, Others, Report, Wired};
use rows::{Ends, Row};
use sites::{Counters, Sites};
use wire::Wire;

/// Before each load, to see what else the machine does.
const PAUSE: Duration = Duration::from_millis(200);

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Interleaved rounds.
    pub rounds: usize,
    /// Seconds of each load in each round.
    pub seconds: f64,
}

impl Effort {
    /// On one wire, under two minutes.
    pub const QUICK: Self = Self { rounds: 2, seconds: 0.3 };
    /// What figures are taken from: about 20 minutes on two wires.
    pub const FULL: Self = Self { rounds: 6, seconds: 0.5 };
    /// For two builds: the same time for twice as many loads.
    pub const AGAINST: Self = Self { rounds: 6, seconds: 0.3 };
    /// For the demo: an impression.
    pub const GLANCE: Self = Self { rounds: 1, seconds: 1.0 };

    /// With one round more if they are odd: the first of two builds has it a
    /// little better, so each has to be it as often as the other.
    #[must_use]
    pub fn even(self) -> Self {
        Self { rounds: self.rounds.next_multiple_of(2), ..self }
    }
}

/// What is measured.
pub struct Plan {
    /// Rows, in the table's order.
    pub rows: Vec<Row>,
    /// Columns, in the table's order.
    pub columns: Vec<Column>,
    /// Wires, one after another.
    pub wires: Vec<Wire>,
    /// Netfilter rules on the nodes besides the agent's own.
    pub rules: Rules,
    /// Another build of the agent, with which all rows are measured, too.
    pub against: Option<PathBuf>,
    /// How much.
    pub effort: Effort,
}

impl Plan {
    /// The columns that can be measured: without rules there are no services.
    pub fn measurable(&self) -> Vec<Column> {
        let possible = |column: &&Column| column.load.to == To::Server || self.rules.serve();
        self.columns.iter().filter(possible).copied().collect()
    }

    /// Starts the nodes that the rows need and measures; `progress` hears of
    /// each step.
    ///
    /// # Panics
    /// The nodes do not come up, or a load fails.
    pub fn run(&self, command: &str, progress: impl FnMut(&str)) -> Report {
        let Effort { rounds, seconds } = self.effort;
        let builds = Built::all(self.against.as_deref());
        let mut about =
            About::now(command.to_owned(), builds, self.rules.to_string(), rounds, seconds);
        let lanes = lanes(&self.rows, self.against.is_some());
        let columns = self.measurable();
        let mut run = Run { lanes, columns, effort: self.effort, progress };
        let sites = run.start(self.against.as_deref(), self.rules);
        let (mut wires, mut others) = (Vec::new(), Others::default());
        for wire in &self.wires {
            sites.set(*wire);
            wires.push(run.measure(&sites, *wire, &mut others));
        }
        about.busy_meanwhile = others.share();
        Report { about, columns: run.columns.iter().map(Heading::from).collect(), wires }
    }
}

/// A plan that is carried out.
struct Run<P> {
    lanes: Vec<Lane>,
    columns: Vec<Column>,
    effort: Effort,
    progress: P,
}

impl<P: FnMut(&str)> Run<P> {
    fn start(&mut self, other: Option<&Path>, rules: Rules) -> Sites {
        let keys = lanes::sites(&self.lanes);
        (self.progress)(&format!("starting {} nodes", 2 * keys.len()));
        Sites::start(&keys, other, rules)
    }

    fn measure(&mut self, sites: &Sites, wire: Wire, others: &mut Others) -> Wired {
        let before: Vec<_> = self.lanes.iter().map(|lane| sites.of(lane).counters()).collect();
        let mut figures = Figures::default();
        let rounds = self.effort.rounds;
        for round in 0..rounds {
            let order = lanes::order(&self.lanes, round);
            for load in columns::loads(&self.columns) {
                let (name, number) = (wire.name(), round + 1);
                (self.progress)(&format!("{name} wire, round {number} of {rounds}: {load}"));
                others.look(PAUSE);
                let _awake = load.waits().then(awake);
                for lane in order.iter().filter(|lane| load.fits(&lane.row)) {
                    self.load(sites, lane, load, &mut figures);
                }
            }
        }
        let counted = |(lane, before): (&Lane, _)| line(lane, sites, before);
        Wired {
            wire,
            rows: self.lanes.iter().zip(&before).map(counted).collect(),
            cells: figures.cells(&self.lanes, &self.columns),
        }
    }

    fn load(&mut self, sites: &Sites, lane: &Lane, load: Load, figures: &mut Figures) {
        let (netns, to) = sites.of(lane).ends(lane.row.ends, load.to);
        let options = format!("--cpu 0 --seconds {} {}", self.effort.seconds, load.options);
        // Among millions of connections without TIME_WAIT one may meet the end of
        // another with its ports, on any row. That must not end a long run.
        let told = load.kind.run(netns, to, &options).or_else(|error| {
            (self.progress)(&format!("{}: {load}, once more: {error}", lane.title()));
            load.kind.run(netns, to, &options)
        });
        let told = told.unwrap_or_else(|error| panic!("{}: {load}: {error}", lane.title()));
        if let LoadResult::Transactions(seen) = &told {
            assert_eq!(seen.error, None, "{}: {load}: {seen:?}", lane.title());
        }
        for column in self.columns.iter().filter(|column| column.load == load) {
            let number = column.field.of(&told);
            let number = number.unwrap_or_else(|| panic!("{:?} in {told:?}", column.field));
            figures.add(lane, column, number);
        }
    }
}

/// What a lane was, and what its nodes counted since `before`.
fn line(lane: &Lane, sites: &Sites, before: &Counters) -> Line {
    let counters = sites.of(lane).counters();
    let Row { title, ends, setup } = lane.row;
    Line {
        title: lane.title(),
        row: title.to_owned(),
        build: lane.build,
        ends: format!("{ends:?}").to_lowercase(),
        backend: setup.backend.to_owned(),
        left: setup.left.join(" "),
        right: setup.right.join(" "),
        rule: setup.beside.map(rows::Beside::text),
        fast_shares: if ends == Ends::Pods { counters.fast_shares(before) } else { None },
        mean_frame: counters.mean_frame(before),
    }
}

/// Keeps idle CPUs polling until the file is closed; `None` where the kernel
/// cannot.
fn awake() -> Option<File> {
    let mut file = File::options().write(true).open("/dev/cpu_dma_latency").ok()?;
    file.write_all(&0_i32.to_ne_bytes()).ok()?;
    Some(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_builds_have_even_rounds() {
        let even = |rounds| Effort { rounds, seconds: 0.5 }.even().rounds;
        assert_eq!([1, 2, 3, 20].map(even), [2, 2, 4, 20]);
        assert_eq!(Effort::AGAINST.even().rounds, Effort::AGAINST.rounds);
    }
}
