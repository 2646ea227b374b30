//! The same packets over both paths, and what differs.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::thread;
use std::time::Duration;

use super::compare::{Seen, Tap, key, without_checksum};
use super::exceptions::Exception;
use super::generate::{Generator, Oddities, Sender, Step};
use super::lane::Lane;
use super::ports::Ports;
use crate::agent::{Options, Outcomes};
use crate::rules::Rules;

/// Packets that are under way at a time: fewer than the kernel queues for a CPU
/// (`net.core.netdev_max_backlog`).
const BATCH: usize = 400;
/// What is waited for stragglers before a difference counts.
const STRAGGLERS: Duration = Duration::from_millis(200);
/// Share of the packets that has to take the fast path: otherwise nothing was
/// compared.
const FAST_SHARE: f64 = 0.3;
/// At most one packet of so many may be an exception (2 or 3 in 1000 are).
const MOST_EXCEPTED: usize = 100;
/// Differences that are kept; the rest is counted.
const KEPT: usize = 2000;

/// A packet of which the paths made something different.
#[derive(Clone, Debug)]
pub struct Difference {
    /// Its place in the sequence.
    pub place: usize,
    /// The packet.
    pub step: Step,
    /// What the kernel path made of it.
    pub kernel: Vec<(Tap, Vec<u8>)>,
    /// What the eBPF path made of it.
    pub ebpf: Vec<(Tap, Vec<u8>)>,
}

/// What came of a run.
#[derive(Debug, Default)]
pub struct Report {
    /// Seed of the sequence.
    pub seed: u64,
    /// Packets sent on each path.
    pub packets: usize,
    /// Those of pods.
    pub by_pods: usize,
    /// Those of pods that are plain.
    pub plain: usize,
    /// Those of them that our programs encapsulated, on the fast path or past
    /// the kernel's device.
    pub plain_ours: usize,
    /// Counters of the eBPF path.
    pub outcomes: Outcomes,
    /// What differed and is no exception.
    pub differences: Vec<Difference>,
    /// Their number.
    pub differing: usize,
    /// What differed and may.
    pub excepted: BTreeMap<Exception, usize>,
    /// Source ports of tunnels on the kernel path.
    pub kernel_ports: Ports,
    /// Source ports of tunnels on the eBPF path.
    pub ebpf_ports: Ports,
}

/// Both paths, ready.
pub struct Differential {
    kernel: Lane,
    ebpf: Lane,
}

impl Differential {
    /// Makes four nodes.
    ///
    /// # Panics
    /// They do not come up.
    pub fn new(rules: Rules) -> Self {
        let off =
            |options: Options| Options { verify_source: Some("off"), ip_masq: true, ..options };
        Self {
            kernel: Lane::new(&off(Options::kernel()), rules, 0),
            ebpf: Lane::new(&off(Options::ebpf()), rules, 1),
        }
    }

    /// Sends the same packets over both; `progress` hears of each batch.
    ///
    /// # Panics
    /// Plain packets do not arrive any more.
    pub fn run(&self, packets: usize, seed: u64, mut progress: impl FnMut(&Report)) -> Report {
        let before = self.ebpf.outcomes();
        let mut report = Report { seed, ..Report::default() };
        let mut generator = Generator::new(seed);
        while report.packets < packets {
            let batch = BATCH.min(packets - report.packets);
            let steps: Vec<_> = generator.by_ref().take(batch).collect();
            self.batch(&steps, &mut report);
            progress(&report);
        }
        report.outcomes = self.ebpf.outcomes().since(&before);
        report
    }

    fn batch(&self, steps: &[Step], report: &mut Report) {
        let mut ours: Vec<u16> = Vec::new();
        let Report { kernel_ports, ebpf_ports, .. } = report;
        let mut kernel_frame = |frame: &[u8]| kernel_ports.add(frame);
        let mut ebpf_frame = |frame: &[u8]| {
            ebpf_ports.add(frame);
            if without_checksum(frame) {
                ours.extend(key(frame));
            }
        };
        let (mut kernel, mut ebpf) = thread::scope(|scope| {
            let kernel = scope.spawn(|| self.kernel.send(steps, &mut kernel_frame));
            let ebpf = scope.spawn(|| self.ebpf.send(steps, &mut ebpf_frame));
            let join = |lane: thread::ScopedJoinHandle<'_, Seen>| {
                lane.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            (join(kernel), join(ebpf))
        });
        let equal = |kernel: &Seen, ebpf: &Seen, step: &Step| {
            kernel.made_of(step.key, step.sender) == ebpf.made_of(step.key, step.sender)
        };
        if !steps.iter().all(|step| equal(&kernel, &ebpf, step)) {
            thread::sleep(STRAGGLERS);
            self.kernel.collect(&mut kernel, &mut kernel_frame);
            self.ebpf.collect(&mut ebpf, &mut ebpf_frame);
        }
        ours.sort_unstable();
        for (index, step) in steps.iter().enumerate() {
            if matches!(step.sender, Sender::Pod(_)) {
                report.by_pods += 1;
                if step.oddities.none() {
                    report.plain += 1;
                    report.plain_ours += usize::from(ours.binary_search(&step.key).is_ok());
                }
            }
            report.judge(
                index,
                step,
                kernel.made_of(step.key, step.sender),
                ebpf.made_of(step.key, step.sender),
            );
        }
        report.packets += steps.len();
    }
}

