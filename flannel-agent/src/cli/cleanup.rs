//! The flags of `cleanup`.

use std::path::PathBuf;

use clap::Args;

use super::{PIN_DIR, STATE_DIR, SUBNET_FILE};

/// The flags of `cleanup`.
#[derive(Args, Clone, Debug)]
pub struct CleanupArgs {
    /// Directory with the agent's state
    #[arg(long, value_name = "DIR", default_value = STATE_DIR)]
    pub state_dir: PathBuf,
    /// Directory in bpffs with the pinned maps and links
    #[arg(long, value_name = "DIR", default_value = PIN_DIR)]
    pub pin_dir: PathBuf,
    /// The file with the node's subnet
    #[arg(long, value_name = "FILE", default_value = SUBNET_FILE)]
    pub subnet_file: PathBuf,
    /// Go on even if an agent is running, or another network namespace uses
    /// the pins
    #[arg(long)]
    pub force: bool,
    /// Leave device (but udp's), routes, neighbours, FDB and subnet.env for
    /// flanneld, which goes on with them
    #[arg(long)]
    pub keep_device: bool,
}
