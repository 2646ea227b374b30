//! TC egress of `flannel.<VNI>`: what comes here, the kernel has routed to a peer.
//! Confirms its flow, and carries it past the kernel's device.

use crate::abi::{Config, Flow, Outcome, Subnet, action, direction, flag};
use crate::path::exit;
use crate::path::proof::{Exit, Witness};
use crate::path::segment::{Segment, in_memory, macs, plain_ipv4};
use crate::path::{NextHop, Skb, Tables, Traffic, Verdict, Way, encap, flow, shortcut};
use crate::wire::{ENCAP_LEN, ETH_LEN};

/// Decides about a packet that the kernel sends into the tunnel.
#[inline(always)]
pub fn run<S: Skb, T: Tables>(frame: &mut S, tables: &T) -> Verdict {
    let Some(config) = tables.config() else { return Verdict::Pass };
    let Some(ip) = plain_ipv4(frame) else { return Verdict::Pass };
    let Some(subnet) = tables.subnet(ip.dst_addr) else { return Verdict::Pass };
    tables.count_peer(subnet.peer_id, Traffic::TxKernel, frame.len().wrapping_sub(ETH_LEN as u32));
    // Something on the device acts on packets: it has to see this one.
    if config.flags & flag::FAST_PATH == 0 || config.flags & flag::KEEP_OUT != 0 {
        return Verdict::Pass;
    }
    let now = tables.now();
    // Who keeps the kernel's entries now may know another address of the peer.
    if !tables.attendance().is_some_and(|attendance| attendance.lasts(now)) {
        return Verdict::Pass;
    }
    let Ok(segment) = Segment::parse(frame, ETH_LEN, &ip) else { return Verdict::Pass };
    let segment = in_memory(&segment);
    // The kernel's choice of VTEP has to be the one that we would make.
    if macs(frame, 0) != Some((subnet.vtep_mac, config.vtep_mac)) {
        return Verdict::Pass;
    }
    exit::begin(tables, segment, direction::OUT);
    let ticket = exit::ticket(frame, tables, config, direction::OUT, now);
    let found = ticket.and_then(|ticket| tables.flow(&ticket.key));
    let mark = frame.mark();
    let len = segment.wire_len(frame.gso_size());
    let known = found.as_deref().filter(|flow| {
        // Another mark may have another way, and more bytes than were proven none.
        flow.treatment.mark == mark && len <= u32::from(flow.max_len)
    });
    let known = known.and_then(|flow| known_way(flow, config, tables, subnet, now));
    let way = known.or_else(|| encap::way(frame, tables, config, segment, subnet, mark));
    let Some(way) = way else {
        tables.count(Outcome::UnresolvedNextHop);
        return Verdict::Pass;
    };
    if ticket.is_some() {
        prove(frame, tables, config, segment, subnet, &way, now);
    }
    shortcut::out(frame, tables, config, segment, subnet, &way, mark)
}

/// The way of a confirmed flow to this peer.
#[inline(always)]
fn known_way<T: Tables>(
    flow: &Flow,
    config: &Config,
    tables: &T,
    subnet: &Subnet,
    now: u64,
) -> Option<Way> {
    let same = flow.action == action::ENCAP
        && flow.peer_ip == subnet.public_ip
        && flow.epoch == tables.epoch()
        && flow::stands(flow, config, now).is_ok();
    same.then_some(Way {
        ifindex: flow.out_ifindex,
        next_hop: NextHop { family: flow.next_hop_family, address: flow.next_hop },
        mtu: flow.max_len.saturating_add(ENCAP_LEN as u16),
    })
}

/// Lets the packet prove its flow.
#[inline(always)]
fn prove<S: Skb, T: Tables>(
    frame: &S,
    tables: &T,
    config: &Config,
    segment: &Segment,
    subnet: &Subnet,
    way: &Way,
    now: u64,
) {
    tables.edit_proof(|proof| {
        proof.packet = *segment;
        proof.mark = frame.mark();
        proof.priority = frame.priority();
        proof.exit = Exit {
            ifindex: way.ifindex,
            action: action::ENCAP,
            max_len: config.mtu.min(way.mtu.saturating_sub(ENCAP_LEN as u16)),
            peer_id: subnet.peer_id,
            peer_ip: subnet.public_ip,
            next_hop: way.next_hop,
            dst_mac: subnet.vtep_mac,
            src_mac: config.vtep_mac,
            until: u64::MAX,
        };
    });
    Witness::new(frame.ticket()).connected().testify(tables, now);
}
