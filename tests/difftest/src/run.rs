//! The same packets over both paths.

use std::thread;
use std::time::Duration;

use super::compare::{Seen, key, without_checksum};
use super::exceptions::Memory;
use super::generate::{Generator, Step};
use super::lane::{Lane, Spot};
use super::mode::Mode;
use super::report::{Difference, Report};
use super::tally::Sightings;
use flannel_tests::agent::Options;
use flannel_tests::rules::Rules;

/// Packets that are under way at a time: fewer than the kernel queues for a CPU
/// (`net.core.netdev_max_backlog`).
const BATCH: usize = 400;
/// What is waited for stragglers before a difference counts.
const STRAGGLERS: Duration = Duration::from_millis(200);

/// Both paths, ready.
pub struct Differential {
    mode: Mode,
    rules: Rules,
    /// Both lanes take the kernel path.
    control: bool,
    kernel: Lane,
    ebpf: Lane,
}

impl Differential {
    /// Makes four nodes.
    ///
    /// # Panics
    /// They do not come up.
    pub fn new(mode: Mode, rules: Rules) -> Self {
        Self::of(mode, rules, &mode.options(Options::ebpf()), false)
    }

    /// Makes four nodes that all take the kernel path: what differs then has nothing
    /// to do with the programs.
    ///
    /// # Panics
    /// They do not come up.
    pub fn control(mode: Mode, rules: Rules) -> Self {
        Self::of(mode, rules, &Options::kernel(), true)
    }

    fn of(mode: Mode, rules: Rules, compared: &Options, control: bool) -> Self {
        let off = |options: &Options| Options {
            verify_source: Some("off"),
            ip_masq: true,
            ..options.clone()
        };
        Self {
            mode,
            rules,
            control,
            kernel: Lane::new(mode, &off(&Options::kernel()), rules, 0),
            ebpf: Lane::new(mode, &off(compared), rules, 1),
        }
    }

    /// Sends the same packets over both; `progress` hears of each batch.
    ///
    /// # Panics
    /// Plain packets do not arrive any more.
    pub fn run(&mut self, packets: usize, seed: u64, progress: impl FnMut(&Report)) -> Report {
        self.send(Generator::new(self.mode, seed).take(packets), seed, progress)
    }

    /// Sends these packets of a sequence over both.
    ///
    /// # Panics
    /// As `run`.
    pub fn send(
        &mut self,
        mut steps: impl Iterator<Item = Step>,
        seed: u64,
        mut progress: impl FnMut(&Report),
    ) -> Report {
        let before = self.ebpf.outcomes();
        let mut report = Report { mode: self.mode, seed, ..Report::default() };
        let mut memory = Memory::new(self.mode, self.rules);
        loop {
            let batch: Vec<Step> = steps.by_ref().take(BATCH).collect();
            if batch.is_empty() {
                break;
            }
            self.batch(&batch, &mut report, &mut memory);
            progress(&report);
        }
        report.outcomes = self.ebpf.outcomes().since(&before);
        report
    }

    fn batch(&mut self, steps: &[Step], report: &mut Report, memory: &mut Memory) {
        let mut ours: Vec<u16> = Vec::new();
        let mut sightings = Sightings::default();
        let Report { kernel_ports, ebpf_ports, .. } = report;
        let mut kernel_frame = |spot: Spot, frame: &[u8]| {
            if spot.is_cable() {
                kernel_ports.add(frame);
            }
        };
        let mut ebpf_frame = |spot: Spot, frame: &[u8]| {
            if spot.is_cable() {
                ebpf_ports.add(frame);
                if without_checksum(frame) {
                    ours.extend(key(frame));
                }
            }
            sightings.add(spot, key(frame));
        };
        let Self { kernel: kernel_lane, ebpf: ebpf_lane, .. } = self;
        let (mut kernel, mut ebpf) = thread::scope(|scope| {
            let kernel = scope.spawn(|| kernel_lane.send(steps, &mut kernel_frame));
            let ebpf = scope.spawn(|| ebpf_lane.send(steps, &mut ebpf_frame));
            let join = |lane: thread::ScopedJoinHandle<'_, Seen>| {
                lane.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            (join(kernel), join(ebpf))
        });
        let equal = |kernel: &Seen, ebpf: &Seen, step: &Step| {
            kernel.made_of(step.key, step.sender) == ebpf.made_of(step.key, step.sender)
        };
        // What is forgotten after some time depends on the pace: it is the same here.
        if self.control || !steps.iter().all(|step| equal(&kernel, &ebpf, step)) {
            thread::sleep(STRAGGLERS);
            kernel_lane.collect(&mut kernel, &mut kernel_frame);
            ebpf_lane.collect(&mut ebpf, &mut ebpf_frame);
        }
        ours.sort_unstable();
        for (index, step) in steps.iter().enumerate() {
            report.count(step, ours.binary_search(&step.key).is_ok(), &sightings);
            let found = Difference {
                place: report.packets + index,
                step: step.clone(),
                kernel: kernel.made_of(step.key, step.sender),
                ebpf: ebpf.made_of(step.key, step.sender),
            };
            report.judge(found, memory);
        }
        report.packets += steps.len();
    }
}
