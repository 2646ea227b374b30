//! Numbers of rounds, and what is said of them. Pure.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::columns::{Column, Sense};
use super::lanes::{Build, Lane};
use super::rows::{HOST, KERNEL};

/// Middle and ends of a series.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// The mean of the two middle numbers, if there is no middle one.
    pub median: f64,
    /// Smallest.
    pub min: f64,
    /// Largest.
    pub max: f64,
}

impl Spread {
    /// Of some numbers; `None` for none, and where one of them is no number.
    pub fn of(numbers: &[f64]) -> Option<Self> {
        if !numbers.iter().all(|number| number.is_finite()) {
            return None;
        }
        let mut sorted = numbers.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 {
            sorted[middle]
        } else {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        };
        Some(Self { median, min, max })
    }
}

/// How many times better `ours` is than `other`, round by round.
fn times(ours: &[f64], other: &[f64], sense: Sense) -> Option<Spread> {
    let ratio = |(ours, other): (&f64, &f64)| match sense {
        Sense::Gain => Some(ours / other),
        Sense::Cost => Some(other / ours),
        Sense::Fault => None,
    };
    let ratios = ours.iter().zip(other).map(ratio).collect::<Option<Vec<_>>>()?;
    Spread::of(&ratios)
}

/// One row's numbers of one column.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    /// Title of the row, with that of its build if there are two.
    pub row: String,
    /// Title of the column.
    pub column: String,
    /// One number of each round.
    pub rounds: Vec<f64>,
    /// Of the rounds.
    pub spread: Option<Spread>,
    /// How many times better than the kernel path of the same build; of the
    /// ratios within each round, so that what the machine did meanwhile cancels
    /// out.
    pub times_kernel: Option<Spread>,
    /// How many times better than host to host, likewise.
    pub times_host: Option<Spread>,
    /// How many times better than the same row without a service between,
    /// likewise.
    pub times_direct: Option<Spread>,
    /// How many times better this build is than the other one, likewise.
    pub times_other: Option<Spread>,
}

/// Titles of a row and a column, and the build.
type Key = (&'static str, Option<Build>, &'static str);

/// One series of numbers for each lane and column.
#[derive(Default)]
pub struct Figures(BTreeMap<Key, Vec<f64>>);

impl Figures {
    /// Adds the number of one more round.
    pub fn add(&mut self, lane: &Lane, column: &Column, number: f64) {
        self.0.entry((lane.row.title, lane.build, column.title)).or_default().push(number);
    }

    /// All cells, column by column.
    pub fn cells(&self, lanes: &[Lane], columns: &[Column]) -> Vec<Cell> {
        let mut cells = Vec::new();
        for column in columns {
            cells.extend(lanes.iter().filter_map(|lane| self.cell(lane, column)));
        }
        cells
    }

