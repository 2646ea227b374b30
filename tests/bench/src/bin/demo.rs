//! `flannel-demo`: three nodes whose pods talk, step by step, under a minute.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use anyhow::Result;
use clap::Parser;
use flannel_bench::columns::columns;
use flannel_bench::kept::{self, Kept, Room};
use flannel_bench::rows::{EBPF, HOST, KERNEL, rows};
use flannel_bench::wire::Wire;
use flannel_bench::{Effort, Plan, table};
use flannel_tests::agent::{Options, program};
use flannel_tests::etcd::{Etcd, PREFIX};
use flannel_tests::hooks;
use flannel_tests::interrupt;
use flannel_tests::lab::Lab;
use flannel_tests::load::{BULK, SPACED};
use flannel_tests::node::Node;
use flannel_tests::pod::Pod;
use flannel_tests::process::run;
use flannel_tests::rules::Rules;

#[derive(Parser)]
#[command(about = "Show three nodes in network namespaces whose pods talk through eBPF")]
struct Cli {
    /// Leave out the side-by-side of kernel path and eBPF path
    #[arg(long)]
    no_bench: bool,
    /// Leave nodes and pods running, without the side-by-side
    #[arg(long, conflicts_with_all = ["remove", "shell"])]
    keep: bool,
    /// Remove what --keep has left
    #[arg(long, conflicts_with = "shell")]
    remove: bool,
    /// A shell in a node or pod of a kept demo, such as nodeA or podB, or a command
    /// there
    #[arg(long, value_name = "NAME")]
    shell: Option<String>,
    /// The process that a kept demo ends with
    #[arg(long, hide = true)]
    hold: bool,
    /// Where a kept demo is written down
    #[arg(long, hide = true, default_value = kept::STATE)]
    state: PathBuf,
    /// The command for --shell
    #[arg(requires = "shell", trailing_var_arg = true, allow_hyphen_values = true)]
    words: Vec<String>,
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    if let Some(name) = &cli.shell {
        return kept::enter(name, &cli.words, &cli.state).map(|_| ());
    }
    if cli.remove {
        kept::remove(&cli.state)?;
        println!("Everything is removed.");
        return Ok(());
    }
    if cli.keep {
        return keep(&cli);
    }
    interrupt::clean_up();
    if cli.hold {
        return hold(&cli);
    }
    let start = Instant::now();
    talk();
    if !cli.no_bench {
        side_by_side();
    }
    step("Done");
    println!("  Everything is removed again ({:.0} s).", start.elapsed().as_secs_f64());
    Ok(())
}

/// Starts the process that holds the demo, and says how to get in.
fn keep(cli: &Cli) -> Result<()> {
    let kept = kept::start(&std::env::current_exe()?, &["--hold"], &cli.state)?;
    step("It is left running");
    println!("  cargo xtask shell NAME          a shell in {}", kept.names().join(", "));
    println!("  cargo xtask shell nodeA flannel-agent peers");
    println!("  cargo xtask shell podA sh -c 'ping -c 3 $podB'");
    println!("  cargo xtask demo --remove       ends all of it");
    Ok(())
}

/// Holds the demo until a signal comes.
fn hold(cli: &Cli) -> Result<()> {
    let scene = talk();
    Kept::write(scene.rooms(), &cli.state)?;
    // Whoever waits for the end of our output sees it now.
    let null = std::fs::File::options().write(true).open("/dev/null")?;
    nix::unistd::dup2_stdout(&null)?;
    nix::unistd::dup2_stderr(&null)?;
    loop {
        std::thread::park();
    }
}

/// What the demo is made of.
struct Scene {
    // First, so that they go before the nodes.
    pods: [Pod; 3],
    nodes: [Node; 3],
    etcd: Etcd,
    _lab: Lab,
}

impl Scene {
    /// nodeA to nodeC, podA to podC, with what a shell there wants to know.
    fn rooms(&self) -> BTreeMap<String, Room> {
        let mut common = BTreeMap::from([
            ("ETCDCTL_API".to_owned(), "3".to_owned()),
            ("ETCDCTL_ENDPOINTS".to_owned(), self.etcd.endpoint()),
        ]);
        for (letter, (node, pod)) in ('A'..).zip(self.nodes.iter().zip(&self.pods)) {
            common.insert(format!("node{letter}"), node.address.to_string());
            common.insert(format!("pod{letter}"), pod.address.to_string());
        }
        if let Some(dir) = program().parent() {
            let path = std::env::var("PATH").unwrap_or_default();
            common.insert("PATH".to_owned(), format!("{}:{path}", dir.display()));
        }
        let mut rooms = BTreeMap::new();
        for (letter, (node, pod)) in ('A'..).zip(self.nodes.iter().zip(&self.pods)) {
            let own = [
                ("FLANNELD_STATE_DIR", node.state_dir()),
                ("FLANNELD_SUBNET_FILE", node.subnet_file()),
                ("FLANNELD_PIN_DIR", node.pin_dir().to_path_buf()),
            ];
            let own = own.map(|(name, path)| (name.to_owned(), path.display().to_string()));
            let environment = common.clone().into_iter().chain(own).collect();
            rooms.insert(format!("node{letter}"), Room { netns: node.netns.path(), environment });
            let environment = common.clone();
            rooms.insert(format!("pod{letter}"), Room { netns: pod.netns.path(), environment });
        }
        rooms
    }
}

