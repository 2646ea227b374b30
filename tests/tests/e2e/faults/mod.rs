//! Faults, injected into a running cluster, one after the other and many at once.
//!
//! Each row of the table ([`rows`]) says what it may cost: how many packets of a
//! stream with one each millisecond are lost, and after how long the kernel's tables
//! are again what the leases say ([`tables`]). Status and `/readyz` have to name what
//! lasts, and nothing when it is over. A connection by TCP has to live through all.
//!
//! `cargo xtask test --faults` runs the long form: rows that take a minute, the
//! kernel path too, and many random sequences. It prints its seed, and takes one with
//! `--seed`. It follows each step ([`steps`]). One that does not hold is tried once more
//! with a new cluster, and is told of even if it holds then.

mod cluster;
mod fault;
mod rows;
mod steps;
mod tables;

use std::panic::{self, AssertUnwindSafe};

use flannel_tests::agent::Options;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};

use self::cluster::Cluster;
use self::fault::{Fault, happen};
use self::steps::Steps;

/// Random faults of the short form and of the long one.
const RANDOM: [usize; 2] = [6, 150];
/// Random pairs of what lasts.
const PAIRS: [usize; 2] = [0, 30];

/// An agent puts its lease right so often at once. Then it waits, and says why.
const REWRITES: usize = 3;

/// Whether the long form was asked for.
fn long() -> bool {
    std::env::var("FLANNEL_FAULTS").is_ok_and(|value| value == "long")
}

/// A lease as flannel writes it.
fn lease(public_ip: &str, mac: &str) -> String {
    format!(
        r#"{{"PublicIP":"{public_ip}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{mac}"}}}}"#
    )
}

/// Lets groups of faults happen one after the other. One that does not hold takes
/// its cluster with it, and the next ones get a new one.
#[track_caller]
fn suite(options: &Options, groups: Vec<Vec<Fault>>) {
    let (mut cluster, mut failed) = (None, Vec::new());
    let mut steps = Steps::new(groups.len());
    let path = options.datapath.unwrap_or("auto");
    for faults in groups {
        let names: Vec<_> = faults.iter().map(|fault| fault.name).collect();
        let name = format!("{path}: {}", names.join(" + "));
        let mut ended = attempt(&mut cluster, options, &faults);
        let mut before = None;
        if long()
            && let Err(why) = ended
        {
            before = Some(why);
            ended = attempt(&mut cluster, options, &faults);
        }
        steps.tell(&name, &ended, before.as_deref());
        failed.extend(ended.err().map(|why| format!("{name}: {why}")));
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

/// Lets faults happen to a cluster, a new one if there is none. A panic is one of this
/// step, and the others have their turn.
fn attempt(
    cluster: &mut Option<Cluster>,
    options: &Options,
    faults: &[Fault],
) -> Result<String, String> {
    let rewrites = faults.iter().filter(|fault| fault.rewrites).count();
    if cluster.as_ref().is_some_and(|cluster| cluster.rewrites + rewrites > REWRITES) {
        *cluster = None;
    }
    let step = AssertUnwindSafe(|| {
        let cluster = cluster.get_or_insert_with(|| Cluster::new(options));
        cluster.rewrites += rewrites;
        happen(cluster, faults)
    });
    let ended = panic::catch_unwind(step).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        Err(text.unwrap_or_else(|| "a panic, see above".to_owned()))
    });
    if let Err(why) = &ended {
        let log = cluster.take().map(|cluster| cluster.pair.left.agent_log());
        println!("{why}\n{}", log.unwrap_or_default());
    }
    ended
}

/// A group of the table, row by row; in the long form on the kernel path, too.
#[track_caller]
fn table(options: &Options, rows: &[Fault]) {
    let only = std::env::var("FLANNEL_FAULT").unwrap_or_default();
    let rows = || {
        let due = rows.iter().filter(|fault| long() || !fault.long);
        due.filter(|fault| fault.name.contains(&only)).copied()
    };
    suite(options, rows().map(|fault| vec![fault]).collect());
    if long() {
        let kernel = Options { datapath: Some("kernel"), ..options.clone() };
        suite(&kernel, rows().filter(|fault| !fault.programs).map(|fault| vec![fault]).collect());
    }
}

#[test]
fn to_the_device() {
    table(&Options::ebpf(), rows::DEVICES);
}

#[test]
fn to_routes_neighbours_and_fdb() {
    table(&Options::ebpf(), rows::ROUTES);
}

#[test]
fn to_programs_maps_and_pins() {
    table(&Options::ebpf(), rows::HOOKS);
}

#[test]
fn to_nftables() {
    table(&Options::ebpf(), rows::RULES);
}

#[test]
fn to_iptables() {
    let extra = vec!["--firewall=iptables".to_owned(), "--resync-interval=1".to_owned()];
    table(&Options { extra, ..Options::ebpf() }, rows::CHAINS);
}

#[test]
fn to_the_config() {
    let extra = vec!["--resync-interval=1".to_owned()];
    table(&Options { extra, ..Options::kernel() }, rows::CONFIG);
}

#[test]
fn to_files() {
    table(&Options::ebpf(), rows::FILES);
}

#[test]
fn to_the_store() {
    table(&Options::ebpf(), rows::STORE);
}

#[test]
fn to_the_agent() {
    table(&Options::ebpf(), rows::PROCESS);
}

#[test]
fn to_the_underlay() {
    table(&Options::ebpf(), rows::UNDERLAY);
}

#[test]
fn to_sysctls() {
    table(&Options::ebpf(), rows::SYSCTLS);
}

#[test]
fn by_others() {
    table(&Options::ebpf(), rows::OTHERS);
}

/// Chance, with a seed that is printed, or the one that was asked for.
fn seeded() -> StdRng {
    let given = std::env::var("FLANNEL_FAULTS_SEED").ok();
    let seed = given.map_or_else(rand::random, |text| text.parse().expect("a seed"));
    println!("--seed {seed}");
    StdRng::seed_from_u64(seed)
}

/// Pairs of faults of which one begins while the other lasts.
#[test]
fn together() {
    suite(&Options::ebpf(), rows::pairs(&mut seeded(), PAIRS[usize::from(long())]));
}

/// Two or three of what happens once and at once, and single ones of all others.
#[test]
fn at_random() {
    let mut random = seeded();
    let all: Vec<Fault> = rows::all().into_iter().filter(|fault| long() || !fault.long).collect();
    let once: Vec<Fault> = all.iter().filter(|fault| fault.lasts == 0).copied().collect();
    let groups = (0..RANDOM[usize::from(long())]).map(|_| {
        if random.random_bool(0.5) {
            let count = random.random_range(2..=3);
            once.choose_multiple(&mut random, count).copied().collect()
        } else {
            all.choose(&mut random).copied().into_iter().collect()
        }
    });
    suite(&Options::ebpf(), groups.collect::<Vec<_>>());
}
