//! `flannel-udp-proxy`: the simple proxy as a process.

use std::net::Ipv4Addr;

use anyhow::{Context, Result};
use clap::Parser;
use flannel_tests::udp::Simple;
use ipnetwork::Ipv4Network;

#[derive(Parser)]
#[command(about = "The udp backend with one thread and one packet at a time: makes flannel0 and \
                   carries packets, for ever")]
struct Cli {
    /// Underlay address
    #[arg(long)]
    local: Ipv4Addr,
    /// Peers, as SUBNET=ADDRESS
    routes: Vec<String>,
}

fn main() -> Result<()> {
    let Cli { local, routes } = Cli::parse();
    let routes = routes.iter().map(|text| route(text)).collect::<Result<_>>()?;
    Simple { local, routes }.run().context("the simple proxy")
}

fn route(text: &str) -> Result<(Ipv4Network, Ipv4Addr)> {
    let (subnet, address) = text.split_once('=').context("SUBNET=ADDRESS")?;
    Ok((subnet.parse()?, address.parse()?))
}
