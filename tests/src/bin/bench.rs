//! `flannel-bench`: kernel path against eBPF path.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Parser;
use flannel_tests::bench::{Bench, Effort};
use flannel_tests::interrupt;
use flannel_tests::rules::Rules;

#[derive(Parser)]
#[command(about = "Measure host to host, kernel path and eBPF path side by side")]
struct Cli {
    /// Fewer and shorter rounds: under two minutes
    #[arg(long)]
    quick: bool,
    /// Rounds
    #[arg(long)]
    rounds: Option<usize>,
    /// Seconds of each load in each round
    #[arg(long)]
    seconds: Option<f64>,
    /// Netfilter rules on the nodes besides the agent's own
    #[arg(long, value_enum, default_value_t)]
    rules: Rules,
    /// Only the loads of columns whose title contains this
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
    /// File for the numbers of every round
    #[arg(long, default_value = "target/bench.json")]
    json: PathBuf,
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    interrupt::clean_up();
    let mut effort = if cli.quick { Effort::QUICK } else { Effort::FULL };
    effort.rounds = cli.rounds.unwrap_or(effort.rounds);
    effort.seconds = cli.seconds.unwrap_or(effort.seconds);
    eprintln!("bench: two nodes on the kernel path, two on the eBPF path");
    let bench = Bench::new(cli.rules);
    let figures = bench.run(effort, &cli.only, |what| eprintln!("bench: {what}"));
    println!("{}", figures.table());
    println!(
        "Medians of {} interleaved rounds of {} s; ratios are medians of the ratios within a round, \
         turned over for costs. Client on CPU 0, server on CPU 1. The fast path carried {:.2} % of \
         the eBPF row's packets.",
        effort.rounds,
        effort.seconds,
        bench.fast_share() * 100.0
    );
    if let Some(dir) = cli.json.parent() {
        std::fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
    }
    let text = serde_json::to_string_pretty(&figures.json())?;
    std::fs::write(&cli.json, text).with_context(|| cli.json.display().to_string())?;
    println!("All numbers: {}", cli.json.display());
    Ok(())
}