impl Report {
    fn judge(
        &mut self,
        index: usize,
        step: &Step,
        kernel: Vec<(Tap, Vec<u8>)>,
        ebpf: Vec<(Tap, Vec<u8>)>,
    ) {
        if kernel == ebpf {
            return;
        }
        let reason = Exception::ALL.iter().find(|reason| reason.covers(step, &kernel, &ebpf));
        if let Some(reason) = reason {
            *self.excepted.entry(*reason).or_default() += 1;
            return;
        }
        self.differing += 1;
        if self.differences.len() < KEPT {
            let place = self.packets + index;
            self.differences.push(Difference { place, step: step.clone(), kernel, ebpf });
        }
    }

    /// Share (0..=1) of all packets of pods, odd ones included, that took the
    /// fast path outwards.
    pub fn encap_share(&self) -> f64 {
        self.outcomes.get("fast_encap") as f64 / self.by_pods.max(1) as f64
    }

    /// Share (0..=1) of all packets, odd ones included, that took the fast path
    /// inwards.
    pub fn decap_share(&self) -> f64 {
        self.outcomes.get("fast_decap") as f64 / self.packets.max(1) as f64
    }

    /// Whether both paths did the same, on the fast path too.
    pub fn good(&self) -> bool {
        self.differing == 0
            && self.ebpf_ports.unsteady() == 0
            && self.excepted.values().sum::<usize>() * MOST_EXCEPTED <= self.packets
            && self.encap_share() >= FAST_SHARE
            && self.decap_share() >= FAST_SHARE
    }

    /// For people: counts, and the shortest packet that differs.
    pub fn text(&self) -> String {
        let mut text = format!(
            "seed {}: {} packets on each path, {} differ\n{:.1} % of the pods' packets took the \
             fast path outwards, {:.1} % of all packets inwards; of {} plain ones of pods our \
             programs encapsulated {}\n",
            self.seed,
            self.packets,
            self.differing,
            100.0 * self.encap_share(),
            100.0 * self.decap_share(),
            self.plain,
            self.plain_ours,
        );
        for (exception, count) in &self.excepted {
            let _ = writeln!(text, "{count:8} x excepted: {}", exception.text());
        }
        let (flows, other) = self.kernel_ports.compare(&self.ebpf_ports);
        let _ = writeln!(
            text,
            "{flows} flows on the underlay, {other} with another source port than on the kernel path, \
             {} with more than one, {} on the kernel path",
            self.ebpf_ports.unsteady(),
            self.kernel_ports.unsteady()
        );
        let mut kinds: BTreeMap<&Oddities, usize> = BTreeMap::new();
        for difference in &self.differences {
            *kinds.entry(&difference.step.oddities).or_default() += 1;
        }
        for (oddities, count) in kinds {
            let _ = writeln!(text, "{count:8} x {oddities:?}");
        }
        let shortest = self.differences.iter().min_by_key(|difference| {
            let frames = &difference.step.frames;
            (frames.len(), frames.iter().map(Vec::len).sum::<usize>())
        });
        if let Some(difference) = shortest {
            let _ = writeln!(text, "the shortest:\n{}", difference.text());
        }
        text
    }
}

impl Difference {
    /// The packet and what came of it, in hex.
    pub fn text(&self) -> String {
        let mut text = format!(
            "packet {} of the sequence, from {:?}, {:?}\n",
            self.place, self.step.sender, self.step.oddities
        );
        for frame in self.step.frames.iter().take(3) {
            let _ = writeln!(text, "  sent            {}", hex(frame));
        }
        for (path, frames) in [("kernel", &self.kernel), ("eBPF", &self.ebpf)] {
            for (tap, frame) in frames {
                let _ = writeln!(text, "  {path:6} {tap:?} {}", hex(frame));
            }
            if frames.is_empty() {
                let _ = writeln!(text, "  {path:6} nothing");
            }
        }
        text
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(fast: u64) -> Report {
        let counts = [("fast_encap".to_owned(), fast), ("fast_decap".to_owned(), fast)];
        let outcomes = Outcomes(counts.into());
        Report { seed: 77, packets: 100, by_pods: 100, outcomes, ..Report::default() }
    }

    #[test]
    fn what_differs_is_told_in_hex_the_shortest_first() {
        let mut report = Report { packets: 10_000, ..report(10_000) };
        let mut steps: Vec<_> = Generator::new(1).take(50).collect();
        for (index, step) in steps.iter().enumerate() {
            let same = vec![(Tap::RightPod, vec![1])];
            report.judge(index, step, same.clone(), same);
        }
        assert!(report.good(), "{}", report.text());
        for (index, step) in steps.iter().enumerate() {
            report.judge(index, step, Vec::new(), vec![(Tap::Cable, vec![0xab, 0xcd])]);
        }
        let excepted: usize = report.excepted.values().sum();
        assert_eq!(report.differing + excepted, 50);
        assert!(!report.good());
        steps.retain(|step| report.differences.iter().any(|other| other.step.key == step.key));
        let length = |step: &Step| (step.frames.len(), step.frames.concat().len());
        let shortest = steps.iter().map(length).min().expect("some differ");
        let text = report.text();
        let sent = text.lines().find_map(|line| line.strip_prefix("  sent            "));
        assert_eq!(sent.map(|hex| hex.len() / 2), Some(shortest.1), "{text}");
        assert!(text.contains("seed 77:"), "{text}");
        assert!(text.contains("  kernel nothing\n  eBPF   Cable abcd\n"), "{text}");
    }

    #[test]
    fn nothing_is_good_that_the_kernel_path_carried_alone() {
        assert!(report(30).good());
        assert!(!report(29).good());
    }
}