fn step(title: &str) {
    println!("\n\u{1b}[1m== {title}\u{1b}[0m");
}

/// A text of several lines, set in.
fn show(text: &str) {
    for line in text.trim_end().lines() {
        println!("    {line}");
    }
}

fn talk() -> Scene {
    step("An underlay 192.0.2.0/24 with three nodes, each a network namespace, and a real etcd");
    let lab = Lab::new();
    let etcd = lab.etcd();
    show(&etcd.ctl(&["get", &format!("{PREFIX}/config")]));
    let mut nodes = [lab.node(1), lab.node(2), lab.node(3)];

    step("Nodes 1 and 2 run flannel-agent");
    println!("  {} --etcd-endpoints={} --iface=eth0", program().display(), etcd.endpoint());
    for node in &mut nodes[..2] {
        node.start(&etcd, &Options::ebpf());
        println!("  {}: ready, subnet {}", node.address, node.subnet());
    }

    step("Node 3 is plain Linux: flannel.1 made with iproute2, its lease written with etcdctl");
    nodes[2].make_plain(&etcd, "10.244.250.0/24");
    nodes[2].sync_plain(&etcd);
    let [first, second, third] = &nodes;
    for node in [first, second] {
        node.wait_routes(&others(&nodes, node));
    }
    show(&etcd.ctl(&["get", "--prefix", &format!("{PREFIX}/subnets/")]));
    println!("  What node 1 made of it:");
    show(&first.netns.ip("route show dev flannel.1"));

    step("A pod on every node: a namespace on the bridge cni0, as docker and CNI make them");
    let mut pods = [first.pod(2), second.pod(2), third.pod(2)];
    for pod in &mut pods {
        pod.serve();
        println!("  pod {}", pod.address);
    }

    step("Pods ping each other (ttl=62: two routers, as with flannel)");
    for (from, to) in [(0, 1), (1, 0), (0, 2), (2, 1)] {
        let text = pods[from].ping(pods[to].address, "-c 2 -i 0.2 -W 2");
        show(text.lines().nth(2).unwrap_or_default());
    }

    step("TCP and UDP both ways, random data checked at both ends");
    for (from, to) in [(0, 1), (1, 0), (0, 2), (2, 0)] {
        checked(&pods[from], &pods[to]);
    }

    step("flannel-agent status, on node 1");
    show(&run(&mut first.agent_command("status")));
    step("flannel-agent peers, on node 1");
    show(&run(&mut first.agent_command("peers")));

    step("The map of subnets that the programs of node 1 read: bpftool map dump");
    let pins = hooks::pins(first.pin_dir());
    if let Some(map) = pins.iter().find(|pin| pin.ends_with("fl_subnets4")) {
        println!("  bpftool map dump pinned {}", map.display());
        show(&run(Command::new("bpftool").args(["map", "dump", "pinned"]).arg(map)));
    }
    Scene { pods, nodes, etcd, _lab: lab }
}

fn others<'a>(nodes: &'a [Node; 3], than: &Node) -> Vec<&'a Node> {
    nodes.iter().filter(|node| node.address != than.address).collect()
}

fn checked(from: &Pod, to: &Pod) {
    let target = to.target();
    let bulk = from.traffic(BULK, target, "--megabytes 20");
    let spaced = from.traffic(SPACED, target, "--seconds 0.5");
    println!(
        "  {} <-> {}: TCP 20 MB each way, {} corrupt; UDP one packet per ms, {} of {} lost",
        from.address, to.address, bulk.corrupt, spaced.lost, spaced.sent
    );
}

fn side_by_side() {
    step("Kernel path against eBPF path, one short round (figures: cargo xtask bench)");
    let plan = Plan {
        rows: rows(&[HOST, KERNEL, EBPF]),
        columns: columns(&["TCP RR", "TCP CRR", "UDP 64 B", "TCP 4"]),
        wires: vec![Wire::Gso],
        rules: Rules::default(),
        against: None,
        effort: Effort::GLANCE,
    };
    show(&table::text(&plan.run("cargo xtask demo", |_| {})));
}
