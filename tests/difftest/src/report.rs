//! What came of a run, and the words for it. Pure.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::demands::{self, FAST_SHARE};
use super::exceptions::{Exception, Memory, RARE, repeats_invalid};
use super::generate::{Part, Step};
use super::mode::Mode;
use super::oddity::Oddity;
use super::place::{Sender, Tap};
use super::ports::Ports;
use super::signs;
use super::tally::{Sightings, Tally};
use flannel_ebpf::abi::Outcome;
use flannel_tests::told::Outcomes;

/// At most one packet of so many may be an exception (2 or 3 in 1000 are, with
/// rules that drop what is invalid 17).
const MOST_EXCEPTED: usize = 30;
/// Differences that are kept; the rest is counted.
const KEPT: usize = 2000;
/// Packets of each exception that are kept.
const KEPT_EXCEPTED: usize = 20;

/// What both paths made of a packet.
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
    /// What was compared.
    pub mode: Mode,
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
    /// Packets of connections on the fast path.
    pub tally: Tally,
    /// What differed and is no exception.
    pub differences: Vec<Difference>,
    /// Their number.
    pub differing: usize,
    /// Plain packets of connections of which the kernel path did not make what the
    /// rules say.
    pub astray: usize,
    /// The first of them.
    pub stray: Option<Difference>,
    /// What differed in its mark or priority only, while that is not demanded.
    pub signs: usize,
    /// Packets of translated connections that passed as they were after an invalid
    /// one, while that is not demanded otherwise.
    pub untranslated: usize,
    /// What differed and may.
    pub excepted: BTreeMap<Exception, usize>,
    /// Some of that.
    pub excused: Vec<(Exception, Difference)>,
    /// Source ports of tunnels on the kernel path.
    pub kernel_ports: Ports,
    /// Source ports of tunnels on the eBPF path.
    pub ebpf_ports: Ports,
}

impl Report {
    /// Takes what both paths made of the next packet.
    pub fn judge(&mut self, found: Difference, memory: &mut Memory) {
        if found.step.expected.is_some_and(|expected| !expected.is_met(&found.kernel)) {
            self.astray += 1;
            self.stray.get_or_insert_with(|| found.clone());
        }
        if found.kernel != found.ebpf {
            self.judge_difference(&found, memory);
        }
        memory.note(&found.step);
    }

    fn judge_difference(&mut self, found: &Difference, memory: &Memory) {
        let look = if demands::SIGNS { Vec::from } else { unsigned };
        let (kernel, ebpf) = (look(&found.kernel), look(&found.ebpf));
        if kernel == ebpf {
            self.signs += 1;
            return;
        }
        if !demands::INVALID && repeats_invalid(&found.step, &ebpf, memory) {
            self.untranslated += 1;
            return;
        }
        let covers = |reason: &&Exception| reason.covers(&found.step, &kernel, &ebpf, memory);
        if let Some(reason) = Exception::ALL.iter().find(covers) {
            let count = self.excepted.entry(*reason).or_default();
            *count += 1;
            if *count <= KEPT_EXCEPTED {
                self.excused.push((*reason, found.clone()));
            }
            return;
        }
        self.differing += 1;
        if self.differences.len() < KEPT {
            self.differences.push(found.clone());
        }
    }

    /// Counts a packet by the path that it took.
    pub fn count(&mut self, step: &Step, ours: bool, seen: &Sightings) {
        self.tally.add(step, seen);
        if matches!(step.sender, Sender::Pod(_)) {
            self.by_pods += 1;
            if step.oddities.none() {
                self.plain += 1;
                self.plain_ours += usize::from(ours);
            }
        }
    }

    fn sum(&self, outcomes: [Outcome; 2]) -> f64 {
        outcomes.map(|outcome| self.outcomes.get(outcome)).iter().sum::<u64>() as f64
    }

    /// Share (0..=1) of all packets of pods, odd ones included, that took the
    /// fast path outwards.
    pub fn out_share(&self) -> f64 {
        self.sum([Outcome::FastEncap, Outcome::FastRoutedOut]) / self.by_pods.max(1) as f64
    }

