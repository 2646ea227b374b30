//! TC ingress of the underlay devices: the entry inwards, and the source check of
//! what comes through the tunnel.

use network_types::ip::Ipv4Hdr;

use crate::abi::{Config, FlowKey, Outcome, direction, flag, ticket_flag};
use crate::path::eager::Opening;
use crate::path::hook::from_wire;
use crate::path::leave::{Grounds, Left};
use crate::path::segment::{Segment, in_memory, plain_ipv4};
use crate::path::source::{self, Sender};
use crate::path::ticket::{Checked, Entry};
use crate::path::tunnel::{self, Inside, L4};
use crate::path::{
    Frame, NOBODY, Skb, Tables, Traffic, Verdict, decap, direct, eager, entry, flow, shortcut,
    to_kernel,
};
use crate::wire::{self, ETH_LEN, UDP_LEN, VXLAN_LEN};

/// ICMP "destination unreachable: fragmentation needed", and "redirect".
const FRAGMENTATION_NEEDED: [u8; 2] = [3, 4];
const REDIRECT: u8 = 5;

/// Decides about a packet that comes from the underlay.
#[inline(always)]
pub fn run<S: Skb, T: Tables>(frame: &mut S, tables: &T) -> Verdict {
    frame.set_ticket(0);
    let Some(config) = tables.config() else { return Verdict::Pass };
    if let Some(handover) = frame.take_handover() {
        return from_wire::hand_on(frame, tables, config, &handover);
    }
    if !frame.to_us() {
        return Verdict::Pass;
    }
    let Some(outer) = plain_ipv4(frame) else { return Verdict::Pass };
    if config.flags & flag::DIRECT != 0
        && let Some(verdict) = direct::arrive(frame, tables, config, &outer)
    {
        return verdict;
    }
    if outer.proto == wire::ICMP && outer.dst_addr == config.local_ip {
        heed(frame, tables);
        return Verdict::Pass;
    }
    match tunnel::transport(frame, tables, config, &outer) {
        // One copy of what follows for the usual place, which is known then.
        Some(L4) => receive(frame, tables, config, &outer, L4),
        Some(l4) => receive(frame, tables, config, &outer, l4),
        None => Verdict::Pass,
    }
}

/// A router tells of a smaller path MTU or of another next hop: what was confirmed
/// before does not hold.
#[inline(always)]
fn heed<S: Skb, T: Tables>(frame: &mut S, tables: &T) {
    frame.linearize((L4 + 2) as u32);
    let Some(kind) = frame.load::<2>(L4) else { return };
    if kind == FRAGMENTATION_NEEDED || kind[0] == REDIRECT {
        tables.raise_epoch();
    }
}

#[inline(always)]
fn receive<S: Skb, T: Tables>(
    frame: &mut S,
    tables: &T,
    config: &Config,
    outer: &Ipv4Hdr,
    l4: usize,
) -> Verdict {
    tables.count(Outcome::SeenFromUnderlay);
    // Before the reads further back: the compiler would take their checks for this one's.
    let mac = frame.load(0).unwrap_or_default();
    let inside = tunnel::look_inside(frame, config, l4);
    match inside {
        Inside::Short => return short(tables, config, outer),
        Inside::Foreign => return to_kernel(tables, Outcome::KernelForeignVni),
        Inside::Other | Inside::Ipv4 => {}
    }
    let entry = Entry::new(tables.now(), frame.ifindex(), outer.src_addr, mac);
    if inside == Inside::Other {
        return match verify(tables, outer, None, &entry) {
            Ok(peer) => left(frame, tables, Outcome::KernelNotIpv4, peer, l4),
            Err(verdict) => verdict,
        };
    }
    let Some(inner) = tunnel::inner(frame, l4) else { return short(tables, config, outer) };
    match tunnel::candidate(frame, config, outer, &inner, l4) {
        Ok(segment) => of_flow(frame, tables, config, outer, &segment, &entry),
        Err(reason) => {
            let reason = tables.unknown(reason);
            match verify(tables, outer, Some(inner.src_addr), &entry) {
                Ok(peer) => {
                    tables.note_checked(frame, Checked::new(&inner, 0), in_memory(&entry));
                    left(frame, tables, reason, peer, l4)
                }
                Err(verdict) => verdict,
            }
        }
    }
}

/// A tunnel packet that ends before its inner header: the kernel refuses it,
/// unless it is a first fragment, whose inner source nobody could check.
#[inline(always)]
fn short<T: Tables>(tables: &T, config: &Config, outer: &Ipv4Hdr) -> Verdict {
    if wire::is_fragment(outer)
        && let Some(verdict) = source::refuse(tables, config, Outcome::ForgedFragment)
    {
        return verdict;
    }
    to_kernel(tables, Outcome::KernelMalformed)
}

/// The peer that a packet comes from; the verdict on a forged one.
#[inline(always)]
fn verify<T: Tables>(
    tables: &T,
    outer: &Ipv4Hdr,
    inner: Option<[u8; 4]>,
    entry: &Entry,
) -> Result<u32, Verdict> {
    tables.judge(Sender::new(outer.src_addr, inner, entry.now)).peer()
}

/// Counts a packet that the kernel's device takes.
#[inline(always)]
fn left<S: Skb, T: Tables>(
    frame: &S,
    tables: &T,
    reason: Outcome,
    peer: u32,
    l4: usize,
) -> Verdict {
    if peer != NOBODY {
        let headers = l4 + UDP_LEN + VXLAN_LEN + ETH_LEN;
        tables.count_peer(peer, Traffic::RxKernel, frame.len().wrapping_sub(headers as u32));
    }
    to_kernel(tables, reason)
}

