//! `flannel-traffic`: the load of tests, demo and bench. Clients print JSON.

use std::net::SocketAddrV4;
use std::time::Duration;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use flannel_tests::traffic::{client, cpu, scatter, server, transactions};

#[derive(Parser)]
#[command(about = "Load between two namespaces, with checks and counts")]
struct Cli {
    /// Run on this CPU only
    #[arg(long, global = true)]
    cpu: Option<usize>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Args)]
struct Load {
    /// Address of a server
    to: SocketAddrV4,
    /// How long
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
}

impl Load {
    fn duration(&self) -> Duration {
        Duration::from_secs_f64(self.seconds)
    }
}

#[derive(Args)]
struct Sizes {
    /// Address of a server
    to: SocketAddrV4,
    /// Smallest size in bytes
    #[arg(long, default_value_t = 1)]
    from: usize,
    /// Largest size in bytes
    #[arg(long, default_value_t = 1450)]
    upto: usize,
}

#[derive(Subcommand)]
enum Command {
    /// Answer, for ever
    Server {
        /// TCP and UDP port
        #[arg(long, default_value_t = 7000)]
        port: u16,
    },
    /// TCP, one byte there and back on one connection, or on each of several
    Requests {
        #[command(flatten)]
        load: Load,
        /// Connections, at the same time
        #[arg(long, default_value_t = 1)]
        flows: usize,
        /// Microseconds between two requests
        #[arg(long, default_value_t = 0)]
        pause_us: u64,
        /// Seconds to wait for an answer
        #[arg(long, default_value_t = 10.0)]
        patience: f64,
    },
    /// TCP, one byte there and back on a connection of its own
    Connects {
        #[command(flatten)]
        load: Load,
        /// Close after the server has: the ends of a connection never cross
        #[arg(long)]
        orderly: bool,
    },
    /// UDP as fast as it goes
    Flood {
        #[command(flatten)]
        load: Load,
        /// Bytes of payload
        #[arg(long, default_value_t = 64)]
        size: usize,
    },
    /// UDP, each datagram from another address or port
    Scatter {
        #[command(flatten)]
        load: Load,
        /// Addresses and ports before they are used again
        #[arg(long, default_value_t = 1_000_000)]
        flows: u32,
    },
    /// TCP in one direction
    Stream {
        #[command(flatten)]
        load: Load,
        /// Connections
        #[arg(long, default_value_t = 1)]
        connections: usize,
    },
    /// UDP at fixed times, there and back
    Spaced {
        #[command(flatten)]
        load: Load,
        /// Microseconds between two datagrams
        #[arg(long, default_value_t = 1000)]
        interval_us: u64,
        /// Bytes of payload
        #[arg(long, default_value_t = 64)]
        size: usize,
    },
    /// TCP messages of all sizes, checked
    Messages(Sizes),
    /// UDP datagrams of all sizes, checked
    Echoes {
        #[command(flatten)]
        sizes: Sizes,
        /// Let the kernel cut each into datagrams of this size (UDP GSO)
        #[arg(long)]
        segment: Option<u16>,
    },
    /// Random data both ways in large writes, checked
    Bulk {
        /// Address of a server
        to: SocketAddrV4,
        /// 10^6 bytes each way
        #[arg(long, default_value_t = 64)]
        megabytes: u64,
    },
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    if let Some(number) = cli.cpu {
        cpu::pin(number);
    }
    match cli.command {
        Command::Server { port } => Ok(server::run(port)?),
        Command::Requests { load, flows, pause_us, patience } => show(&transactions::requests(
            load.to,
            load.duration(),
            flows,
            Duration::from_micros(pause_us),
            Duration::from_secs_f64(patience),
        )?),
        Command::Connects { load, orderly } => {
            show(&transactions::connects(load.to, load.duration(), orderly)?)
        }
        Command::Flood { load, size } => show(&client::flood(load.to, load.duration(), size)?),
        Command::Scatter { load, flows } => {
            show(&scatter::scatter(load.to, load.duration(), flows)?)
        }
        Command::Stream { load, connections } => {
            show(&client::stream(load.to, load.duration(), connections)?)
        }
        Command::Spaced { load, interval_us, size } => show(&client::spaced(
            load.to,
            load.duration(),
            Duration::from_micros(interval_us),
            size,
        )?),
        Command::Messages(sizes) => show(&client::messages(sizes.to, sizes.from..=sizes.upto)?),
        Command::Echoes { sizes, segment } => {
            show(&client::echoes(sizes.to, sizes.from..=sizes.upto, segment)?)
        }
        Command::Bulk { to, megabytes } => show(&client::bulk(to, megabytes * 1_000_000)?),
    }
}

fn show(result: &impl serde::Serialize) -> Result<()> {
    println!("{}", serde_json::to_string(result)?);
    Ok(())
}
