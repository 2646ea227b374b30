//! The flags that tell how etcd is reached, and by which API.

use std::path::PathBuf;

use clap::{ArgAction, Args, ValueEnum};

use super::Secret;
use crate::source::options::EtcdOptions;

/// How etcd is reached.
#[derive(Args, Clone, Debug)]
pub struct EtcdArgs {
    /// etcd endpoints, separated by commas
    #[arg(
        long = "etcd-endpoints",
        value_name = "URL,...",
        value_delimiter = ',',
        num_args = 1,
        action = ArgAction::Set,
        default_value = "http://127.0.0.1:4001,http://127.0.0.1:2379"
    )]
    pub endpoints: Vec<String>,
    /// Prefix of flannel's keys in etcd
    #[arg(long = "etcd-prefix", value_name = "KEY", default_value = "/coreos.com/network")]
    pub prefix: String,
    /// Certificate authority that etcd's certificate is checked with
    #[arg(long = "etcd-cafile", value_name = "FILE")]
    pub cafile: Option<PathBuf>,
    /// Client certificate for etcd
    #[arg(long = "etcd-certfile", value_name = "FILE")]
    pub certfile: Option<PathBuf>,
    /// Key of the client certificate
    #[arg(long = "etcd-keyfile", value_name = "FILE")]
    pub keyfile: Option<PathBuf>,
    /// User name for etcd
    #[arg(long = "etcd-username", value_name = "NAME")]
    pub username: Option<String>,
    /// Password for etcd; better given in the environment
    #[arg(long = "etcd-password", value_name = "PASSWORD")]
    pub password: Option<Secret>,
}

impl EtcdArgs {
    /// As the store wants them.
    pub fn options(&self) -> EtcdOptions {
        EtcdOptions {
            endpoints: self.endpoints.clone(),
            prefix: self.prefix.clone(),
            ca_file: self.cafile.clone(),
            cert_file: self.certfile.clone(),
            key_file: self.keyfile.clone(),
            username: self.username.clone(),
            password: self.password.as_ref().map(|password| password.expose().to_owned()),
        }
    }
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
