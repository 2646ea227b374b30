//! Two builds side by side, as tables. Pure.

use super::columns::Sense;
use super::figures::{Cell, Spread};
use super::grid::{Grid, number, times};
use super::lanes::Build;
use super::report::{Heading, Line, Report, Wired};

/// How many figures are listed.
const MOST: usize = 20;

/// One row's column with both builds.
struct Pair<'a> {
    this: &'a Cell,
    other: &'a Cell,
}

/// What all rounds agree on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Better,
    Worse,
    /// They do not agree, or there are no ratios.
    Open,
}

impl Verdict {
    fn of(spread: Option<&Spread>) -> Self {
        match spread {
            Some(spread) if spread.min > 1.0 => Self::Better,
            Some(spread) if spread.max < 1.0 => Self::Worse,
            _ => Self::Open,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Better => "better",
            Self::Worse => "worse",
            Self::Open => "-",
        }
    }
}

/// The lanes of this build; none if there is only one build.
fn ours(wired: &Wired) -> impl Iterator<Item = &Line> {
    wired.rows.iter().filter(|row| row.build == Some(Build::This))
}

fn pair<'a>(wired: &'a Wired, row: &Line, column: &Heading) -> Option<Pair<'a>> {
    let mut rows = wired.rows.iter();
    let other = rows.find(|line| line.row == row.row && line.build == Some(Build::Other))?;
    let cell = |title: &str| wired.cell(title, &column.title);
    Some(Pair { this: cell(&row.title)?, other: cell(&other.title)? })
}

/// Median ratios: columns downwards, rows across. `None` for one build.
pub(super) fn summary(report: &Report, wired: &Wired) -> Option<Grid> {
    ours(wired).next()?;
    let head = std::iter::once("times better than the other build".to_owned())
        .chain(ours(wired).map(|row| row.row.clone()));
    let compared = report.columns.iter().filter(|column| column.sense != Sense::Fault);
    let lines = compared.map(|column| {
        let ratio = |row: &Line| {
            let pair = pair(wired, row, column);
            times(pair.and_then(|pair| pair.this.times_other.as_ref()))
        };
        std::iter::once(column.title.clone()).chain(ours(wired).map(ratio)).collect()
    });
    Some(Grid { head: head.collect(), lines: lines.collect() })
}

/// Both builds' medians, and the ratios with their ends. `None` for one build.
pub(super) fn details(report: &Report, wired: &Wired) -> Option<Grid> {
    ours(wired).next()?;
    let head = ["", "this", "other", "times better", "min", "max", "every round"];
    let mut lines = Vec::new();
    for column in &report.columns {
        let mut section = vec![format!("{}, {}", column.title, column.unit)];
        section.resize(head.len(), String::new());
        lines.push(section);
        for row in ours(wired) {
            if let Some(pair) = pair(wired, row, column) {
                lines.push(detail(row, &pair));
            }
        }
    }
    Some(Grid { head: head.map(str::to_owned).into(), lines })
}

fn detail(row: &Line, pair: &Pair) -> Vec<String> {
    let median = |cell: &Cell| cell.spread.map_or("-".to_owned(), |spread| number(spread.median));
    let ratios = pair.this.times_other;
    let of = |pick: fn(&Spread) -> f64| {
        ratios.as_ref().map_or("-".to_owned(), |spread| format!("{:.2}", pick(spread)))
    };
    vec![
        format!("· {}", row.row),
        median(pair.this),
        median(pair.other),
        of(|spread| spread.median),
        of(|spread| spread.min),
        of(|spread| spread.max),
        Verdict::of(ratios.as_ref()).name().to_owned(),
    ]
}

/// Where this build was worse in every round, in a sentence, and of how many
/// figures chance alone would say that: each build is the better one in half of
/// the rounds where they are equal. `None` for one build.
pub(super) fn worse(report: &Report, wired: &Wired) -> Option<String> {
    ours(wired).next()?;
    let (mut found, mut compared) = (Vec::new(), 0);
    for column in &report.columns {
        for row in ours(wired) {
            let pair = pair(wired, row, column);
            let Some(ratios) = pair.and_then(|pair| pair.this.times_other) else { continue };
            compared += 1;
            if Verdict::of(Some(&ratios)) == Verdict::Worse {
                let figure = format!("{}, {} ({:.2})", column.title, row.row, ratios.median);
                found.push((ratios.median, figure));
            }
        }
    }
    let rounds = report.about.rounds;
    let chance = f64::from(compared) / 2_f64.powf(rounds as f64);
    let list = listed(found);
    let disturbed = if report.disturbed() { " The run was disturbed: repeat it." } else { "" };
    Some(format!(
        "Of {compared} figures, this build was worse in each of {rounds} rounds (by chance: about \
         {chance:.1}): {list}.{disturbed}\n"
    ))
}

