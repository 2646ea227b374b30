//! `flannel-difftest`: the same packets over the kernel path and the eBPF path.

use clap::Parser;
use flannel_difftest::exceptions::Exception;
use flannel_difftest::mode::Mode;
use flannel_difftest::run::Differential;
use flannel_tests::interrupt;
use flannel_tests::rules::Rules;

#[derive(Parser)]
#[command(about = "Compare what both paths make of the same packets")]
struct Cli {
    /// Packets on each path
    #[arg(long, default_value_t = 1_000_000)]
    packets: usize,
    /// Seed of the sequence; random unless given
    #[arg(long)]
    seed: Option<u64>,
    /// What is compared
    #[arg(long, value_enum, default_value = "confirmed")]
    mode: Mode,
    /// Language of the rules on the nodes; `none`: only those without which the mode
    /// has no sense. [default: none for `confirmed`, else nftables]
    #[arg(long, value_enum)]
    rules: Option<Rules>,
    /// Shows this many differing packets, the shortest ones
    #[arg(long, default_value_t = 5)]
    show: usize,
    /// Shows none that is odd in one of these ways
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    hide: Vec<String>,
    /// Shows this many packets of each exception
    #[arg(long, default_value_t = 0)]
    show_excepted: usize,
}

fn main() {
    let cli = Cli::parse();
    interrupt::clean_up();
    let seed = cli.seed.unwrap_or_else(rand::random);
    let rules = cli.rules.unwrap_or(cli.mode.rules());
    eprintln!(
        "difftest: {}, rules: {rules}, seed {seed}; two nodes on the kernel path, two on the eBPF path",
        cli.mode
    );
    let mut differential = Differential::new(cli.mode, rules);
    let start = std::time::Instant::now();
    let mut said = 0;
    let report = differential.run(cli.packets, seed, |so_far| {
        if so_far.packets / 50_000 > said {
            said = so_far.packets / 50_000;
            eprintln!("difftest: {} packets, {} differ", so_far.packets, so_far.differing);
        }
    });
    println!("{}", report.text());
    println!("{:.1} s", start.elapsed().as_secs_f64());
    for (name, count) in &report.outcomes.0 {
        println!("{count:8} {name}");
    }
    let mut differences = report.differences.clone();
    differences.retain(|difference| {
        let kind = format!("{:?}", difference.step.oddities);
        !cli.hide.iter().any(|name| kind.contains(name.as_str()))
    });
    differences.sort_by_key(|difference| difference.step.frames.concat().len());
    for difference in differences.iter().take(cli.show) {
        println!("{}", difference.text());
    }
    for exception in Exception::ALL {
        let these = report.excused.iter().filter(|(reason, _)| reason == exception);
        for (_, difference) in these.take(cli.show_excepted) {
            println!("{exception:?}: {}", difference.text());
        }
    }
    drop(differential);
    if !report.good() {
        std::process::exit(1);
    }
}
