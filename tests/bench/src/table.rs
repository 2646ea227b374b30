//! Tables, for people: as plain text and as Markdown. Pure.

use super::columns::Sense;
use super::figures::{Cell, Spread};
use super::grid::{Grid, number, times};
use super::lanes::Build;
use super::report::{Built, Heading, Report, Wired};
use super::rows::{HOST, KERNEL};
use super::versus;

/// Median ratios: columns downwards, rows across.
fn ratios<'a>(
    wired: &Wired,
    columns: impl Iterator<Item = &'a Heading>,
    against: &str,
    pick: fn(&Cell) -> Option<&Spread>,
) -> Grid {
    let titles: Vec<_> = wired.rows.iter().map(|row| row.title.clone()).collect();
    let head = std::iter::once(format!("times better than {against}")).chain(titles.clone());
    let lines = columns.map(|column| {
        let ratio = |row: &String| times(wired.cell(row, &column.title).and_then(pick));
        std::iter::once(column.title.clone()).chain(titles.iter().map(ratio)).collect()
    });
    Grid { head: head.collect(), lines: lines.collect() }
}

/// Ratios to the kernel path, to host to host, and of loads through services to
/// those without, as far as they were measured. For two builds, ratios of one to
/// the other are what counts.
pub(super) fn summaries(report: &Report, wired: &Wired) -> Vec<Grid> {
    if let Some(grid) = versus::summary(report, wired) {
        return vec![grid];
    }
    let compared = || report.columns.iter().filter(|column| column.sense != Sense::Fault);
    let measured = |title: &str| wired.rows.iter().any(|row| row.title == title);
    let mut grids = Vec::new();
    if measured(KERNEL) {
        grids.push(ratios(wired, compared(), KERNEL, |cell| cell.times_kernel.as_ref()));
    }
    if measured(HOST) {
        grids.push(ratios(wired, compared(), HOST, |cell| cell.times_host.as_ref()));
    }
    let service = |column: &&Heading| {
        let mut cells = wired.cells.iter().filter(|cell| cell.column == column.title);
        cells.any(|cell| cell.times_direct.is_some())
    };
    let direct = ratios(wired, compared().filter(service), "without a service", |cell| {
        cell.times_direct.as_ref()
    });
    grids.extend(Some(direct).filter(|grid| !grid.lines.is_empty()));
    grids
}

/// Every number: medians, ends, ratios.
pub(super) fn details(report: &Report, wired: &Wired) -> Grid {
    let head = ["", "median", "min", "max", "to kernel path", "to host to host", "to no service"];
    let mut lines = Vec::new();
    for column in &report.columns {
        let title = format!("{}, {}", column.title, column.unit);
        let mut section = vec![title];
        section.resize(head.len(), String::new());
        lines.push(section);
        for row in &wired.rows {
            lines.push(match wired.cell(&row.title, &column.title) {
                Some(cell) => detail(cell),
                None => unmeasured(&row.title, head.len()),
            });
        }
    }
    Grid { head: head.map(str::to_owned).into(), lines }
}

fn detail(cell: &Cell) -> Vec<String> {
    let of =
        |pick: fn(&Spread) -> f64| cell.spread.as_ref().map_or("-".into(), |s| number(pick(s)));
    vec![
        format!("· {}", cell.row),
        of(|spread| spread.median),
        of(|spread| spread.min),
        of(|spread| spread.max),
        times(cell.times_kernel.as_ref()),
        times(cell.times_host.as_ref()),
        times(cell.times_direct.as_ref()),
    ]
}

/// A row that cannot carry the column's load.
fn unmeasured(row: &str, width: usize) -> Vec<String> {
    let mut line = vec![format!("· {row}")];
    line.resize(width, "-".to_owned());
    line
}

/// What the rows are, and whether the fast path carried them.
pub(super) fn rows(wired: &Wired) -> Grid {
    let head = [
        "row",
        "backend",
        "client's node",
        "server's node",
        "rule besides",
        "on the fast path",
        "mean frame",
    ];
    let lines = wired.rows.iter().map(|row| {
        let percent = |share: f64| format!("{:.1} %", share * 100.0);
        let shares = row.fast_shares;
        vec![
            row.title.clone(),
            row.backend.clone(),
            row.left.clone(),
            row.right.clone(),
            row.rule.clone().unwrap_or_else(|| "-".into()),
            shares.map_or("-".into(), |[l, r]| format!("{}, {}", percent(l), percent(r))),
            format!("{:.0} B", row.mean_frame),
        ]
    });
    Grid { head: head.map(str::to_owned).into(), lines: lines.collect() }
}

/// Tables of all wires, as plain text.
pub fn text(report: &Report) -> String {
    let mut text = String::new();
    for wired in &report.wires {
        text += &format!("\n== {}\n\n", wired.wire.title());
        let mut grids = vec![details(report, wired)];
        grids.extend(versus::details(report, wired));
        grids.extend(summaries(report, wired));
        grids.push(rows(wired));
        for grid in grids {
            text += &grid.text();
            text.push('\n');
        }
        text += &versus::worse(report, wired).map_or(String::new(), |worse| worse + "\n");
    }
    text + &circumstances(report)
}

