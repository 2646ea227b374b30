//! The flags of the commands that look into a node.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::STATE_DIR;

/// The flags of `events`.
#[derive(Args, Clone, Debug)]
pub struct EventsArgs {
    /// Print JSON; with --follow an object for each event
    #[arg(long)]
    pub json: bool,
    /// Go on with what comes, until it is interrupted
    #[arg(long)]
    pub follow: bool,
    /// Only those of this time: 10m, 2h
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub since: Option<Duration>,
    /// Directory with the agent's state
    #[arg(long, value_name = "DIR", default_value = STATE_DIR)]
    pub state_dir: PathBuf,
}
