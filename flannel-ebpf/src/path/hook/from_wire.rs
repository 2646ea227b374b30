//! XDP of the underlay device, and what `from_underlay` does with the packets that
//! it has stripped. Packets of confirmed flows lose their tunnel
//! before there is an skb, so GRO merges plain inner packets, and no aggregate
//! carries a tunnel's mark.
//!
//! The XDP half (`from_wire`) takes off what stands in front of the inner
//! Ethernet header and writes nothing else: all that is left is what
//! `flannel.<VNI>` would receive. Where the packet goes is in its metadata. The
//! TC half, in `from_underlay`, does the rest once for each aggregate; or lets
//! the kernel decide anew. What neither of them met would die in the host's
//! stack: the inner frame is addressed to the VTEP, not to the underlay device.
//!
//! The XDP half only reads the tables. All that has to be noted, counted,
//! refused or forgotten is, when the packet that it left alone comes to TC.

#[cfg(test)]
mod tests;

use network_types::ip::Ipv4Hdr;

use crate::abi::{Config, Flow, HANDOVER, Handover, Outcome, direction, flag, ticket_flag};
use crate::path::direct::NO_TUNNEL;
use crate::path::segment::{Segment, in_memory, ipv4_at, plain_ipv4};
use crate::path::ticket::{Checked, Entry};
use crate::path::tunnel::{self, INNER_L3, L4};
use crate::path::{
    Counters, Frame, Lookups, Skb, Tables, Traffic, Verdict, decap, entry, treatment,
};
use crate::wire::{self, ETH_LEN, IPV4_LEN, UDP_LEN, VXLAN_LEN};

/// How long a flow keeps to the kernel device because of an aggregate there: the
/// time in which what is under way arrives. Those behind it pass XDP.
const SETTLE_NS: u64 = 20_000_000;

/// A packet that has no skb yet.
pub trait Wire: Frame {
    /// Takes the first [`wire::ENCAP_LEN`] bytes off, and leaves `handover` in the
    /// packet's metadata.
    fn strip(&mut self, handover: &Handover) -> Stripped;
}

/// What [`Wire::strip`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stripped {
    /// What it should.
    Done,
    /// Nothing: driver or kernel has no room for metadata.
    Refused,
    /// The headers are gone, and nothing says so.
    Broken,
}

/// XDP of the underlay device. Whatever is not confirmed passes untouched.
#[inline(always)]
pub fn run<W: Wire, T: Lookups + Counters>(frame: &mut W, tables: &T) -> Verdict {
    let Some(config) = tables.config() else { return Verdict::Pass };
    let Some(handover) = confirmed(frame, tables, config) else { return Verdict::Pass };
    if frame.strip(&handover) == Stripped::Broken {
        tables.count(Outcome::DropBroken);
        return Verdict::Drop;
    }
    Verdict::Pass
}

#[inline(always)]
fn confirmed<F: Frame, T: Lookups>(frame: &mut F, tables: &T, config: &Config) -> Option<Handover> {
    if config.flags & flag::XDP == 0 || config.flags & flag::KEEP_IN != 0 {
        return None;
    }
    let outer = plain_ipv4(frame)?;
    if outer.vihl != 0x45
        || outer.proto != wire::UDP
        || outer.dst_addr != config.local_ip
        || config.port == NO_TUNNEL
        || wire::udp(frame.load::<UDP_LEN>(L4)?).dst != config.port
        || !wire::is_vni(frame.load::<VXLAN_LEN>(L4 + UDP_LEN)?, config.vni)
        || frame.load::<2>(INNER_L3 - 2)? != wire::ETHERTYPE_IPV4
    {
        return None;
    }
    let inner = ipv4_at(frame, INNER_L3)?;
    let segment = tunnel::candidate(frame, config, &outer, &inner, L4).ok()?;
    if !is_steady(config, &segment) || wire::decap_changes_ecn(outer.tos, segment.tos) {
        return None;
    }
    let key = segment.key(direction::IN);
    let flow = tables.flow(&key)?;
    let now = tables.now();
    let mac = frame.load::<6>(0)?;
    let entry = Entry::new(now, frame.ifindex(), outer.src_addr, mac);
    // XDP meets all frames of the wire, those to other stations too. What more
    // than a hop has to be done to a packet, is done to one that is whole.
    if mac != flow.entry_mac
        || flow.sticky_ns > now
        || entry::admit(frame, config, &segment, &key, &flow, &entry).is_err()
        || !treatment::is_plain(&flow.treatment)
        || segment.is_padded(frame, INNER_L3)
    {
        return None;
    }
    Some(Handover {
        magic: HANDOVER,
        generation: config.generation,
        out_ifindex: flow.out_ifindex,
        peer_id: flow.peer_id,
        action: u32::from(flow.action) | flow.treatment.priority << 8,
        dst_mac: flow.dst_mac,
        src_mac: flow.src_mac,
    })
}

