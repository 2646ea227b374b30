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
//! A new row is a line of [`rows::ROWS`], a new figure one of
//! [`columns::COLUMNS`].

pub mod columns;
pub mod figures;
pub mod markdown;
pub mod plot;
pub mod report;
pub mod rows;
mod sites;
pub mod table;
pub mod wire;

use std::fs::File;
use std::io::Write as _;
use std::time::Duration;

use crate::pod::{traffic, try_traffic};
use crate::rules::Rules;
use columns::Column;
use figures::Figures;
use report::{About, Heading, Line, Others, Report, Wired};
use rows::Row;
use sites::Sites;
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
    pub const QUICK: Self = Self { rounds: 3, seconds: 0.3 };
    /// What figures are taken from: about 20 minutes on two wires.
    pub const FULL: Self = Self { rounds: 7, seconds: 0.5 };
    /// For the demo: an impression.
    pub const GLANCE: Self = Self { rounds: 1, seconds: 1.0 };
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
    /// How much.
    pub effort: Effort,
}

impl Plan {
    /// Starts the nodes that the rows need and measures; `progress` hears of
    /// each step.
    ///
    /// # Panics
    /// The nodes do not come up, or a load fails.
    pub fn run(&self, command: &str, mut progress: impl FnMut(&str)) -> Report {
        let Effort { rounds, seconds } = self.effort;
        let mut about = About::now(command.to_owned(), self.rules.to_string(), rounds, seconds);
        let setups = rows::setups(&self.rows);
        progress(&format!("starting {} nodes", 2 * setups.len()));
        let sites = Sites::start(&setups, self.rules);
        let (mut wires, mut others) = (Vec::new(), Others::default());
        for wire in &self.wires {
            sites.set(*wire);
            wires.push(self.measure(&sites, *wire, &mut others, &mut progress));
        }
        about.busy_meanwhile = others.share();
        Report { about, columns: self.columns.iter().map(Heading::from).collect(), wires }
    }

    fn measure(
        &self,
        sites: &Sites,
        wire: Wire,
        others: &mut Others,
        progress: &mut impl FnMut(&str),
    ) -> Wired {
        let before: Vec<_> = self.rows.iter().map(|row| sites.of(&row.setup).counters()).collect();
        let mut figures = Figures::default();
        let rounds = self.effort.rounds;
        for round in 0..rounds {
            for load in columns::loads(&self.columns) {
                let (name, number) = (wire.name(), round + 1);
                progress(&format!("{name} wire, round {number} of {rounds}: {load}"));
                others.look(PAUSE);
                let one_at_a_time =
                    ["requests", "connects"].iter().any(|kind| load.starts_with(kind));
                let _awake = one_at_a_time.then(awake);
                // Another order in each round: no row is always the first.
                let mut rows = self.rows.clone();
                rows.rotate_left(round % self.rows.len().max(1));
                for row in &rows {
                    self.load(sites, row, load, &mut figures, progress);
                }
            }
        }
        let line = |(row, before): (&Row, _)| {
            let counters = sites.of(&row.setup).counters();
            Line {
                title: row.title.to_owned(),
                ends: format!("{:?}", row.ends).to_lowercase(),
                backend: row.setup.backend.to_owned(),
                left: row.setup.left.join(" "),
                right: row.setup.right.join(" "),
                fast_shares: (row.ends == rows::Ends::Pods).then(|| counters.fast_shares(before)),
                mean_frame: counters.mean_frame(before),
            }
        };
        Wired {
            wire,
            rows: self.rows.iter().zip(&before).map(line).collect(),
            cells: figures.cells(&self.rows, &self.columns),
        }
    }

    fn load(
        &self,
        sites: &Sites,
        row: &Row,
        load: &str,
        figures: &mut Figures,
        progress: &mut impl FnMut(&str),
    ) {
        let (netns, to) = sites.of(&row.setup).ends(row.ends);
        let (kind, options) = load.split_once(' ').unwrap_or((load, ""));
        let seconds = self.effort.seconds;
        let line = format!("--cpu 0 {kind} {to} --seconds {seconds} {options}");
        // Among millions of connections without TIME_WAIT one may meet the end of
        // another with its ports, on any row. That must not end a long run.
        let result = try_traffic(netns, &line).unwrap_or_else(|error| {
            progress(&format!("{}: {load}, once more: {error}", row.title));
            traffic(netns, &line)
        });
        assert!(result["error"].is_null(), "{}: {load}: {result}", row.title);
        for column in self.columns.iter().filter(|column| column.load == load) {
            let number = result[column.field].as_f64();
            let number = number.unwrap_or_else(|| panic!("{} in {result}", column.field));
            figures.add(row, column, number);
        }
    }
}

/// Keeps idle CPUs polling until the file is closed; `None` where the kernel
/// cannot.
fn awake() -> Option<File> {
    let mut file = File::options().write(true).open("/dev/cpu_dma_latency").ok()?;
    file.write_all(&0_i32.to_ne_bytes()).ok()?;
    Some(file)
}
