//! The flags of `migrate`.

use clap::{Args, ValueEnum};

use crate::source::options::EtcdOptions;

/// The flags of `migrate`.
#[derive(Args, Clone, Debug)]
pub struct MigrateArgs {
    /// API to copy from
    #[arg(long, value_enum, value_name = "API")]
    pub from: MigrateFrom,
    /// API to copy to
    #[arg(long, value_enum, value_name = "API")]
    pub to: MigrateTo,
    /// Only say what would be done
    #[arg(long)]
    pub dry_run: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// How etcd is reached
    #[command(flatten)]
    pub etcd: EtcdOptions,
}

/// `migrate --from`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum MigrateFrom {
    /// etcd's v2 API
    V2,
}

/// `migrate --to`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum MigrateTo {
    /// etcd's v3 API
    V3,
}