/// The worst ones first.
fn listed(mut found: Vec<(f64, String)>) -> String {
    found.sort_by(|(one, _), (other, _)| one.total_cmp(other));
    let more = found.len().saturating_sub(MOST);
    found.truncate(MOST);
    let texts: Vec<_> = found.into_iter().map(|(_, text)| text).collect();
    match (texts.is_empty(), more) {
        (true, _) => "none".to_owned(),
        (false, 0) => texts.join("; "),
        (false, more) => format!("{}; {more} more", texts.join("; ")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::{compared, example};
    use super::*;

    fn line(grid: &Grid, section: &str, row: &str) -> Vec<String> {
        let mut lines = grid.lines.iter().skip_while(|line| line[0] != section);
        lines.find(|line| line[0] == row).unwrap().clone()
    }

    #[test]
    fn both_builds_and_their_ratios() {
        let report = compared(0.5);
        let grid = details(&report, &report.wires[0]).unwrap();
        let rate = line(&grid, "TCP RR, 1/s", "· eBPF path");
        assert_eq!(rate, ["· eBPF path", "1875", "3750", "0.50", "0.50", "0.50", "worse"]);
        let cost = line(&grid, "RR p99, us", "· eBPF path");
        assert_eq!(cost, ["· eBPF path", "20.00", "10.00", "0.50", "0.50", "0.50", "worse"]);
        let host = line(&grid, "TCP RR, 1/s", "· host to host");
        assert_eq!(host[1..], ["2500", "2500", "1.00", "1.00", "1.00", "-"]);
        let loss = line(&grid, "UDP 64 loss, %", "· eBPF path");
        assert_eq!(loss[1..], ["0.00", "0.00", "-", "-", "-", "-"]);
        let better = compared(2.0);
        let grid = details(&better, &better.wires[0]).unwrap();
        assert_eq!(line(&grid, "TCP 1, Gbit/s", "· eBPF path")[6], "better");
    }

    #[test]
    fn the_summary_has_each_row_once() {
        let report = compared(0.5);
        let grid = summary(&report, &report.wires[0]).unwrap();
        assert_eq!(grid.head[1..], ["host to host", "kernel path", "eBPF path"]);
        assert_eq!(grid.lines[0], ["TCP RR", "1.00", "1.00", "0.50"]);
        let service = grid.lines.iter().find(|line| line[0] == "service RR").unwrap();
        assert_eq!(service[1..], ["-", "1.00", "0.50"], "hosts have no services");
    }

    #[test]
    fn what_is_worse_is_said() {
        let said = |report: &Report| worse(report, &report.wires[0]).unwrap();
        let text = said(&compared(0.5));
        // 28 columns with ratios, 7 of them for two rows instead of three.
        let start = "Of 77 figures, this build was worse in each of 2 rounds (by chance: about \
                     19.2): TCP RR, eBPF path (0.50); ";
        assert!(text.starts_with(start), "{text}");
        assert!(!text.contains("kernel path") && !text.contains("loss"), "{text}");
        assert!(text.ends_with("The run was disturbed: repeat it.\n"), "{text}");
        let mut calm = compared(1.0);
        calm.about.busy_meanwhile = Some(0.01);
        assert!(said(&calm).ends_with("): none.\n"), "{}", said(&calm));
    }

    #[test]
    fn the_worst_figures_are_listed_first() {
        let figures = |numbers: &[f64]| {
            listed(numbers.iter().map(|number| (*number, number.to_string())).collect())
        };
        assert_eq!(figures(&[0.5, 0.25, 0.75]), "0.25; 0.5; 0.75");
        assert!(figures(&[0.5; MOST + 3]).ends_with("0.5; 3 more"));
        assert_eq!(figures(&[]), "none");
    }

    #[test]
    fn rounds_that_disagree_decide_nothing() {
        let spread = |min, max| Some(Spread { median: 1.0, min, max });
        for (min, max, verdict) in [
            (1.01, 1.2, Verdict::Better),
            (0.8, 0.99, Verdict::Worse),
            (0.8, 1.2, Verdict::Open),
            (1.0, 1.0, Verdict::Open),
        ] {
            assert_eq!(Verdict::of(spread(min, max).as_ref()), verdict);
        }
        assert_eq!(Verdict::of(None), Verdict::Open);
    }

    #[test]
    fn one_build_is_not_compared() {
        let report = example();
        let wired = &report.wires[0];
        assert!(summary(&report, wired).is_none() && details(&report, wired).is_none());
        assert_eq!(worse(&report, wired), None);
    }
}
