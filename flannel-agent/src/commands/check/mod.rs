//! `flannel-agent check`: the doctor. `gather` asks the node, `flannel_core::check`
//! judges.

mod gather;
mod hooks;
pub(in crate::commands) mod node;
mod port;
mod probes;
pub(in crate::commands) mod rules;
mod show;
mod store;

use flannel_core::check::{self, Condition};

use super::{print, print_json};
use crate::cli::CheckArgs;

/// Exit code if something is not as it should be, or could not be looked at.
const DEGRADED: u8 = 10;
/// Exit code if packets are lost, or pods get no network.
const BROKEN: u8 = 20;

/// Examines the node. The exit code says how it is.
pub async fn run(args: &CheckArgs) -> u8 {
    let report = check::report(&gather::facts(args).await);
    if args.reader.json {
        print_json(&report);
    } else {
        print(&show::table(&report, args.quiet));
    }
    match report.verdict {
        Condition::Well => 0,
        Condition::Unknown | Condition::Degraded => DEGRADED,
        Condition::Broken => BROKEN,
    }
}

#[cfg(test)]
mod tests {
    use flannel_core::check::Id;

    #[test]
    fn each_finding_is_explained() {
        let page = include_str!("../../../../docs/troubleshooting.md");
        for id in Id::ALL {
            let row = format!("| `{}` |", id.word());
            assert!(page.contains(&row), "docs/troubleshooting.md has no row {row}");
        }
    }
}
