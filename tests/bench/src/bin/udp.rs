//! `flannel-bench-udp`: the agent's proxy of the udp backend and the simple one,
//! in turns.

use clap::Parser;

#[derive(Parser)]
#[command(about = "Measure the agent's udp proxy and a simple one, in turns")]
struct Cli {
    /// Turns
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of each load
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
}

fn main() {
    let Cli { rounds, seconds } = Cli::parse();
    flannel_bench::udp::run(rounds, seconds);
}
