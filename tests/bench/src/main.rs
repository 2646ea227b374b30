//! `flannel-bench`: ways of a packet side by side.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Parser;
use flannel_bench::columns::{COLUMNS, columns};
use flannel_bench::control;
use flannel_bench::report::Report;
use flannel_bench::rows::{ROWS, rows};
use flannel_bench::wire::Wire;
use flannel_bench::{Effort, Plan, markdown, plot, table};
use flannel_tests::interrupt;
use flannel_tests::rules::Rules;

#[derive(Parser)]
#[command(
    about = "Measure host to host, kernel path, eBPF path and their variants side by side",
    args_conflicts_with_subcommands = true
)]
struct Cli {
    #[command(subcommand)]
    other: Option<Other>,
    /// Fewer and shorter rounds on the GSO wire alone: under two minutes
    #[arg(long)]
    quick: bool,
    /// Rounds; one more with --against if they are odd
    #[arg(long)]
    rounds: Option<usize>,
    /// Seconds of each load in each round
    #[arg(long)]
    seconds: Option<f64>,
    /// Underlays; may be repeated [default: both, with --quick gso]
    #[arg(long, value_enum)]
    wire: Vec<Wire>,
    /// Netfilter rules on the nodes besides the agent's own
    #[arg(long, value_enum, default_value_t)]
    rules: Rules,
    /// Only the row of this title, or those whose title contains this, in any
    /// case of letters; may be repeated. Ratios need the rows "kernel path" and
    /// "host to host"
    #[arg(long, visible_alias = "rows", value_name = "TEXT")]
    row: Vec<String>,
    /// Only the load of the column of this title, or those of columns whose
    /// title contains this; may be repeated
    #[arg(long, visible_alias = "columns", value_name = "TEXT")]
    only: Vec<String>,
    /// Another build of flannel-agent: measure all rows with both, in turns, and
    /// say how many times better this one is
    #[arg(long, value_name = "PROGRAM", conflicts_with = "from")]
    against: Option<PathBuf>,
    /// Say what rows and columns there are
    #[arg(long)]
    list: bool,
    /// File for all numbers
    #[arg(long, default_value = "target/bench.json")]
    json: PathBuf,
    /// Beginning of the names of the plots: -gso.svg and -mtu.svg are added
    /// [default: that of the run's Markdown, else of --json]
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    /// File for one table as Markdown; one that has a place for it keeps the rest
    /// of its text. All of the run goes to `<day>.md` in the directory of its name
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// Measure nothing: tables and plots of an earlier run's --json
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
}

/// Another thing than data paths.
#[derive(clap::Subcommand)]
enum Other {
    /// Measure the agent's control plane: starts, leases, pods
    Control(control::Plan),
    /// Write which functions of the agent run, for packaging/ordered-gcc
    Functions(control::functions::Plan),
}

impl Cli {
    fn plan(&self) -> Result<Plan> {
        let chosen: Vec<&str> = self.row.iter().map(String::as_str).collect();
        let rows = rows(&chosen);
        if rows.is_empty() {
            bail!("no row is called like {:?}; --list names them", self.row);
        }
        let chosen: Vec<&str> = self.only.iter().map(String::as_str).collect();
        let columns = columns(&chosen);
        if columns.is_empty() {
            bail!("no column is called like {:?}; --list names them", self.only);
        }
        let mut effort = match (self.quick, &self.against) {
            (true, _) => Effort::QUICK,
            (false, Some(_)) => Effort::AGAINST,
            (false, None) => Effort::FULL,
        };
        effort.rounds = self.rounds.unwrap_or(effort.rounds);
        effort.seconds = self.seconds.unwrap_or(effort.seconds);
        if self.against.is_some() {
            effort = effort.even();
        }
        let wires = match (self.wire.as_slice(), self.quick) {
            ([], true) => vec![Wire::Gso],
            ([], false) => vec![Wire::Gso, Wire::Mtu],
            (wires, _) => wires.to_vec(),
        };
        let against = self.against.as_deref().map(other_build).transpose()?;
        let plan = Plan { rows, columns, wires, rules: self.rules, against, effort };
        if plan.measurable().is_empty() {
            bail!("without rules there are no services: --rules");
        }
        Ok(plan)
    }

    /// The file with all of the run as Markdown.
    fn run_file(&self, report: &Report) -> Option<PathBuf> {
        let overview = self.markdown.as_ref()?;
        Some(overview.with_extension("").join(format!("{}.md", markdown::day(report))))
    }

    /// The plot's file.
    fn plot_file(&self, report: &Report, wire: Wire) -> PathBuf {
        let run = self.run_file(report);
        let base = self.plot.as_ref().or(run.as_ref()).unwrap_or(&self.json);
        let base = base.with_extension("");
        let name = base.file_name().unwrap_or_default().to_string_lossy();
        base.with_file_name(format!("{name}-{}.svg", wire.name()))
    }
}

