//! `flannel-demo`: three nodes whose pods talk, step by step, under a minute.

use std::process::Command;
use std::time::Instant;

use clap::Parser;
use flannel_bench::columns::columns;
use flannel_bench::rows::{EBPF, HOST, KERNEL, rows};
use flannel_bench::wire::Wire;
use flannel_bench::{Effort, Plan, table};
use flannel_tests::agent::{Options, program};
use flannel_tests::etcd::PREFIX;
use flannel_tests::hooks;
use flannel_tests::interrupt;
use flannel_tests::lab::Lab;
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
}

fn main() {
    let cli = Cli::parse();
    interrupt::clean_up();
    let start = Instant::now();
    talk();
    if !cli.no_bench {
        side_by_side();
    }
    step("Done");
    println!("  Everything is removed again ({:.0} s).", start.elapsed().as_secs_f64());
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

fn talk() {
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
}

fn others<'a>(nodes: &'a [Node; 3], than: &Node) -> Vec<&'a Node> {
    nodes.iter().filter(|node| node.address != than.address).collect()
}

fn checked(from: &Pod, to: &Pod) {
    let target = to.target();
    let bulk = from.traffic(&format!("bulk {target} --megabytes 20"));
    let spaced = from.traffic(&format!("spaced {target} --seconds 0.5"));
    println!(
        "  {} <-> {}: TCP 20 MB each way, {} corrupt; UDP one packet per ms, {} of {} lost",
        from.address, to.address, bulk["corrupt"], spaced["lost"], spaced["sent"]
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
