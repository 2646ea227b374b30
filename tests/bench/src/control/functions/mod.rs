//! Which functions of the agent run: at rest, when something happens, at a start. The
//! linker lays them side by side (`packaging/ordered-gcc`), so that the rest of the program is
//! not in memory: the kernel maps 64 kB around each page that is touched.

mod symbols;
mod tracer;

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use flannel_tests::agent::program;
use flannel_tests::interrupt;
use flannel_tests::netns::Netns;
use flannel_tests::node::Node;

use self::symbols::Symbols;
use self::tracer::Tracer;
use super::bed::{Agent, Bed};
use super::store::Paper;

/// What the agent does meanwhile.
#[derive(Clone, Debug, clap::Args)]
pub struct Plan {
    /// File for the names
    #[arg(long, default_value = "packaging/functions")]
    out: PathBuf,
    /// Seconds of looking at an idle agent
    #[arg(long, default_value_t = 15)]
    idle: u64,
    /// Only this: print what the process calls whose id comes on standard input, until
    /// it ends
    #[arg(long, hide = true)]
    follow: bool,
}

/// Leases that a start finds.
const LEASES: u32 = 200;
/// After this long an agent has nothing left to do.
const SETTLED: Duration = Duration::from_secs(3);
/// What one that follows says when it knows the functions, and when it follows.
const READY: &str = "ready";
/// What the file begins with.
const HEAD: &str = "\
# Functions that the agent runs at rest, then those of usual events, then those of a start:
# their symbols without hashes. Written by `cargo xtask bench functions`;
# packaging/ordered-gcc lays them side by side. A name that is missing costs memory only.
";

impl Plan {
    /// Writes the file.
    ///
    /// # Errors
    /// The agent cannot be followed.
    pub fn run(&self) -> Result<()> {
        let agent = program();
        if self.follow {
            // This takes longer than a start.
            let symbols = Symbols::of(&agent)?;
            println!("{READY}");
            let mut pid = String::new();
            std::io::stdin().read_line(&mut pid).context("standard input")?;
            let pid = pid.trim().parse().context("a process id")?;
            let tracer = Tracer::attach(pid, &symbols)?;
            println!("{READY}");
            return tracer.follow(|name| println!("{name}"));
        }
        interrupt::clean_up();
        let papers: Vec<Paper> = (0..LEASES).map(Paper::new).collect();
        let mut bed = Bed::new(&papers);
        let [rest, events] = self.running(&mut bed)?;
        let start = starting(&mut bed)?;
        let mut text = HEAD.to_owned();
        let mut known = BTreeSet::new();
        for (title, mut names) in [("at rest", rest), ("events", events), ("a start", start)] {
            names.retain(|name| known.insert(name.clone()));
            names.sort();
            println!("{title}: {} functions", names.len());
            text.push_str(&format!("# {title}\n"));
            names.iter().for_each(|name| text.push_str(&format!("{name}\n")));
        }
        fs::write(&self.out, text).with_context(|| self.out.display().to_string())?;
        println!("{}", self.out.display());
        Ok(())
    }

    /// What an agent calls that rests, and then when leases, pods and readers come.
    fn running(&self, bed: &mut Bed) -> Result<[Vec<String>; 2]> {
        let node = bed.node();
        let agent = Agent::exec(&node, &bed.etcd);
        agent.ready();
        node.bridge();
        std::thread::sleep(SETTLED);
        let followed = Tracing::start()?.follow(agent.pid())?;
        std::thread::sleep(Duration::from_secs(self.idle));
        let rest = followed.so_far();
        events(bed, &node);
        std::thread::sleep(SETTLED);
        let events = followed.so_far();
        agent.stop();
        Ok([rest, events])
    }
}

/// What an agent calls until it is ready and has looked at everything.
fn starting(bed: &mut Bed) -> Result<Vec<String>> {
    let node = bed.node();
    let tracing = Tracing::start()?;
    let agent = Agent::exec(&node, &bed.etcd);
    let followed = tracing.follow(agent.pid())?;
    agent.ready();
    std::thread::sleep(SETTLED);
    let called = followed.so_far();
    agent.stop();
    Ok(called)
}

fn events(bed: &Bed, node: &Node) {
    let other = [Paper { node: LEASES + 1, ..Paper::new(0) }];
    bed.store.fill(&other);
    bed.store.fill(&other);
    bed.store.remove(&[Paper::new(1)]);
    bed.store.fill(&[Paper::new(1)]);
    let pods = Netns::new(&format!("{}-pods", node.netns.name()));
    for name in ["pod1", "pod2"] {
        let peer = pods.name();
        node.netns.ip(&format!("link add {name} type veth peer name {name} netns {peer}"));
        node.netns.ip(&format!("link set {name} master cni0 up"));
    }
    std::thread::sleep(SETTLED);
    node.netns.ip("link delete pod1");
    node.status();
    node.netns.ip(&format!("route delete {}", Paper::new(2).subnet));
    node.netns.ip("link set flannel.1 mtu 1400");
}

/// Another process, since one that follows waits for all of its children.
struct Tracing {
    process: Child,
    names: Receiver<String>,
}

impl Tracing {
    /// Starts one that is ready to follow.
    fn start() -> Result<Self> {
        let own = std::env::current_exe().context("this program")?;
        let mut command = Command::new(own);
        command.args(["functions", "--follow"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().context("start flannel-bench")?;
        let lines = process.stdout.take().context("its output")?;
        let (sender, names) = channel();
        std::thread::spawn(move || {
            // It ends with the agent.
            for line in BufReader::new(lines).lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        let tracing = Self { process, names };
        tracing.ready()?;
        Ok(tracing)
    }

    fn ready(&self) -> Result<()> {
        let line = self.names.recv().context("flannel-bench ended")?;
        ensure!(line == READY, "flannel-bench said {line:?}");
        Ok(())
    }

    fn follow(mut self, pid: u32) -> Result<Self> {
        let mut input = self.process.stdin.take().context("its input")?;
        writeln!(input, "{pid}").context("tell flannel-bench the process")?;
        self.ready()?;
        Ok(self)
    }

    /// Names that are new since the last time.
    fn so_far(&self) -> Vec<String> {
        self.names.try_iter().collect()
    }
}

impl Drop for Tracing {
    fn drop(&mut self) {
        // The agent has ended, and so has this, unless something failed.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
