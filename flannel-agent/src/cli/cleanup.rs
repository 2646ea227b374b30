//! The flags of `cleanup`.

use clap::Args;

use super::common::{PinDirArg, StateDir, SubnetFileArg};

/// The flags of `cleanup`.
#[derive(Args, Clone, Debug)]
pub struct CleanupArgs {
    /// Where the state is
    #[command(flatten)]
    pub state: StateDir,
    /// Where the programs' maps are
    #[command(flatten)]
    pub pins: PinDirArg,
    /// Where subnet.env is
    #[command(flatten)]
    pub subnet_file: SubnetFileArg,
    /// Go on even if an agent is running, or another network namespace uses
    /// the pins
    #[arg(long)]
    pub force: bool,
    /// Leave device (but udp's), routes, neighbours, FDB and subnet.env for
    /// flanneld, which goes on with them
    #[arg(long)]
    pub keep_device: bool,
}