    /// Share (0..=1) of all packets, odd ones included, that took the fast path
    /// inwards.
    pub fn in_share(&self) -> f64 {
        self.sum([Outcome::FastDecap, Outcome::FastRoutedIn]) / self.packets.max(1) as f64
    }

    /// What is not as it has to be: nothing, if both paths did the same, on the
    /// fast path too.
    pub fn failures(&self) -> Vec<String> {
        let mut failures = self.tally.failures(self.mode);
        let mut fails = |fails: bool, text: String| failures.extend(fails.then_some(text));
        fails(self.differing > 0, format!("{} packets differ", self.differing));
        let astray = self.astray;
        fails(astray > 0, format!("the kernel path did not do with {astray} what the rules say"));
        let unsteady = self.ebpf_ports.unsteady();
        let steady = super::demands::SOURCE_PORTS || self.mode == Mode::Confirmed;
        fails(
            steady && unsteady > 0,
            format!("{unsteady} flows have more than one outer source port"),
        );
        let excepted = self.excepted.values().sum::<usize>();
        fails(
            excepted * MOST_EXCEPTED > self.packets,
            format!("{excepted} packets are exceptions"),
        );
        let remembered = self.excepted.get(&Exception::Remembered).copied().unwrap_or(0);
        fails(
            remembered > 1 + self.packets / RARE,
            format!("{remembered} packets of no connection met another conntrack"),
        );
        for (direction, share) in [("outwards", self.out_share()), ("inwards", self.in_share())] {
            fails(
                share < FAST_SHARE,
                format!("{:.1} % took the fast path {direction}", 100.0 * share),
            );
        }
        failures
    }

    /// Whether nothing has failed.
    pub fn good(&self) -> bool {
        self.failures().is_empty()
    }

    /// For people: counts, and the shortest packet that differs.
    pub fn text(&self) -> String {
        let mut text = format!(
            "{}, seed {}: {} packets on each path, {} differ\n{:.1} % of the pods' packets took \
             the fast path outwards, {:.1} % of all packets inwards; of {} plain ones of pods our \
             programs encapsulated {}\n",
            self.mode,
            self.seed,
            self.packets,
            self.differing,
            100.0 * self.out_share(),
            100.0 * self.in_share(),
            self.plain,
            self.plain_ours,
        );
        for failure in self.failures() {
            let _ = writeln!(text, "FAILED: {failure}");
        }
        text.push_str(&self.tally.text());
        for (count, what) in [
            (self.signs, "another mark or priority"),
            (self.untranslated, "untranslated after an invalid packet of the flow"),
        ] {
            if count > 0 {
                let _ = writeln!(text, "{count:8} x not demanded otherwise: {what}");
            }
        }
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
        self.add_kinds(&mut text);
        text
    }

    fn add_kinds(&self, text: &mut String) {
        let mut kinds: BTreeMap<(Option<Part>, Vec<&[Oddity]>), usize> = BTreeMap::new();
        for Difference { step, .. } in &self.differences {
            let oddities = vec![&step.oddities.inner[..], &step.oddities.outer];
            *kinds.entry((step.part, oddities)).or_default() += 1;
        }
        for ((part, oddities), count) in kinds {
            let of = part.map_or("no connection".into(), |part| {
                format!("{:?}, {}", part.kind, if part.request { "request" } else { "answer" })
            });
            let _ = writeln!(text, "{count:8} x {of}, odd in {oddities:?}");
        }
        let shortest = self.differences.iter().min_by_key(|difference| {
            let frames = &difference.step.frames;
            (frames.len(), frames.iter().map(Vec::len).sum::<usize>())
        });
        if let Some(difference) = shortest {
            let _ = writeln!(text, "the shortest:\n{}", difference.text());
        }
        if let Some(stray) = &self.stray {
            let expected = stray.step.expected;
            let _ = writeln!(text, "not what the rules say, {expected:?}:\n{}", stray.text());
        }
    }
}

/// Without the signs of mark and priority.
fn unsigned(made: &[(Tap, Vec<u8>)]) -> Vec<(Tap, Vec<u8>)> {
    let mut made = made.to_vec();
    for (_, frame) in made.iter_mut().filter(|(tap, _)| tap.is_cable()) {
        signs::wipe(frame);
    }
    made.sort();
    made
}

