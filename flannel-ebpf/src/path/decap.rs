//! Out of the tunnel, and into the pod.

use super::segment::{Segment, in_memory};
use super::{Skb, Tables, Traffic, Verdict, treatment};
use crate::abi::{Flow, Outcome, action};
use crate::wire::{self, ETH_LEN};

/// Takes the outer headers off a packet of a confirmed flow, and hands it to the
/// pod.
///
/// # Errors
/// The reason why the kernel carries it; it is as it was.
#[inline(always)]
pub(super) fn carry<S: Skb, T: Tables>(
    frame: &mut S,
    tables: &T,
    segment: &Segment,
    flow: &Flow,
) -> Result<Verdict, Outcome> {
    if !frame.shrink() {
        return Err(Outcome::KernelNoRoom);
    }
    Ok(deliver(frame, tables, segment, flow, Outcome::FastDecap))
}

/// Hands a packet that carries no tunnel header (any more) to the pod.
#[inline(always)]
pub(super) fn deliver<S: Skb, T: Tables>(
    frame: &mut S,
    tables: &T,
    segment: &Segment,
    flow: &Flow,
    outcome: Outcome,
) -> Verdict {
    let end = End { verdict: hand_over(flow), peer_id: flow.peer_id };
    let made = frame_for_pod(frame, segment, flow);
    end.reached(tables, segment, outcome, made)
}

/// The same of a packet that came without a tunnel. A function of its own makes the frame:
/// the verifier would go through a second copy of it.
#[inline(always)]
pub(super) fn deliver_direct<S: Skb, T: Tables>(
    frame: &mut S,
    tables: &T,
    segment: &Segment,
    flow: &Flow,
) -> Verdict {
    let end = End { verdict: hand_over(flow), peer_id: flow.peer_id };
    let made = tables.frame_for_pod(frame, in_memory(segment), flow);
    end.reached(tables, segment, Outcome::FastRoutedIn, made)
}

/// Where a packet goes, and whose it is. Known before the frame is made: verifiers refuse
/// what is set on one way only.
struct End {
    verdict: Verdict,
    peer_id: u32,
}

impl End {
    /// Counts the packet; `made`: its frame is.
    #[inline(always)]
    fn reached<T: Tables>(
        self,
        tables: &T,
        segment: &Segment,
        outcome: Outcome,
        made: bool,
    ) -> Verdict {
        if !made {
            tables.count(Outcome::DropBroken);
            return Verdict::Drop;
        }
        tables.count(outcome);
        tables.count_peer(self.peer_id, Traffic::RxFast, u32::from(segment.total_len));
        self.verdict
    }
}

/// Makes of a packet that carries no tunnel header (any more) the frame that the pod gets.
/// `false`: it is broken.
#[inline(always)]
pub fn frame_for_pod<S: Skb>(frame: &mut S, segment: &Segment, flow: &Flow) -> bool {
    let header = pod_macs(flow);
    let whole = if segment.is_padded(frame, ETH_LEN) {
        frame.trim(ETH_LEN as u32 + u32::from(segment.total_len))
    } else {
        Some(())
    };
    let written = whole
        .and_then(|()| frame.store(0, &header))
        .and_then(|()| treatment::repeat(frame, segment, &flow.treatment, ETH_LEN));
    written.is_some()
}

/// Ethernet header of the frame that the pod gets.
#[inline(always)]
pub(super) fn pod_macs(flow: &Flow) -> [u8; ETH_LEN] {
    let [d0, d1, d2, d3, d4, d5] = flow.dst_mac;
    let [s0, s1, s2, s3, s4, s5] = flow.src_mac;
    let [t0, t1] = wire::ETHERTYPE_IPV4;
    [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, t0, t1]
}

/// How a flow's packets get into the pod.
#[inline(always)]
pub(super) fn hand_over(flow: &Flow) -> Verdict {
    let ifindex = flow.out_ifindex;
    if flow.action == action::PEER {
        Verdict::Peer { ifindex }
    } else {
        Verdict::Egress { ifindex }
    }
}