/// A packet that the fast path takes if its flow is confirmed.
#[inline(always)]
fn of_flow<S: Skb, T: Tables>(
    frame: &mut S,
    tables: &T,
    config: &Config,
    outer: &Ipv4Hdr,
    segment: &Segment,
    entry: &Entry,
) -> Verdict {
    let key = segment.key(direction::IN);
    let mut found = tables.flow(&key);
    // A fresh confirmation by this very peer stands for the source check: it was
    // made for the same outer source and the same inner source.
    let checked = found.as_deref().filter(|flow| {
        flow::stands(flow, config, entry.now).is_ok() && flow.peer_ip == outer.src_addr
    });
    let peer = match checked {
        Some(flow) => flow.peer_id,
        None => match verify(tables, outer, Some(segment.tuple.saddr), entry) {
            Ok(peer) => peer,
            Err(verdict) => return verdict,
        },
    };
    if peer != NOBODY && flow::opens(config, segment) {
        tables.open(Opening::new(&key, entry));
        found = tables.flow(&key);
    }
    let reason = match repeat(frame, tables, config, outer, segment, &key, entry, found.as_ref()) {
        Ok(verdict) => return verdict,
        Err(reason) => reason,
    };
    let aggregate = reason == Outcome::KernelAggregate;
    let (aggregate, reason) = (config.unsure(aggregate), tables.unknown(reason));
    tables.count(reason);
    // A flow is proven again by the whole way, or its tunnel's window would be added to
    // its own. Where it has aggregates, what goes through the device must not be
    // overtaken.
    let kept_apart = found
        .as_deref()
        .is_some_and(|flow| flow.sticky_ns > entry.now || flow::is_over(flow, config, entry.now));
    let kept_apart = config.unsure(kept_apart);
    // `from_overlay` counts an aggregate.
    if peer != NOBODY && !config.unsure(aggregate) {
        tables.count_peer(peer, Traffic::RxKernel, u32::from(segment.total_len));
    }
    let open = !aggregate
        && !kept_apart
        && peer != NOBODY
        && shortcut::is_open(frame, tables, config, outer, segment, reason, entry.now);
    let open = config.unsure(open);
    // ECN bits that the device changes are more than a treatment.
    let changed = wire::decap_changes_ecn(outer.tos, segment.tos);
    let left = Left {
        segment: in_memory(segment),
        entry: in_memory(entry),
        direction: direction::IN,
        grounds: if changed { Grounds::None } else { Grounds::of(reason) },
        flags: if open { ticket_flag::SHORTCUT } else { 0 },
        always: true,
    };
    tables.leave(frame, left, found.as_ref());
    if open { shortcut::receive(frame, tables, config) } else { Verdict::Pass }
}

#[inline(always)]
#[expect(
    clippy::too_many_arguments,
    reason = "looked up once, and a program has no stack to spare"
)]
fn repeat<S: Skb, T: Tables>(
    frame: &mut S,
    tables: &T,
    config: &Config,
    outer: &Ipv4Hdr,
    segment: &Segment,
    key: &FlowKey,
    entry: &Entry,
    found: Option<&T::FlowRef<'_>>,
) -> Result<Verdict, Outcome> {
    let ours = found.is_some_and(|flow| flow::is_senders(flow, key, entry));
    let opened = ours && found.is_some_and(|flow| eager::holds(config, segment, flow));
    let (ours, opened) = (config.unsure(ours), config.unsure(opened));
    flow::admit(tables, config, segment, key, found.map(|flow| &**flow), ours, opened)?;
    let Some(flow) = found else { return Err(Outcome::KernelUnconfirmed) };
    let alone = opened && eager::is_for_us_alone(segment);
    match entry::admit(frame, config, segment, key, flow, entry) {
        Ok(()) => {}
        Err(Outcome::KernelTcpState) if ours && !alone => {
            flow::answer(tables, flow);
            return Err(Outcome::KernelTcpState);
        }
        // The end of a connection that the kernel does not know.
        Err(reason) if alone && reason != Outcome::KernelTooBig => {
            if tables.veth(flow.out_ifindex).is_none() {
                return Err(reason);
            }
        }
        Err(reason) => return Err(reason),
    }
    if wire::decap_changes_ecn(outer.tos, segment.tos) {
        return Err(Outcome::KernelEcn);
    }
    if aggregated(frame, tables, config, flow, entry.now) {
        return Err(Outcome::KernelAggregate);
    }
    decap::carry(frame, tables, segment, flow)
}

/// Whether this packet has to go through the kernel device: a GSO aggregate
/// cannot be stripped cleanly by `bpf_skb_adjust_room` (it stays marked as a
/// tunnel's), and what follows one must not overtake it.
///
/// Linux 7.3 has BPF_F_ADJ_ROOM_DECAP_L4_UDP (1 << 10), which takes that mark
/// away: with it [`Skb::shrink`] could strip aggregates as well, and this would
/// be false.
#[inline(always)]
fn aggregated<F: Frame, T: Tables>(
    frame: &F,
    tables: &T,
    config: &Config,
    flow: &T::FlowRef<'_>,
    now: u64,
) -> bool {
    if frame.gso_size() != 0 {
        if config.flags & flag::XDP != 0 {
            from_wire::stick(tables, flow, now);
        } else if flow.sticky_ns < now + config.window_ns / 2 {
            tables.edit_flow(flow, |flow| flow.sticky_ns = now + config.window_ns);
        }
        return true;
    }
    flow.sticky_ns > now
}
