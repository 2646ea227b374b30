//! A picture of ratios: grouped bars as SVG. Pure.
//!
//! A bar is a row's median ratio to the kernel path, or for two builds that of
//! this one to the other, with a line from the smallest to the largest ratio of
//! a round.

use std::fmt::Write as _;

use super::columns::Sense;
use super::figures::Spread;
use super::lanes::Build;
use super::report::{Line, Report, Wired};
use super::rows::KERNEL;

/// Okabe and Ito's colours, told apart by colour-blind eyes, too, and greys.
const COLOURS: [&str; 11] = [
    "#000000", "#e69f00", "#56b4e9", "#009e73", "#d55e00", "#0072b2", "#cc79a7", "#f0e442",
    "#777777", "#bbbbbb", "#444466",
];
const LEFT: f64 = 45.0;
const TOP: f64 = 60.0;
/// Height of the plot itself.
const HEIGHT: f64 = 320.0;
/// Below it: room for titles of columns.
const BOTTOM: f64 = 105.0;
const BAR: f64 = 8.0;
const GAP: f64 = 14.0;

/// The rows that have bars: with two builds those of this one.
fn drawn(wired: &Wired) -> (Vec<&Line>, bool) {
    let ours: Vec<_> = wired.rows.iter().filter(|row| row.build == Some(Build::This)).collect();
    if ours.is_empty() {
        (wired.rows.iter().filter(|row| row.title != KERNEL).collect(), false)
    } else {
        (ours, true)
    }
}

/// The plot of one wire.
pub fn svg(report: &Report, wired: &Wired) -> String {
    let (rows, two) = drawn(wired);
    let against = if two { "other build" } else { KERNEL };
    let ratio = |row: &Line, column: &str| {
        let cell = wired.cell(&row.title, column)?;
        if two { cell.times_other } else { cell.times_kernel }
    };
    let columns: Vec<&str> = report
        .columns
        .iter()
        .filter(|column| column.sense != Sense::Fault)
        .map(|column| column.title.as_str())
        .collect();
    let medians = columns
        .iter()
        .flat_map(|column| rows.iter().filter_map(move |row| ratio(row, column)))
        .map(|spread| spread.median);
    // Lines may be cut off, bars never are.
    let top = (medians.fold(1.0, f64::max) * 2.2).ceil() / 2.0;
    let y = |value: f64| TOP + HEIGHT * (1.0 - value.min(top) / top);
    let group = BAR * rows.len() as f64 + GAP;
    let width = (LEFT + group * columns.len() as f64 + GAP).max(640.0);
    let height = TOP + HEIGHT + BOTTOM;

    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"18\" font-size=\"14\">Times better than the {against}; {}</text>\n",
        escaped(wired.wire.title())
    );
    legend(&mut text, &rows);
    // 0.5 as long as the numbers do not touch each other; then the line that
    // bars are compared with.
    let (mut tick, step) = (0.0, (top / 5.0).ceil() / 2.0);
    while tick <= top {
        rule(&mut text, y(tick), width, "#ddd", tick);
        tick += step;
    }
    rule(&mut text, y(1.0), width, "#000", 1.0);
    for (index, column) in columns.iter().enumerate() {
        let start = LEFT + GAP + group * index as f64;
        let ratios: Vec<_> = rows.iter().map(|row| (*row, ratio(row, column))).collect();
        bars(&mut text, start, column, &ratios, y);
        let (x, at) = (start + (group - GAP) / 2.0, TOP + HEIGHT + 14.0);
        let _ = writeln!(
            text,
            "<text x=\"{x:.1}\" y=\"{at:.1}\" text-anchor=\"end\" \
             transform=\"rotate(-45 {x:.1} {at:.1})\">{}</text>",
            escaped(column)
        );
    }
    text + "</svg>\n"
}

