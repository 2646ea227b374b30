//! The agent's udp proxy and one of one thread and one packet at a time, in
//! turns, on the same nodes. Only ratios within a run mean something.

use std::time::Duration;

use flannel_tests::agent::Options;
use flannel_tests::lab::Lab;
use flannel_tests::node::Node;
use flannel_tests::pair::Pair;
use flannel_tests::wait;

use super::columns::{Field, Load, LoadResult, RR, TCP_1, TCP_4, UDP_64, UDP_1400};

const NETWORK: &str = "10.2.0.0/16";
const LOADS: &[(&str, &str, Load, Field)] = &[
    ("TCP, 1 connection", "Gbit/s", TCP_1, Field::Gbits),
    ("TCP, 4 connections", "Gbit/s", TCP_4, Field::Gbits),
    ("UDP, 64 bytes", "1/s", UDP_64, Field::Rate),
    ("UDP, 1400 bytes", "1/s", UDP_1400, Field::Rate),
    ("TCP request", "1/s", RR, Field::Rate),
];

/// Two nodes that run one proxy or the other.
struct Bed(Pair);

fn bed() -> Bed {
    let lab = Lab::new();
    let etcd = lab.empty_etcd();
    etcd.put_config(&format!(r#"{{"Network":"{NETWORK}"}}"#));
    let (mut left, mut right) = (lab.node(1), lab.node(2));
    for node in [&mut left, &mut right] {
        node.start(&etcd, &Options::default());
        node.stop_agent();
    }
    Bed(Pair::silent(lab, etcd, left, right))
}

impl Bed {
    fn measure(&self, load: Load, seconds: f64) -> LoadResult {
        let Pair { client, server, .. } = &self.0;
        wait::holds("the tunnel", Duration::from_secs(10), || {
            client.netns.ping(server.address, "-c 1 -W 1").0
        });
        let options = format!("--seconds {seconds} {}", load.options);
        let told = load.kind.run(&client.netns, server.target(), &options);
        told.unwrap_or_else(|error| panic!("{load}: {error}"))
    }

    fn ours(&mut self, seconds: f64) -> Vec<f64> {
        let Pair { left, right, etcd, .. } = &mut self.0;
        left.start(etcd, &Options::default());
        right.start(etcd, &Options::default());
        let figures = self.all(seconds);
        self.0.left.stop_agent();
        self.0.right.stop_agent();
        figures
    }

    fn simple(&mut self, seconds: f64) -> Vec<f64> {
        let way = |node: &Node| (node.subnet(), node.address);
        let Pair { left, right, .. } = &self.0;
        for node in [left, right] {
            node.netns.ip("link del flannel0");
        }
        let _left = left.start_simple(NETWORK, &[way(right)]);
        let _right = right.start_simple(NETWORK, &[way(left)]);
        self.all(seconds)
    }

    fn all(&self, seconds: f64) -> Vec<f64> {
        let one = |(.., load, field): &(_, _, Load, Field)| {
            field.of(&self.measure(*load, seconds)).unwrap_or(f64::NAN)
        };
        LOADS.iter().map(one).collect()
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Measures and prints the table.
///
/// # Panics
/// A node cannot be set up.
pub fn run(rounds: usize, seconds: f64) {
    let mut bed = bed();
    let (mut ours, mut simple) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        ours.push(bed.ours(seconds));
        simple.push(bed.simple(seconds));
    }
    println!("{:<22}{:>8}{:>14}{:>14}{:>8}", "", "", "simple", "agent", "ratio");
    for (index, (title, unit, ..)) in LOADS.iter().enumerate() {
        let of = |all: &[Vec<f64>]| median(all.iter().map(|figures| figures[index]).collect());
        let (simple, ours) = (of(&simple), of(&ours));
        println!("{title:<22}{unit:>8}{simple:>14.2}{ours:>14.2}{:>8.2}", ours / simple);
    }
}
