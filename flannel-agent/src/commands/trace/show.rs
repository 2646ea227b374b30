//! A trace as people read it.

use comfy_table::{Table, presets};
use flannel_core::text;
use flannel_core::trace::{Carrier, Direction, HopState, Step, Trace};

use super::live::Live;
use crate::commands::terminal::{self, Colour};

const COLOURS: [(&str, Colour); 4] = [
    ("passes", Colour::Green),
    ("slow", Colour::Yellow),
    ("lost", Colour::Red),
    ("unknown", Colour::Cyan),
];

pub(super) fn text(trace: &Trace, live: Option<&Live>) -> String {
    render(trace, live, terminal::colours())
}

fn render(trace: &Trace, live: Option<&Live>, colours: bool) -> String {
    let mut lines: Vec<String> =
        trace.directions.iter().flat_map(|way| direction(way, colours)).collect();
    lines.extend(live.into_iter().flat_map(seen));
    if !trace.daemon {
        lines.push("no daemon answered: what it leaves to the kernel is not known".to_owned());
    }
    lines.join("\n")
}

/// What `--live` saw: of these packets by hook, and of all packets of the node.
fn seen(live: &Live) -> Vec<String> {
    let row = |name: &str, count: &u64| format!("  {name:<24}{count:>14}");
    let mut lines = Vec::new();
    match &live.hooks {
        Err(reason) => lines.push(format!("live: the hooks cannot be watched: {reason}")),
        Ok(seen) if seen.counts.is_empty() => {
            lines.push("live: no hook saw a packet between both".to_owned());
        }
        Ok(seen) => {
            lines.push("live: packets between both by hook and outcome".to_owned());
            for (hook, outcomes) in &seen.counts {
                lines.push(format!("{hook}:"));
                lines.extend(outcomes.iter().map(|(name, count)| row(name, count)));
            }
            if seen.not_counted > 0 {
                lines.push(format!("{} more were too many to be counted", seen.not_counted));
            }
        }
    }
    match &live.node {
        Err(reason) => lines.push(format!("live: {reason}")),
        Ok(grown) if grown.is_empty() => {
            lines.push("live: no counter of the programs has grown".to_owned());
        }
        Ok(grown) => {
            lines.push("live: packets of the whole node by outcome".to_owned());
            lines.extend(grown.iter().map(|(name, count)| row(name, count)));
        }
    }
    lines
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
        Carrier::Fast => "the fast path carries it, once the kernel has confirmed the flow",
        Carrier::Kernel => "the kernel path carries it",
        Carrier::Lost => "it is lost",
        Carrier::Elsewhere => "the overlay does not carry it",
    };
    let unknown = way.hops.iter().any(|hop| hop.state == HopState::Unknown);
    // What is lost is lost whatever the other hops do.
    let sure = if unknown && way.outcome != Carrier::Lost { "as far as is known " } else { "" };
    lines.push(match way.why.is_empty() {
        true => format!("=> {sure}{outcome}"),
        false => {
            let why = text::shown(&way.why.join("; "), 2 * text::REASON);
            format!("=> {sure}{outcome}: {why}")
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
        Step::Forwarding => "forwarding",
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
    use std::collections::BTreeMap;

    use flannel_core::check::facts::Unknown;
    use flannel_core::trace::Hop;

    use super::*;
    use crate::commands::trace::live::Watched;

    #[test]
    fn an_outcome_behind_an_unknown_hop_is_no_promise() {
        let last = |state, outcome| {
            let hop = Hop { step: Step::Veth, state, found: "not heard of".to_owned() };
            let (source, destination) = ([10, 5, 1, 2].into(), [10, 5, 2, 2].into());
            let way = Direction { source, destination, hops: vec![hop], outcome, why: Vec::new() };
            let lines = direction(&way, false);
            lines.into_iter().find(|line| line.starts_with("=>")).unwrap()
        };
        let kernel = Carrier::Kernel;
        assert_eq!(last(HopState::Passes, kernel), "=> the kernel path carries it");
        let unsure = "=> as far as is known the kernel path carries it";
        assert_eq!(last(HopState::Unknown, kernel), unsure);
        assert_eq!(last(HopState::Unknown, Carrier::Lost), "=> it is lost");
    }

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
            outcome: Carrier::Lost,
            why: vec!["no entry".to_owned()],
        };
        let trace = Trace { daemon: false, directions: vec![way] };
        let one = |name: &str, count| BTreeMap::from([(name.to_owned(), count)]);
        let grown = one("fast_encap", 7);
        let counts = BTreeMap::from([("from_pod".to_owned(), one("kernel_rule", 3))]);
        let hooks = Ok(Watched { counts, not_counted: 2 });
        let text = render(&trace, Some(&Live { node: Ok(grown.clone()), hooks }), false);
        for part in
            ["10.5.1.2 -> 10.5.2.2", "veth7", "=> it is lost: no entry", "fast_encap", "no daemon"]
                .into_iter()
                .chain(["from_pod:\n  kernel_rule", "2 more were too many"])
        {
            assert!(text.contains(part), "{part} in\n{text}");
        }
        let hooks = Err(Unknown::because("no BTF"));
        let text = render(&trace, Some(&Live { node: Ok(grown), hooks }), false);
        assert!(
            text.contains("cannot be watched: no BTF") && text.contains("fast_encap"),
            "{text}"
        );
        assert!(render(&trace, None, true).contains("\x1b[31mlost\x1b[0m"));
    }
}
