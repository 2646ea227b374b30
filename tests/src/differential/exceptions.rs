//! Where the paths are known to differ. ARCHITECTURE.md has the same list.

use etherparse::checksum::Sum16BitWords;

use super::compare::{Tap, addresses};
use super::draft::ETH;
use super::generate::{Sender, Step};
use super::world::{is_node, is_pod};

/// A difference that is no fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Exception {
    /// The outer UDP checksum is there and wrong.
    OuterUdpChecksum,
    /// Address translation of packets that are not from pod to pod.
    Translation,
}

impl Exception {
    /// All of them.
    pub const ALL: &[Self] = &[Self::OuterUdpChecksum, Self::Translation];

    /// What differs, and why it may.
    pub const fn text(self) -> &'static str {
        match self {
            Self::OuterUdpChecksum => {
                "a tunnel packet whose outer UDP checksum is wrong is dropped by the kernel path; \
                 the eBPF path does not add the packet up, and hands it to the pod, whose stack \
                 checks the inner checksums"
            }
            Self::Translation => {
                "a packet under an address that is not the pod's, or to one that no pod has, is \
                 translated or not, or refused, by what conntrack saw before and when; one that \
                 conntrack takes for invalid (a wrong TCP or UDP checksum) passes untranslated and \
                 confirms its flow so for a window"
            }
        }
    }

    /// Whether this is the reason why a packet's fate differs.
    pub fn covers(self, step: &Step, kernel: &[(Tap, Vec<u8>)], ebpf: &[(Tap, Vec<u8>)]) -> bool {
        match self {
            Self::OuterUdpChecksum => {
                let wrong = matches!(step.sender, Sender::Wire(_))
                    && matches!(&step.frames[..], [frame] if has_wrong_udp_checksum(frame));
                let comes =
                    |frames: &[(Tap, Vec<u8>)]| frames.iter().any(|(at, _)| *at != Tap::Cable);
                wrong && !comes(kernel) && comes(ebpf)
            }
            Self::Translation => {
                let strange = step.frames.iter().any(|frame| !is_between_pods(step.sender, frame));
                let by_node = |(_, frame): &(Tap, Vec<u8>)| {
                    addresses(frame).is_some_and(|(source, _)| is_node(source))
                };
                strange && kernel.iter().chain(ebpf).any(by_node)
            }
        }
    }
}

/// Whether a packet goes from a pod, under its own address, to another.
fn is_between_pods(sender: Sender, frame: &[u8]) -> bool {
    let Some((source, destination)) = addresses(frame) else { return false };
    let (Sender::Pod(side) | Sender::Wire(side)) = sender;
    source == side.pod() && is_pod(destination) && destination != source
}

/// Whether a frame is a UDP packet with a checksum, and that is wrong.
fn has_wrong_udp_checksum(frame: &[u8]) -> bool {
    let wrong = || {
        let ip = frame.get(ETH..)?;
        let l4 = usize::from(*ip.first()? & 0x0f) * 4;
        let length = ip.get(l4 + 4..l4 + 6)?;
        let whole = usize::from(u16::from_be_bytes([length[0], length[1]]));
        let udp = ip.get(l4..l4 + whole)?;
        let sum = Sum16BitWords::new()
            .add_slice(ip.get(12..20)?)
            .add_2bytes([0, 17])
            .add_slice(length)
            .add_slice(udp)
            .ones_complement();
        Some(udp.get(6..8)? != [0, 0] && sum != 0)
    };
    wrong().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::differential::generate::{Generator, Oddities, TunnelOddity};
    use crate::differential::oddity::Oddity;
    use crate::differential::world::LEFT;

    fn step(wanted: impl Fn(&Oddities) -> bool) -> Step {
        let sent = |step: &Step| matches!(step.sender, Sender::Wire(_)) && wanted(&step.oddities);
        Generator::new(7).find(sent).expect("the sequence is endless")
    }

    #[test]
    fn a_wrong_outer_checksum_may_be_delivered_and_nothing_else() {
        let delivered = [(Tap::LeftPod, vec![1])];
        let wrong = |oddities: &Oddities| oddities.outer == [Oddity::TransportChecksum];
        let exception = Exception::OuterUdpChecksum;
        assert!(exception.covers(&step(wrong), &[], &delivered));
        // Dropped by ours alone, or delivered by both in different forms.
        assert!(!exception.covers(&step(wrong), &delivered, &[]));
        assert!(!exception.covers(&step(wrong), &delivered, &[(Tap::LeftPod, vec![2])]));
        for _ in 0..50 {
            assert!(!exception.covers(&step(Oddities::none), &[], &delivered));
        }
        let vni = |oddities: &Oddities| oddities.tunnel == [TunnelOddity::Vni];
        assert!(!exception.covers(&step(vni), &[], &delivered));
    }

    #[test]
    fn translation_excuses_only_what_no_pod_sends_and_a_node_sent_on() {
        let exception = Exception::Translation;
        let foreign = |oddities: &Oddities| oddities.inner == [Oddity::Source];
        let of_pod = |step: &Step| {
            let strange = step.frames.iter().any(|frame| !is_between_pods(step.sender, frame));
            matches!(step.sender, Sender::Pod(_)) && foreign(&step.oddities) && strange
        };
        let step = Generator::new(8).find(of_pod).expect("the sequence is endless");
        let mut masqueraded = step.frames[0].clone();
        masqueraded[26..30].copy_from_slice(&LEFT.address(0).octets());
        let frames = |frame: &Vec<u8>| vec![(Tap::RightPod, frame.clone())];
        let untouched = frames(&step.frames[0]);
        assert!(exception.covers(&step, &frames(&masqueraded), &untouched));
        assert!(exception.covers(&step, &[], &frames(&masqueraded)));
        assert!(!exception.covers(&step, &[], &[]));
        let plain = |step: &Step| matches!(step.sender, Sender::Pod(_)) && step.oddities.none();
        let plain = Generator::new(8).find(plain).expect("the sequence is endless");
        assert!(!exception.covers(&plain, &frames(&masqueraded), &untouched));
    }

    #[test]
    fn checksums_are_judged_as_receivers_do() {
        let right = step(|oddities| oddities.outer == [Oddity::Ttl]).frames.swap_remove(0);
        assert!(!has_wrong_udp_checksum(&right));
        let mut padded = right.clone();
        padded.extend([9; 3]);
        assert!(!has_wrong_udp_checksum(&padded));
        for length in 0..right.len() {
            assert!(!has_wrong_udp_checksum(&right[..length]), "{length}");
        }
    }
}
