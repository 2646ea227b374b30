//! The agent's control plane: how soon and at what cost it does what leases and
//! devices ask for. One node with the real agent, a real etcd whose leases stand
//! for the other nodes.

mod bed;
mod cases;
pub mod functions;
mod lease;
mod pods;
mod replace;
mod sight;
mod store;
pub mod table;

use std::path::PathBuf;

use self::table::Rows;

/// How much is measured.
#[derive(Clone, Debug, clap::Args)]
pub struct Plan {
    /// Rounds of the cases that are short
    #[arg(long, default_value_t = 7)]
    pub rounds: usize,
    /// Leases of a large cluster
    #[arg(long, default_value_t = 5000)]
    pub leases: u32,
    /// Leases of the largest cluster; 0 leaves it out
    #[arg(long, default_value_t = 50_000)]
    pub most: u32,
    /// New leases whose way into the kernel is timed, in each round
    #[arg(long, default_value_t = 200)]
    pub samples: u32,
    /// Renewals that change nothing, each second
    #[arg(long, default_value_t = 1000)]
    pub renewals: u32,
    /// Pods that start at the same time
    #[arg(long, default_value_t = 200)]
    pub pods: u32,
    /// Seconds of looking at an idle agent
    #[arg(long, default_value_t = 10.0)]
    pub idle: f64,
    /// Only cases whose name contains this; may be repeated
    #[arg(long, value_name = "TEXT")]
    pub only: Vec<String>,
    /// File for all numbers
    #[arg(long, default_value = "target/bench-control.json")]
    pub json: PathBuf,
    /// File for the table as Markdown; one that has a place for it keeps the rest
    /// of its text
    #[arg(long, value_name = "FILE")]
    pub markdown: Option<PathBuf>,
}

/// Takes the figures of one thing.
type Case = fn(&Plan, &mut Rows);

impl Plan {
    /// Takes all figures; `progress` hears of each step.
    ///
    /// # Panics
    /// A node cannot be set up, or its agent does not do its work at all.
    pub fn run(&self, mut progress: impl FnMut(&str)) -> Rows {
        let mut rows = Rows::default();
        let cases: [(&str, Case); 6] = [
            ("start", cases::start),
            ("leases", cases::many),
            ("most", cases::most),
            ("lease", lease::run),
            ("pods", pods::run),
            ("replace", replace::run),
        ];
        for (name, case) in cases {
            let chosen = |text: &String| name.contains(text.as_str());
            if self.only.is_empty() || self.only.iter().any(chosen) {
                progress(name);
                case(self, &mut rows);
            }
        }
        rows
    }
}