/// Whole path of another build, for commands that run elsewhere.
fn other_build(program: &Path) -> Result<PathBuf> {
    if std::env::var_os("FLANNEL_EBPF_OBJECT").is_some() {
        bail!("FLANNEL_EBPF_OBJECT would give both builds the same programs");
    }
    let path = program.canonicalize().with_context(|| program.display().to_string())?;
    let answer = Command::new(&path).arg("--version").output();
    let answer = answer.with_context(|| path.display().to_string())?;
    if !answer.status.success() {
        bail!("{} --version: {}", path.display(), answer.status);
    }
    Ok(path)
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    match &cli.other {
        Some(Other::Control(plan)) => return control_plane(plan),
        Some(Other::Functions(plan)) => return plan.run(),
        None => {}
    }
    if cli.list {
        list();
        return Ok(());
    }
    let report = match &cli.from {
        Some(file) => serde_json::from_str(&read(file)?).context(file.display().to_string())?,
        None => measure(&cli)?,
    };
    println!("{}", table::text(&report));
    for wired in &report.wires {
        let file = cli.plot_file(&report, wired.wire);
        write(&file, &plot::svg(&report, wired))?;
        println!("Plot: {}", file.display());
    }
    if let (Some(overview), Some(run)) = (&cli.markdown, cli.run_file(&report)) {
        write_markdown(&cli, &report, overview, &run)?;
    }
    Ok(())
}

/// Writes the overview's table, and the document with all of the run.
fn write_markdown(cli: &Cli, report: &Report, overview: &Path, run: &Path) -> Result<()> {
    let beside = |wire| {
        let plot = cli.plot_file(report, wire);
        let own = run.parent() == plot.parent();
        let name = plot.file_name().filter(|_| own).map(PathBuf::from);
        name.unwrap_or(plot).display().to_string()
    };
    write(run, &markdown::whole(report, beside))?;
    let parent = overview.parent().unwrap_or(Path::new(""));
    let name = run.strip_prefix(parent).unwrap_or(run).display().to_string();
    let summary = markdown::summary(report, &name);
    let document = if overview.exists() { read(overview)? } else { String::new() };
    write(overview, &markdown::replace(&document, &summary).unwrap_or(summary))?;
    println!("Markdown: {} and {}", overview.display(), run.display());
    Ok(())
}

fn control_plane(plan: &control::Plan) -> Result<()> {
    interrupt::clean_up();
    let rows = plan.run(|what| eprintln!("bench control: {what}"));
    write(&plan.json, &(serde_json::to_string_pretty(&rows)? + "\n"))?;
    println!("{}\nAll numbers: {}", rows.text(), plan.json.display());
    if let Some(file) = &plan.markdown {
        let table = rows.markdown();
        let document = if file.exists() { read(file)? } else { String::new() };
        write(file, &markdown::replace(&document, &table).unwrap_or(table))?;
        println!("Markdown: {}", file.display());
    }
    Ok(())
}

fn list() {
    println!("Rows (backend; agent on the client's node; on the server's node):");
    for row in ROWS {
        let (left, right) = (row.setup.left.join(" "), row.setup.right.join(" "));
        let rule = row.setup.beside.map(|beside| format!("; {}", beside.text()));
        let rule = rule.unwrap_or_default();
        println!("  {:<18}{}; {left}; {right}{rule}", row.title, row.setup.backend);
    }
    println!("Columns (unit; load):");
    for column in COLUMNS {
        println!("  {:<22}{:<10}{}", column.title, column.unit, column.load);
    }
}

fn measure(cli: &Cli) -> Result<Report> {
    let plan = cli.plan()?;
    interrupt::clean_up();
    let quoted = |word: String| if word.contains(' ') { format!("'{word}'") } else { word };
    let words = std::env::args().skip(1).map(quoted);
    let command: Vec<_> =
        ["cargo", "xtask", "bench"].map(str::to_owned).into_iter().chain(words).collect();
    let report = plan.run(&command.join(" "), |what| eprintln!("bench: {what}"));
    write(&cli.json, &(serde_json::to_string_pretty(&report)? + "\n"))?;
    println!("All numbers: {}", cli.json.display());
    Ok(report)
}

fn read(file: &Path) -> Result<String> {
    fs::read_to_string(file).with_context(|| file.display().to_string())
}

fn write(file: &Path, text: &str) -> Result<()> {
    if let Some(dir) = file.parent() {
        fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
    }
    fs::write(file, text).with_context(|| file.display().to_string())
}
