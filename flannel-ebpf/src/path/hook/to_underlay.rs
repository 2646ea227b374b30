//! TC egress of the underlay device, where peers are reached without a tunnel:
//! what the kernel sends to a direct peer. Only looks on.

use crate::abi::{CARRIED, Config, Subnet, action, direction, flag, subnet_flag};
use crate::path::exit;
use crate::path::proof::{Exit, Witness};
use crate::path::segment::{Segment, plain_ipv4};
use crate::path::{Skb, Tables, Traffic, Trip, Verdict};
use crate::wire::{self, ETH_LEN};

/// Looks at a packet that leaves the node.
#[inline(always)]
pub fn run<S: Skb, T: Tables>(frame: &mut S, tables: &T) -> Verdict {
    let Some(config) = tables.config() else { return Verdict::Pass };
    let carried = frame.ticket() == CARRIED;
    if carried || config.flags & flag::DIRECT == 0 {
        return Verdict::Pass;
    }
    let Some(ip) = plain_ipv4(frame) else { return Verdict::Pass };
    if !wire::within(ip.dst_addr, config.network, config.netmask) {
        return Verdict::Pass;
    }
    let Some(subnet) = tables.subnet(ip.dst_addr) else { return Verdict::Pass };
    if subnet.flags & subnet_flag::DIRECT == 0 {
        return Verdict::Pass;
    }
    tables.count_peer(subnet.peer_id, Traffic::TxKernel, frame.len().wrapping_sub(ETH_LEN as u32));
    if config.flags & flag::FAST_PATH != 0
        && let Ok(segment) = Segment::parse(frame, ETH_LEN, &ip)
    {
        confirm(frame, tables, config, &segment, subnet);
    }
    Verdict::Pass
}

/// Confirms the flow, if nothing says no.
#[inline(always)]
fn confirm<S: Skb, T: Tables>(
    frame: &mut S,
    tables: &T,
    config: &Config,
    segment: &Segment,
    subnet: &Subnet,
) {
    exit::begin(tables, segment, direction::OUT);
    let now = tables.now();
    if exit::ticket(frame, tables, config, direction::OUT, now).is_none() {
        return;
    }
    tables.edit_proof(|proof| {
        proof.packet = *segment;
        proof.mark = frame.mark();
        proof.priority = frame.priority();
        proof.exit.action = action::KERNEL;
    });
    let trip = Trip {
        source: segment.tuple.saddr,
        destination: segment.tuple.daddr,
        proto: segment.proto,
        sport: segment.tuple.sport,
        dport: segment.tuple.dport,
        len: segment.wire_len(frame.gso_size()) as u16,
        vrf: 0,
    };
    // A route that only its incoming interface decides about is not found so.
    let way = tables.way(&trip).filter(|way| way.ifindex == frame.ifindex());
    if let Some(way) = way {
        tables.edit_proof(|proof| {
            proof.exit = Exit {
                ifindex: way.ifindex,
                action: action::ROUTE,
                max_len: way.mtu.min(subnet.largest()),
                peer_id: subnet.peer_id,
                peer_ip: subnet.public_ip,
                next_hop: way.next_hop,
                dst_mac: [0; 6],
                src_mac: [0; 6],
                until: u64::MAX,
            };
        });
    }
    Witness::new(frame.ticket()).testify(tables, now);
}
