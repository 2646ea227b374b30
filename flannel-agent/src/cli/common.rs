//! Flags that several commands have: where the agent's files are, and how readers print.

use std::path::PathBuf;

use clap::Args;

use super::{PIN_DIR, STATE_DIR, SUBNET_FILE};

/// `--state-dir`.
#[derive(Args, Clone, Debug)]
pub struct StateDir {
    /// Directory with the agent's state
    #[arg(id = "state_dir", long = "state-dir", value_name = "DIR", default_value = STATE_DIR)]
    pub dir: PathBuf,
}

/// `--pin-dir`.
#[derive(Args, Clone, Debug)]
pub struct PinDirArg {
    /// Directory in bpffs with the pinned maps and links
    #[arg(id = "pin_dir", long = "pin-dir", value_name = "DIR", default_value = PIN_DIR)]
    pub dir: PathBuf,
}

/// `--subnet-file`.
#[derive(Args, Clone, Debug)]
pub struct SubnetFileArg {
    /// The file with the node's subnet
    #[arg(id = "subnet_file", long = "subnet-file", value_name = "FILE",
          default_value = SUBNET_FILE)]
    pub path: PathBuf,
}

/// What all commands that read have.
#[derive(Args, Clone, Debug)]
pub struct ReaderArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Which agent is asked
    #[command(flatten)]
    pub state: StateDir,
}