/// Whether TTL, protocol, TCP flags and settings leave nothing to decide but
/// whether the flow is confirmed.
#[inline(always)]
fn is_steady(config: &Config, segment: &Segment) -> bool {
    let ends = wire::TCP_SYN | wire::TCP_FIN | wire::TCP_RST;
    let goes_on = segment.tcp_flags & (ends | wire::TCP_ACK) == wire::TCP_ACK;
    let tcp = config.flags & flag::TCP != 0 && goes_on;
    segment.ttl > 1 && (segment.proto != wire::TCP || tcp)
}

/// What `from_underlay` does with a packet that the XDP half has stripped.
#[inline(always)]
pub(in crate::path) fn hand_on<S: Skb, T: Tables>(
    frame: &mut S,
    tables: &T,
    config: &Config,
    handover: &Handover,
) -> Verdict {
    if frame.tagged() {
        tables.count(Outcome::DropTagged);
        return Verdict::Drop;
    }
    tables.count(Outcome::SeenFromUnderlay);
    let bytes = frame.len().wrapping_sub(ETH_LEN as u32);
    frame.linearize((ETH_LEN + IPV4_LEN) as u32);
    let Some(ip) = ipv4_at(frame, ETH_LEN) else {
        tables.count(Outcome::DropBroken);
        return Verdict::Drop;
    };
    if handover.generation != config.generation {
        // The kernel decides again. The source was checked for the confirmation.
        let entry = Entry::new(tables.now(), frame.ifindex(), [0; 4], [0; 6]);
        let checked = Checked::new(&ip, ticket_flag::SHORTCUT);
        tables.note_checked(frame, checked, in_memory(&entry));
        tables.count(Outcome::KernelGeneration);
        tables.count(Outcome::ShortcutDecap);
        tables.count_peer(handover.peer_id, Traffic::RxKernel, bytes);
        return Verdict::Ingress { ifindex: config.overlay_ifindex };
    }
    let flow = Flow {
        out_ifindex: handover.out_ifindex,
        action: handover.action as u8,
        dst_mac: handover.dst_mac,
        src_mac: handover.src_mac,
        ..Flow::default()
    };
    let written = one_hop(frame, &ip).and_then(|()| frame.store(0, &decap::pod_macs(&flow)));
    if written.is_none() {
        tables.count(Outcome::DropBroken);
        return Verdict::Drop;
    }
    frame.set_mark(0);
    frame.set_priority(handover.action >> 8);
    tables.count(Outcome::FastXdp);
    tables.count_peer(handover.peer_id, Traffic::RxFast, bytes);
    decap::hand_over(&flow)
}

#[inline(always)]
fn one_hop<S: Skb>(frame: &mut S, ip: &Ipv4Hdr) -> Option<()> {
    let (ttl, [c0, c1]) = wire::decrement_ttl(ip.ttl, ip.check);
    frame.store(ETH_LEN + 8, &[ttl, ip.proto, c0, c1])
}

/// Makes the flow of an aggregate keep to the kernel device while that one is
/// under way. Such aggregates come of packets that arrived before their flow was
/// confirmed; they must not keep it from XDP, which would make more of them.
#[inline(always)]
pub(in crate::path) fn stick<T: Tables>(tables: &T, flow: &T::FlowRef<'_>, now: u64) {
    if flow.sticky_ns.wrapping_add(SETTLE_NS) < now {
        tables.edit_flow(flow, |flow| flow.sticky_ns = now + SETTLE_NS);
    }
}
