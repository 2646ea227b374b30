//! `flannel-difftest`: the same packets over the kernel path and the eBPF path.

use clap::Parser;
use flannel_difftest::compare::addresses;
use flannel_difftest::exceptions::Exception;
use flannel_difftest::generate::{Generator, Step};
use flannel_difftest::mode::Mode;
use flannel_difftest::report::hex;
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
    /// Takes the kernel path twice: what differs then differs by chance
    #[arg(long)]
    control: bool,
    /// Sends only the packets with the addresses of the one at this place, up to it,
    /// and shows them
    #[arg(long, value_name = "PLACE")]
    history: Option<usize>,
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

/// What was sent of a flow up to a packet of the sequence.
fn history(mode: Mode, seed: u64, place: usize) -> Vec<Step> {
    let flow = |step: &Step| {
        let (source, destination) = addresses(step.frames.first()?)?;
        Some((source.min(destination), source.max(destination)))
    };
    let steps: Vec<Step> = Generator::new(mode, seed).take(place + 1).collect();
    let wanted = steps.last().and_then(flow);
    let of_flow = steps.into_iter().enumerate().filter(|(_, step)| flow(step) == wanted);
    of_flow
        .map(|(place, step)| {
            println!("{place} {:?} {:?}", step.sender, step.oddities);
            step.frames.iter().for_each(|frame| println!("  {}", hex(frame)));
            step
        })
        .collect()
}

fn main() {
    let cli = Cli::parse();
    interrupt::clean_up();
    let seed = cli.seed.unwrap_or_else(rand::random);
    let rules = cli.rules.unwrap_or(cli.mode.rules());
    let other = if cli.control { "kernel path, too" } else { "eBPF path" };
    eprintln!(
        "difftest: {}, rules: {rules}, seed {seed}; two nodes on the kernel path, two on the {other}",
        cli.mode
    );
    let mut differential = match cli.control {
        true => Differential::control(cli.mode, rules),
        false => Differential::new(cli.mode, rules),
    };
    let start = std::time::Instant::now();
    let mut said = 0;
    let steps: Box<dyn Iterator<Item = Step>> = match cli.history {
        Some(place) => Box::new(history(cli.mode, seed, place).into_iter()),
        None => Box::new(Generator::new(cli.mode, seed).take(cli.packets)),
    };
    let report = differential.send(steps, seed, |so_far| {
        if so_far.packets / 50_000 > said {
            said = so_far.packets / 50_000;
            eprintln!("difftest: {} packets, {} differ", so_far.packets, so_far.differing);
        }
    });
    println!("{}", report.text());
    println!("{:.1} s", start.elapsed().as_secs_f64());
    for (name, count) in report.outcomes.by_name() {
        println!("{count:8} {name}");
    }
    let mut differences = report.differences.clone();
    differences.retain(|difference| {
        let kind = format!("{:?}", difference.step.oddities);
        !cli.hide.iter().any(|name| kind.contains(name.as_str()))
    });
    // What belongs to a connection first.
    differences.sort_by_key(|difference| {
        (difference.step.part.is_none(), difference.step.frames.concat().len())
    });
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