fn legend(text: &mut String, rows: &[&Line]) {
    let mut x = LEFT;
    for (number, row) in rows.iter().enumerate() {
        let colour = COLOURS[number % COLOURS.len()];
        let _ = writeln!(
            text,
            "<rect x=\"{x:.0}\" y=\"30\" width=\"10\" height=\"10\" fill=\"{colour}\"/>\
             <text x=\"{:.0}\" y=\"39\">{}</text>",
            x + 14.0,
            escaped(&row.row)
        );
        // About the width of the text.
        x += 30.0 + 6.0 * row.row.len() as f64;
    }
}

/// A line across the plot at height `at`, with its value.
fn rule(text: &mut String, at: f64, width: f64, colour: &str, value: f64) {
    let _ = writeln!(
        text,
        "<line x1=\"{LEFT}\" x2=\"{width}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"{colour}\"/>\
         <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{value:.1}</text>",
        LEFT - 5.0,
        at + 4.0
    );
}

/// The bars of a column, from `start` on.
fn bars(
    text: &mut String,
    start: f64,
    column: &str,
    ratios: &[(&Line, Option<Spread>)],
    y: impl Fn(f64) -> f64,
) {
    for (number, (row, spread)) in ratios.iter().enumerate() {
        let Some(spread) = spread else { continue };
        let (x, colour) = (start + BAR * number as f64, COLOURS[number % COLOURS.len()]);
        bar(text, x, colour, *spread, &y);
        let _ = writeln!(
            text,
            "<title>{}, {}: {:.2} ({:.2} to {:.2})</title></g>",
            escaped(column),
            escaped(&row.row),
            spread.median,
            spread.min,
            spread.max
        );
    }
}

/// Opens a group with the bar and the line of its ends.
fn bar(text: &mut String, x: f64, colour: &str, spread: Spread, y: impl Fn(f64) -> f64) {
    let (top, foot, middle) = (y(spread.median), y(0.0), x + BAR / 2.0);
    let _ = write!(
        text,
        "<g><rect x=\"{x:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{colour}\"/>\
         <line x1=\"{middle:.1}\" x2=\"{middle:.1}\" y1=\"{:.1}\" y2=\"{:.1}\" stroke=\"#888\"/>",
        BAR - 1.0,
        foot - top,
        y(spread.min),
        y(spread.max)
    );
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::{compared, example};
    use super::*;

    #[test]
    fn a_bar_for_each_row_and_column_that_is_compared() {
        let report = example();
        let text = svg(&report, &report.wires[0]);
        let compared = report.columns.iter().filter(|column| column.sense != Sense::Fault).count();
        let services = text.matches("<title>service").count();
        assert_eq!(services, 7, "hosts have none, losses are not compared");
        let others = compared - services;
        assert_eq!(
            text.matches("<g>").count(),
            2 * others + services,
            "without the kernel path itself"
        );
        assert_eq!(text.matches("<g>").count(), text.matches("</g>").count());
        assert!(text.contains("<title>RR p99, eBPF path: 3.00 (3.00 to 3.00)</title>"), "{text}");
        assert!(!text.contains("loss"), "{text}");
        // 3.00 of at most 3.5: the bar begins a seventh below the top.
        let at = TOP + HEIGHT * (1.0 - 3.0 / 3.5);
        assert!(text.contains(&format!("y=\"{at:.1}\" width")), "{text}");
    }

    #[test]
    fn two_builds_are_drawn_as_one() {
        let report = compared(0.5);
        let text = svg(&report, &report.wires[0]);
        assert!(text.contains("Times better than the other build"), "{text}");
        assert!(text.contains("<title>RR p99, eBPF path: 0.50 (0.50 to 0.50)</title>"), "{text}");
        assert!(text.contains("<title>RR p99, kernel path: 1.00"), "{text}");
        assert_eq!(text.matches("<title>TCP RR, ").count(), 3);
    }

    #[test]
    fn without_numbers_there_are_no_bars() {
        let mut report = example();
        report.wires[0].cells.clear();
        let text = svg(&report, &report.wires[0]);
        assert_eq!(text.matches("<g>").count(), 0);
        assert!(text.ends_with("</svg>\n"));
        assert_eq!(escaped("a<b & c>"), "a&lt;b &amp; c&gt;");
    }
}