impl Difference {
    /// The packet and what came of it, in hex.
    pub fn text(&self) -> String {
        let Step { sender, part, oddities, frames, .. } = &self.step;
        let mut text = format!(
            "packet {} of the sequence, from {sender:?}, {part:?}, {oddities:?}\n",
            self.place
        );
        for frame in frames.iter().take(3) {
            let _ = writeln!(text, "  sent            {}", hex(frame));
        }
        for (path, frames) in [("kernel", &self.kernel), ("eBPF", &self.ebpf)] {
            for (tap, frame) in frames {
                let _ = writeln!(text, "  {path:6} {tap} {}", hex(frame));
            }
            if frames.is_empty() {
                let _ = writeln!(text, "  {path:6} nothing");
            }
        }
        text
    }
}

/// Two digits for each byte.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate::Generator;
    use crate::mode::Mode;
    use crate::world::LEFT;
    use flannel_tests::rules::Rules;

    fn report(fast: u64) -> Report {
        let counts = [(Outcome::FastEncap, fast), (Outcome::FastDecap, fast)];
        let outcomes = counts.into_iter().collect();
        Report { seed: 77, packets: 100, by_pods: 100, outcomes, ..Report::default() }
    }

    fn steps(mode: Mode) -> Vec<Step> {
        Generator::new(mode, 1).take(50).collect()
    }

    fn judge(report: &mut Report, step: &Step, kernel: &[(Tap, Vec<u8>)], ebpf: &[(Tap, Vec<u8>)]) {
        let (kernel, ebpf) = (kernel.to_vec(), ebpf.to_vec());
        let found = Difference { place: 0, step: step.clone(), kernel, ebpf };
        report.judge(found, &mut Memory::new(Mode::Confirmed, Rules::None));
    }

    #[test]
    fn what_differs_is_told_in_hex_the_shortest_first() {
        let mut report = Report { packets: 10_000, ..report(10_000) };
        let mut steps = steps(Mode::Confirmed);
        for step in &steps {
            let same = [(Tap::RightPod, vec![1])];
            judge(&mut report, step, &same, &same);
        }
        assert!(report.good(), "{}", report.text());
        for step in &steps {
            judge(&mut report, step, &[], &[(Tap::CableFrom(LEFT), vec![0xab, 0xcd])]);
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
        assert!(text.contains("  kernel nothing\n  eBPF   left node abcd\n"), "{text}");
    }

    #[test]
    fn a_mark_or_priority_is_a_difference_of_its_own() {
        let mut report = report(100);
        let steps = steps(Mode::Services);
        let step = steps.iter().find(|step| step.expected.is_none()).expect("one of the loose");
        let mut frame = vec![0x33; 60];
        let kernel = [(Tap::CableFrom(LEFT), frame.clone())];
        for at in [7, 10] {
            frame[at] ^= 1;
        }
        judge(&mut report, step, &kernel, &[(Tap::CableFrom(LEFT), frame.clone())]);
        assert_eq!(report.signs + report.differing, 1);
        assert_eq!(report.good(), !demands::SIGNS, "{}", report.text());
        // Nothing else of the frame is a sign, nor is anything that comes to a pod.
        judge(&mut report, step, &kernel, &[(Tap::LeftPod, frame.clone())]);
        frame[8] ^= 1;
        judge(&mut report, step, &kernel, &[(Tap::CableFrom(LEFT), frame)]);
        assert!(report.differing >= 2, "{}", report.text());
    }

    #[test]
    fn rules_that_do_nothing_are_found_out() {
        let mut report = report(100);
        let mut steps = Generator::new(Mode::Services, 1);
        let step = steps.find(|step| step.expected.is_some()).expect("an endless sequence");
        judge(&mut report, &step, &[], &[]);
        assert_eq!((report.differing, report.astray), (0, 1));
        assert!(!report.good());
        assert!(report.text().contains("not what the rules say"), "{}", report.text());
    }

    #[test]
    fn nothing_is_good_that_the_kernel_path_carried_alone() {
        assert!(report(30).good());
        assert!(!report(29).good());
    }
}
