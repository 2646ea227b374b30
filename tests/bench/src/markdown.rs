//! Results as Markdown, alone or within a document. Pure.

use super::grid::Grid;
use super::report::Report;
use super::table::{circumstances, details, rows, summaries};
use super::versus;
use super::wire::Wire;

const BEGIN: &str = "<!-- results of cargo xtask bench --markdown -->";
const END: &str = "<!-- end of results -->";

/// Tables of all wires; `plot` names the picture of a wire as the document
/// sees it.
pub fn results(report: &Report, plot: impl Fn(Wire) -> String) -> String {
    let mut text = circumstances(report);
    for wired in &report.wires {
        let title = wired.wire.title();
        text += &format!("\n### {title}\n\n![{title}]({})\n\n", plot(wired.wire));
        for grid in summaries(report, wired).iter().chain([&rows(wired)]) {
            text += &format!("{}\n", grid.markdown());
        }
        if let Some(worse) = versus::worse(report, wired) {
            text += &format!("{worse}\n");
        }
        let grids = [Some(details(report, wired)), versus::details(report, wired)];
        let tables: Vec<_> = grids.iter().flatten().map(Grid::markdown).collect();
        let details = tables.join("\n");
        text += &format!("<details><summary>All figures</summary>\n\n{details}\n</details>\n");
    }
    text
}

/// The one table of a run that the overview shows, with the way to the rest; `run` is
/// the document with all of it, as the overview sees it.
pub fn summary(report: &Report, run: &str) -> String {
    let mut text = circumstances(report);
    let first = report.wires.first();
    if let Some((wired, grid)) =
        first.and_then(|wired| Some((wired, summaries(report, wired).into_iter().next()?)))
    {
        text += &format!("\n{}:\n\n{}", wired.wire.title(), grid.markdown());
    }
    text + &format!("\nAll tables, figures and plots of this run: [{run}]({run}).\n")
}

/// The document with all of a run.
pub fn whole(report: &Report, plot: impl Fn(Wire) -> String) -> String {
    let day = day(report);
    format!(
        "# Benchmark of {day}\n\n[benchmarks.md](../benchmarks.md) says how it was measured, and what \
         rows and columns are.\n\n{}",
        results(report, plot)
    )
}

/// The day of a run, as in `2026-01-02`.
pub fn day(report: &Report) -> &str {
    report.about.date.split('T').next().unwrap_or_default()
}

/// A document with its results replaced; `None` if it has no place for them.
pub fn replace(document: &str, results: &str) -> Option<String> {
    let (before, rest) = document.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n\n{results}\n{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::{compared, example};
    use super::*;

    #[test]
    fn results_have_plots_and_tables() {
        let text = results(&example(), |wire| format!("plot-{}.svg", wire.name()));
        assert!(text.contains("(plot-gso.svg)"), "{text}");
        assert!(text.contains("| TCP RR | 2.00 | 1.00 | 3.00 |"), "{text}");
        assert!(text.contains("| · eBPF path | 3750 | 3000 | 4500 | 3.00 | 1.50 | - |"), "{text}");
        assert!(text.starts_with("`cargo xtask bench --quick`, 2026-01-02T03:04:05Z"), "{text}");
    }

    #[test]
    fn the_overview_has_one_table_and_the_way_to_the_rest() {
        let text = summary(&example(), "benchmarks/2026-01-02.md");
        assert_eq!(text.matches("|---|").count(), 1, "{text}");
        assert!(text.contains("| TCP RR | 2.00 | 1.00 | 3.00 |"), "{text}");
        assert!(text.ends_with("(benchmarks/2026-01-02.md).\n"), "{text}");
        let text = whole(&example(), |wire| format!("plot-{}.svg", wire.name()));
        assert!(text.starts_with("# Benchmark of 2026-01-02\n"), "{text}");
        assert!(text.contains("| · eBPF path | 3750"), "{text}");
    }

    #[test]
    fn two_builds_have_their_ratios() {
        let text = results(&compared(0.5), |_| String::new());
        assert!(text.contains("| TCP RR | 1.00 | 1.00 | 0.50 |"), "{text}");
        assert!(
            text.contains("| · eBPF path | 1875 | 3750 | 0.50 | 0.50 | 0.50 | worse |"),
            "{text}"
        );
        assert!(text.contains("): TCP RR, eBPF path (0.50);"), "{text}");
    }

    #[test]
    fn results_of_an_earlier_run_go() {
        let document = format!("# Title\n{BEGIN}\nold\n{END}\nend\n");
        let once = replace(&document, "new").unwrap();
        assert_eq!(once, format!("# Title\n{BEGIN}\n\nnew\n{END}\nend\n"));
        assert_eq!(replace(&once, "new").unwrap(), once);
        assert_eq!(replace("# Title\n", "new"), None);
        assert_eq!(replace(&format!("{END}{BEGIN}"), "new"), None);
    }
}