    /// `None` if it was not measured.
    fn cell(&self, lane: &Lane, column: &Column) -> Option<Cell> {
        let (row, build) = (lane.row.title, lane.build);
        let ours = self.0.get(&(row, build, column.title))?;
        let to = |row, build, column: &Column| {
            times(ours, self.0.get(&(row, build, column.title))?, column.sense)
        };
        Some(Cell {
            row: lane.title(),
            column: column.title.to_owned(),
            rounds: ours.clone(),
            spread: Spread::of(ours),
            times_kernel: to(KERNEL, build, column),
            times_host: to(HOST, build, column),
            times_direct: column.direct().and_then(|direct| to(row, build, direct)),
            times_other: (build == Some(Build::This))
                .then(|| to(row, Some(Build::Other), column))
                .flatten(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::columns::columns;
    use super::super::lanes::lanes;
    use super::super::rows::{EBPF, rows};
    use super::*;

    #[test]
    fn the_middle_of_numbers() {
        let spread = |numbers: &[f64]| Spread::of(numbers);
        assert_eq!(spread(&[3.0, 1.0, 2.0]), Some(Spread { median: 2.0, min: 1.0, max: 3.0 }));
        assert_eq!(spread(&[4.0, 1.0]).map(|spread| spread.median), Some(2.5));
        assert_eq!(spread(&[]), None);
        assert_eq!(spread(&[1.0, f64::INFINITY]), None);
        assert_eq!(spread(&[f64::NAN]), None);
    }

    #[test]
    fn ratios_are_of_rounds_and_turned_over_for_costs() {
        let (lanes, columns) = (lanes(&rows(&[KERNEL, EBPF]), false), columns(&["RR p99"]));
        let mut figures = Figures::default();
        for (kernel, ebpf) in [(100.0, 200.0), (10.0, 30.0), (50.0, 50.0)] {
            for column in &columns {
                let number = |rate| if column.title == "TCP RR" { rate } else { 1000.0 / rate };
                figures.add(&lanes[0], column, number(kernel));
                figures.add(&lanes[1], column, number(ebpf));
            }
        }
        let cells = figures.cells(&lanes, &columns);
        assert_eq!(cells.len(), 8, "two rows, four columns of the load");
        let cell = |row: &str, column: &str| {
            cells.iter().find(|cell| cell.row == row && cell.column == column).unwrap()
        };
        let rate = cell(EBPF, "TCP RR");
        assert_eq!(rate.spread.unwrap().median, 50.0);
        assert_eq!(rate.times_kernel, Some(Spread { median: 2.0, min: 1.0, max: 3.0 }));
        assert_eq!(rate.times_host, None, "not measured");
        let p99 = cell(EBPF, "RR p99").times_kernel.unwrap();
        assert!((p99.median - 2.0).abs() < 1e-9 && (p99.max - 3.0).abs() < 1e-9, "{p99:?}");
        assert_eq!(cell(KERNEL, "RR p50").times_kernel.unwrap().max, 1.0);
    }

    #[test]
    fn faults_are_not_compared() {
        let (lanes, columns) = (lanes(&rows(&[KERNEL, EBPF]), false), columns(&["TCP 32 resent"]));
        let mut figures = Figures::default();
        for column in &columns {
            figures.add(&lanes[0], column, 0.0);
            figures.add(&lanes[1], column, 2.0);
        }
        let cells = figures.cells(&lanes, &columns);
        let resent = cells.iter().find(|cell| cell.column == "TCP 32 resent" && cell.row == EBPF);
        assert_eq!(resent.unwrap().times_kernel, None);
        let gain = cells.iter().find(|cell| cell.column == "TCP 32" && cell.row == EBPF);
        assert_eq!(gain.unwrap().times_kernel, None, "nothing divides by 0");
    }

    #[test]
    fn services_are_compared_with_the_same_row_without() {
        let (lanes, columns) =
            (lanes(&rows(&[KERNEL, EBPF]), false), columns(&["UDP 64 B", "service UDP 64 B"]));
        let mut figures = Figures::default();
        for column in &columns {
            let service = column.title.starts_with("service");
            figures.add(&lanes[0], column, if service { 8.0 } else { 10.0 });
            figures.add(&lanes[1], column, if service { 15.0 } else { 20.0 });
        }
        let cells = figures.cells(&lanes, &columns);
        let direct = |row: &str, column: &str| {
            let cell = cells.iter().find(|cell| cell.row == row && cell.column == column);
            cell.unwrap().times_direct.map(|spread| spread.median)
        };
        assert_eq!(direct(KERNEL, "service UDP 64 B"), Some(0.8));
        assert_eq!(direct(EBPF, "service UDP 64 B"), Some(0.75));
        assert_eq!(direct(EBPF, "service UDP 64 CPU"), Some(20.0 / 15.0), "turned over");
        assert_eq!(direct(EBPF, "service UDP 64 loss"), None);
        assert_eq!(direct(EBPF, "UDP 64 B"), None);
    }

    #[test]
    fn builds_are_compared_within_rounds() {
        let (lanes, columns) = (lanes(&rows(&[KERNEL, EBPF]), true), columns(&["RR p99"]));
        let mut figures = Figures::default();
        // The machine is ten times slower in the second round.
        for machine in [1.0, 0.1] {
            for (lane, rate) in lanes.iter().zip([100.0, 100.0, 300.0, 200.0]) {
                for column in &columns {
                    let rate = rate * machine;
                    let number = if column.title == "TCP RR" { rate } else { 1000.0 / rate };
                    figures.add(lane, column, number);
                }
            }
        }
        let cells = figures.cells(&lanes, &columns);
        let cell = |row: &str, column: &str| {
            cells.iter().find(|cell| cell.row == row && cell.column == column).unwrap()
        };
        for column in ["TCP RR", "RR p99"] {
            let this = cell("eBPF path [this]", column);
            let near = |spread: Option<Spread>, expected: f64| {
                let spread = spread.unwrap();
                let good = [spread.min, spread.median, spread.max]
                    .iter()
                    .all(|ratio| (ratio - expected).abs() < 1e-9);
                assert!(good, "{column}: {spread:?}, not {expected}");
            };
            near(this.times_other, 1.5);
            near(this.times_kernel, 3.0);
            near(cell("eBPF path [other]", column).times_kernel, 2.0);
            near(cell("kernel path [this]", column).times_other, 1.0);
            assert_eq!(cell("eBPF path [other]", column).times_other, None);
        }
    }
}