/// How it was measured, in sentences.
pub(super) fn circumstances(report: &Report) -> String {
    let about = &report.about;
    let builds = builds(&about.builds, about.commit.as_deref());
    let meanwhile = about.busy_meanwhile.map_or(String::new(), |share| {
        let warning = if report.disturbed() { " (the figures are disturbed)" } else { "" };
        format!(", in pauses between the loads {:.0} %{warning}", share * 100.0)
    });
    format!(
        "`{}`, {}, {builds}, kernel {}, {} CPUs ({}), {} GiB, busy with other things before the \
         run: {:.0} %{meanwhile}. Netfilter rules: the agent's and {}. Medians of {} interleaved rounds of {} \
         s; ratios are medians of the ratios within a round, turned over for costs.\n",
        about.command,
        about.date,
        about.kernel,
        about.cpus,
        about.processor,
        about.memory_gib,
        about.busy_before * 100.0,
        about.rules,
        about.rounds,
        about.seconds,
    )
}

/// Which agents ran. Versions and commits do not tell two builds apart: digests
/// do.
fn builds(builds: &[Built], commit: Option<&str>) -> String {
    let commit = commit.map_or(String::new(), |commit| format!(" ({commit})"));
    let version = |built: &Built| match built.build {
        Build::This => format!("{}{commit}", built.version),
        Build::Other => built.version.clone(),
    };
    let [this, other] = builds else {
        return builds.iter().map(version).collect();
    };
    let same = if this.digest == other.digest { " (the same program)" } else { "" };
    let named = |built: &Built| {
        let digest = built.digest.get(..12).unwrap_or_default();
        format!("{} build: {}, SHA-256 {digest}…", built.build.name(), version(built))
    };
    format!("{}; {}{same}", named(this), named(other))
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::{compared, example};
    use super::*;

    #[test]
    fn every_number_is_in_the_text() {
        let text = text(&example());
        let line = |start: &str| {
            let found = text.lines().find(|line| line.starts_with(start));
            let found = found.unwrap_or_else(|| panic!("{start:?} in {text}"));
            found.split_whitespace().collect::<Vec<_>>().join(" ")
        };
        assert_eq!(line("· eBPF path"), "· eBPF path 3750 3000 4500 3.00 1.50 -");
        assert_eq!(line("· kernel path"), "· kernel path 1250 1000 1500 1.00 0.50 -");
        assert_eq!(line("RR p99  "), "RR p99 2.00 1.00 3.00");
        assert!(line("eBPF path").ends_with("--datapath=kernel - 99.9 %, 0.0 % 1400 B"));
        assert!(line("host to host").ends_with("- 1400 B"));
        let resent = text.split("TCP 4 resent, 1/Gbit").nth(1).unwrap();
        let first = resent.lines().nth(1).unwrap().split_whitespace().collect::<Vec<_>>();
        assert_eq!(first, ["·", "host", "to", "host", "0.00", "0.00", "0.00", "-", "-", "-"]);
        let service = text.split("service RR, 1/s").nth(1).unwrap().lines();
        let lines: Vec<_> = service
            .skip(1)
            .take(3)
            .map(|line| line.split_whitespace().collect::<Vec<_>>())
            .collect();
        assert_eq!(lines[0], ["·", "host", "to", "host", "-", "-", "-", "-", "-", "-"]);
        assert_eq!(lines[2][3..], ["3750", "3000", "4500", "3.00", "-", "1.00"]);
        assert!(text.contains("2 interleaved rounds of 0.5 s"), "{text}");
        let busy = "before the run: 50 %, in pauses between the loads 25 % (the figures are";
        assert!(text.contains(busy), "{text}");
    }

    #[test]
    fn ratios_need_the_row_they_are_to() {
        let mut report = example();
        let grids = |report: &Report| summaries(report, &report.wires[0]);
        let [kernel, host, direct] = &grids(&report)[..] else { panic!("three tables") };
        assert!(kernel.text().contains("times better than kernel path"), "{}", kernel.text());
        assert_eq!(host.lines[0], ["TCP RR", "1.00", "0.50", "1.50"]);
        assert_eq!(direct.lines[0], ["service RR", "-", "1.00", "1.00"]);
        assert_eq!(direct.lines.len(), 7, "losses have no ratios");
        report.wires[0].rows.retain(|row| row.title == KERNEL);
        report.columns.retain(|column| !column.title.starts_with("service"));
        assert_eq!(grids(&report).len(), 1);
    }

    #[test]
    fn two_builds_are_told_apart() {
        let mut report = compared(0.5);
        let said = text(&report);
        for part in [
            "this build: flannel-agent 0.1.0, SHA-256 0a0a0a0a0a0a…; other build: ",
            "· eBPF path [this] ",
            "· eBPF path [other] ",
            "times better than the other build ",
            "this build was worse in each of 2 rounds (by chance: about ",
        ] {
            assert!(said.contains(part), "{part:?} in {said}");
        }
        assert!(!said.contains("the same program"), "{said}");
        report.about.builds[1].digest = report.about.builds[0].digest.clone();
        assert!(text(&report).contains("the same program"));
    }
}
