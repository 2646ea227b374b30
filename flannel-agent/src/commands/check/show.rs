//! The report as people read it.

use comfy_table::{Table, presets};
use flannel_core::check::{CheckReport, Condition};
use flannel_core::text;

use crate::commands::terminal::{self, Colour};

const COLOURS: [(&str, Colour); 4] = [
    ("well", Colour::Green),
    ("unknown", Colour::Cyan),
    ("degraded", Colour::Yellow),
    ("broken", Colour::Red),
];

/// A table; colours on a terminal, unless `NO_COLOR` says no.
pub(super) fn table(report: &CheckReport, quiet: bool) -> String {
    render(report, quiet, terminal::colours())
}

fn render(report: &CheckReport, quiet: bool, colours: bool) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    for finding in &report.findings {
        if quiet && finding.state == Condition::Well {
            continue;
        }
        // What rules, programs and the store say is somebody else's.
        let found = text::shown(&finding.found, text::REASON);
        table.add_row([word(finding.state), finding.id.word(), &found]);
        if finding.state >= Condition::Degraded {
            table.add_row(["", "", &format!("why: {}", finding.why)]);
        }
        if let Some(remedy) = &finding.remedy {
            table.add_row(["", "", &format!("do: {remedy}")]);
        }
    }
    let mut lines: Vec<String> =
        table.lines().map(|line| terminal::painted(line.trim_end(), &COLOURS, colours)).collect();
    if !report.daemon {
        lines.push("no daemon answered: some of this is from files and the kernel only".to_owned());
    }
    lines.push(format!("verdict: {}", word(report.verdict)));
    lines.join("\n")
}

fn word(state: Condition) -> &'static str {
    match state {
        Condition::Well => "well",
        Condition::Unknown => "unknown",
        Condition::Degraded => "degraded",
        Condition::Broken => "broken",
    }
}

#[cfg(test)]
mod tests {
    use flannel_core::check::{Finding, Id};

    use super::*;

    #[test]
    fn what_is_ill_has_a_reason_and_a_remedy() {
        let report = CheckReport::new(
            false,
            vec![
                Finding::well(Id::Bpffs, "mounted"),
                Finding::ill(Id::Forwarding, Condition::Broken, "it is off", "turn it on"),
            ],
        );
        let text = render(&report, false, false);
        for part in ["well", "bpffs", "it is off", "do: turn it on", "no daemon", "verdict: broken"]
        {
            assert!(text.contains(part), "{part} in\n{text}");
        }
        assert!(text.contains(Id::Forwarding.why()), "{text}");
        assert!(!text.contains('\x1b'), "{text}");
        assert!(render(&report, false, true).contains("\x1b[31mbroken\x1b[0m"));
        let quiet = render(&report, true, false);
        assert!(!quiet.contains("bpffs") && quiet.contains("forwarding"), "{quiet}");
    }
}
