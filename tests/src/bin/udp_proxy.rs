//! `flannel-udp-proxy`: the simple proxy as a process, and the measurement of
//! ours beside it.

use std::net::Ipv4Addr;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use flannel_tests::{udp, udp_bench};
use ipnetwork::Ipv4Network;

#[derive(Parser)]
#[command(about = "The udp backend with one thread and one packet at a time")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make flannel0 and carry packets, for ever
    Simple {
        /// Underlay address
        #[arg(long)]
        local: Ipv4Addr,
        /// Peers, as SUBNET=ADDRESS
        routes: Vec<String>,
    },
    /// Measure the agent's proxy and this one, in turns
    Bench {
        /// Turns
        #[arg(long, default_value_t = 5)]
        rounds: usize,
        /// Seconds of each load
        #[arg(long, default_value_t = 2.0)]
        seconds: f64,
    },
}

fn main() -> Result<()> {
    match Cli::parse().command {
        Command::Simple { local, routes } => {
            let routes = routes.iter().map(|text| route(text)).collect::<Result<_>>()?;
            udp::Simple { local, routes }.run().context("the simple proxy")
        }
        Command::Bench { rounds, seconds } => {
            udp_bench::run(rounds, seconds);
            Ok(())
        }
    }
}

fn route(text: &str) -> Result<(Ipv4Network, Ipv4Addr)> {
    let (subnet, address) = text.split_once('=').context("SUBNET=ADDRESS")?;
    Ok((subnet.parse()?, address.parse()?))
}
