//! Figures of the control plane, their goals, and the table of both. Pure.

use serde::{Deserialize, Serialize};

/// One figure.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// What it is.
    pub title: String,
    /// Its unit.
    pub unit: String,
    /// What it should be at most, if there is a goal.
    pub goal: Option<f64>,
    /// One number for each round.
    pub rounds: Vec<f64>,
}

impl Row {
    /// The middle of the rounds.
    pub fn median(&self) -> f64 {
        quantile(&self.rounds, 0.5)
    }

    /// Whether the median is within the goal, if there is one.
    pub fn is_met(&self) -> Option<bool> {
        self.goal.map(|goal| self.median() <= goal)
    }
}

/// All figures, in the order in which they were taken first.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Rows(pub Vec<Row>);

impl Rows {
    /// Adds one round's number.
    pub fn add(&mut self, title: &str, unit: &str, goal: Option<f64>, number: f64) {
        match self.0.iter_mut().find(|row| row.title == title) {
            Some(row) => row.rounds.push(number),
            None => self.0.push(Row {
                title: title.to_owned(),
                unit: unit.to_owned(),
                goal,
                rounds: vec![number],
            }),
        }
    }

    /// The figure of this title.
    pub fn get(&self, title: &str) -> Option<&Row> {
        self.0.iter().find(|row| row.title == title)
    }

    /// As a table for terminals.
    pub fn text(&self) -> String {
        let wide = self.0.iter().map(|row| row.title.chars().count()).max().unwrap_or(0);
        let mut text = format!(
            "{:<wide$} {:>8} {:>9} {:>9} {:>9} {:>9}  {}\n",
            "", "unit", "goal", "median", "least", "most", "met"
        );
        for row in &self.0 {
            let [unit, goal, median, least, most, met] = cells(row);
            text += &format!(
                "{:<wide$} {unit:>8} {goal:>9} {median:>9} {least:>9} {most:>9}  {met}\n",
                row.title
            );
        }
        text
    }

    /// As a table in Markdown.
    pub fn markdown(&self) -> String {
        let mut text = "| | unit | goal | median | least | most | met |\n".to_owned();
        text += "|---|---|---:|---:|---:|---:|---|\n";
        for row in &self.0 {
            text += &format!("| {} | {} |\n", row.title, cells(row).join(" | "));
        }
        text
    }
}

fn cells(row: &Row) -> [String; 6] {
    [
        row.unit.clone(),
        row.goal.map_or("-".to_owned(), number),
        number(row.median()),
        number(quantile(&row.rounds, 0.0)),
        number(quantile(&row.rounds, 1.0)),
        row.is_met().map_or("-", |met| if met { "yes" } else { "no" }).to_owned(),
    ]
}

/// Three digits that mean something.
fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 || value == 0.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// The number that this share of the numbers is not above; NaN of none.
pub(super) fn quantile(numbers: &[f64], share: f64) -> f64 {
    let mut sorted = numbers.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().saturating_sub(1);
    let index = (last as f64 * share).round() as usize;
    sorted.get(index).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_numbers_of_the_list() {
        let numbers = [5.0, 1.0, 4.0, 2.0, 3.0];
        assert_eq!([0.0, 0.5, 1.0].map(|share| quantile(&numbers, share)), [1.0, 3.0, 5.0]);
        assert!(quantile(&[], 0.5).is_nan());
    }

    #[test]
    fn a_goal_is_met_by_the_median() {
        let mut rows = Rows::default();
        for number in [1.0, 2.0, 9.0] {
            rows.add("restart", "ms", Some(2.0), number);
            rows.add("idle", "ms", Some(0.0), number);
            rows.add("lines", "1", None, 0.0);
        }
        let met = |title: &str| rows.get(title).unwrap().is_met();
        assert_eq!([met("restart"), met("idle"), met("lines")], [Some(true), Some(false), None]);
        assert!(
            rows.text().contains("restart       ms      2.00      2.00      1.00      9.00  yes")
        );
        let line = "| idle | ms | 0.00 | 2.00 | 1.00 | 9.00 | no |";
        assert!(rows.markdown().contains(line), "{}", rows.markdown());
    }
}
