//! Numbers of rounds, and what is said of them. Pure.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::columns::{Column, Sense};
use super::rows::{HOST, KERNEL, Row};

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
    /// Title of the row.
    pub row: String,
    /// Title of the column.
    pub column: String,
    /// One number of each round.
    pub rounds: Vec<f64>,
    /// Of the rounds.
    pub spread: Option<Spread>,
    /// How many times better than the kernel path; of the ratios within each
    /// round, so that what the machine did meanwhile cancels out.
    pub times_kernel: Option<Spread>,
    /// How many times better than host to host, likewise.
    pub times_host: Option<Spread>,
}

/// One series of numbers for each row and column.
#[derive(Default)]
pub struct Figures(BTreeMap<(&'static str, &'static str), Vec<f64>>);

impl Figures {
    /// Adds the number of one more round.
    pub fn add(&mut self, row: &Row, column: &Column, number: f64) {
        self.0.entry((row.title, column.title)).or_default().push(number);
    }

    /// All cells, column by column.
    pub fn cells(&self, rows: &[Row], columns: &[Column]) -> Vec<Cell> {
        let series = |row, column: &Column| {
            self.0.iter().find(|((r, c), _)| *r == row && *c == column.title).map(|(_, all)| all)
        };
        let mut cells = Vec::new();
        for column in columns {
            for row in rows {
                let Some(ours) = series(row.title, column) else { continue };
                let against = |row| times(ours, series(row, column)?, column.sense);
                cells.push(Cell {
                    row: row.title.to_owned(),
                    column: column.title.to_owned(),
                    rounds: ours.clone(),
                    spread: Spread::of(ours),
                    times_kernel: against(KERNEL),
                    times_host: against(HOST),
                });
            }
        }
        cells
    }
}

#[cfg(test)]
mod tests {
    use super::super::columns::columns;
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
        let (rows, columns) = (rows(&[KERNEL, EBPF]), columns(&["RR p99"]));
        let mut figures = Figures::default();
        for (kernel, ebpf) in [(100.0, 200.0), (10.0, 30.0), (50.0, 50.0)] {
            for column in &columns {
                let number = |rate| if column.title == "TCP RR" { rate } else { 1000.0 / rate };
                figures.add(&rows[0], column, number(kernel));
                figures.add(&rows[1], column, number(ebpf));
            }
        }
        let cells = figures.cells(&rows, &columns);
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
        let (rows, columns) = (rows(&[KERNEL, EBPF]), columns(&["TCP 32 resent"]));
        let mut figures = Figures::default();
        for column in &columns {
            figures.add(&rows[0], column, 0.0);
            figures.add(&rows[1], column, 2.0);
        }
        let cells = figures.cells(&rows, &columns);
        let resent = cells.iter().find(|cell| cell.column == "TCP 32 resent" && cell.row == EBPF);
        assert_eq!(resent.unwrap().times_kernel, None);
        let gain = cells.iter().find(|cell| cell.column == "TCP 32" && cell.row == EBPF);
        assert_eq!(gain.unwrap().times_kernel, None, "nothing divides by 0");
    }
}
