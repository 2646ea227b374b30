//! A trace as people read it.

use std::collections::BTreeMap;

use comfy_table::{Table, presets};
use flannel_core::check::facts::Known;
use flannel_core::text;
use flannel_core::trace::{Direction, HopState, Outcome, Step, Trace};

use crate::commands::terminal::{self, Colour};

const COLOURS: [(&str, Colour); 4] = [
    ("passes", Colour::Green),
    ("slow", Colour::Yellow),
    ("lost", Colour::Red),
    ("unknown", Colour::Cyan),
];

type Growth = Known<BTreeMap<&'static str, u64>>;

pub(super) fn text(trace: &Trace, live: Option<&Growth>) -> String {
    render(trace, live, terminal::colours())
}

fn render(trace: &Trace, live: Option<&Growth>, colours: bool) -> String {
    let mut lines: Vec<String> =
        trace.directions.iter().flat_map(|way| direction(way, colours)).collect();
    match live {
        None => {}
        Some(Err(reason)) => lines.push(format!("live: {reason}")),
        Some(Ok(grown)) if grown.is_empty() => {
            lines.push("live: no counter of the programs has grown".to_owned());
        }
        Some(Ok(grown)) => {
            lines.push("live: packets of the whole node by outcome".to_owned());
            lines.extend(grown.iter().map(|(name, count)| format!("  {name:<24}{count:>14}")));
        }
    }
    if !trace.daemon {
        lines.push("no daemon answered: what it leaves to the kernel is not known".to_owned());
    }
    lines.join("\n")
}

fn direction(way: &Direction, colours: bool) -> Vec<String> {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    for hop in &way.hops {
        let found = text::shown(&hop.found, text::REASON);
        table.add_row([word(hop.state), step(hop.step), &found]);
    }
    let mut lines = vec![format!("{} -> {}", way.source, way.destination)];
    let rows = table.lines().map(|line| terminal::painted(line.trim_end(), &COLOURS, colours));
    lines.extend(rows);
    let outcome = match way.outcome {
        Outcome::Fast => "the fast path carries it, once the kernel has confirmed the flow",
        Outcome::Kernel => "the kernel path carries it",
        Outcome::Lost => "it is lost",
        Outcome::Elsewhere => "the overlay does not carry it",
    };
    lines.push(match way.why.is_empty() {
        true => format!("=> {outcome}"),
        false => {
            let why = text::shown(&way.why.join("; "), 2 * text::REASON);
            format!("=> {outcome}: {why}")
        }
    });
    lines.push(String::new());
    lines
}

fn word(state: HopState) -> &'static str {
    match state {
        HopState::Passes => "passes",
        HopState::Slow => "slow",
        HopState::Lost => "lost",
        HopState::Unknown => "unknown",
    }
}

fn step(step: Step) -> &'static str {
    match step {
        Step::Veth => "veth",
        Step::Hook => "hook",
        Step::Rules => "rules",
        Step::FastPath => "fast path",
        Step::Route => "route",
        Step::Neighbour => "neighbour",
        Step::Fdb => "FDB",
        Step::Map => "map",
        Step::Flow => "flow",
        Step::Mtu => "MTU",
        Step::Underlay => "underlay",
    }
}

#[cfg(test)]
mod tests {
    use flannel_core::trace::Hop;

    use super::*;

    #[test]
    fn hops_and_outcome_are_shown() {
        let hop = |step, state, found: &str| Hop { step, state, found: found.to_owned() };
        let way = Direction {
            source: [10, 5, 1, 2].into(),
            destination: [10, 5, 2, 2].into(),
            hops: vec![
                hop(Step::Veth, HopState::Passes, "10.5.1.2 by veth7"),
                hop(Step::Fdb, HopState::Lost, "no entry"),
            ],
            outcome: Outcome::Lost,
            why: vec!["no entry".to_owned()],
        };
        let trace = Trace { daemon: false, directions: vec![way] };
        let grown = Ok(BTreeMap::from([("fast_encap", 7)]));
        let text = render(&trace, Some(&grown), false);
        for part in
            ["10.5.1.2 -> 10.5.2.2", "veth7", "=> it is lost: no entry", "fast_encap", "no daemon"]
        {
            assert!(text.contains(part), "{part} in\n{text}");
        }
        assert!(render(&trace, None, true).contains("\x1b[31mlost\x1b[0m"));
    }
}
