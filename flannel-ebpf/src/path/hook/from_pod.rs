//! TC ingress of the host side of a pod's veth: the entry outwards.

use network_types::ip::Ipv4Hdr;

use crate::abi::{Config, Flow, Outcome, Treatment, action, direction, flag, subnet_flag};
use crate::path::eager::Opening;
use crate::path::leave::{Grounds, Left};
use crate::path::segment::{Segment, in_memory, macs, plain_ipv4};
use crate::path::ticket::Entry;
use crate::path::{Skb, Tables, Verdict, direct, eager, encap, entry, flow, source, to_kernel};
use crate::wire::{self, ECN_MASK, ENCAP_LEN, ETH_LEN};

/// Decides about a packet that a pod sends.
#[inline(always)]
pub fn run<S: Skb, T: Tables>(frame: &mut S, tables: &T) -> Verdict {
    frame.set_ticket(0);
    let Some(config) = tables.config() else { return Verdict::Pass };
    if frame.tagged() {
        let forged = source::aims_behind_tags(tables, config, frame)
            && source::refuse(tables, config, Outcome::ForgedByPod).is_some();
        return if forged { Verdict::Drop } else { Verdict::Pass };
    }
    let Some(ip) = plain_ipv4(frame) else { return Verdict::Pass };
    if source::aims_at_tunnel(tables, config, frame, ETH_LEN, &ip)
        && let Some(verdict) = source::refuse(tables, config, Outcome::ForgedByPod)
    {
        return verdict;
    }
    // Pods of one node meet on its bridge.
    if wire::within(ip.dst_addr, config.subnet, config.subnet_mask)
        || config.flags & flag::FAST_PATH == 0
    {
        return Verdict::Pass;
    }
    tables.count(Outcome::SeenFromPod);
    match repeat(frame, tables, config, &ip) {
        Ok(verdict) => verdict,
        Err(reason) => to_kernel(tables, reason),
    }
}

#[inline(always)]
fn repeat<S: Skb, T: Tables>(
    frame: &mut S,
    tables: &T,
    config: &Config,
    ip: &Ipv4Hdr,
) -> Result<Verdict, Outcome> {
    let segment = Segment::parse(frame, ETH_LEN, ip)?;
    let key = segment.key(direction::OUT);
    let mut entry = enter(frame, tables)?;
    let beyond = !wire::within(ip.dst_addr, config.network, config.netmask);
    if !beyond && flow::opens(config, &segment) {
        tables.open(Opening::new(&key, &entry));
    }
    let found = tables.flow(&key);
    let ours = found.as_deref().is_some_and(|flow| flow::is_senders(flow, &key, &entry));
    let opened = ours && found.as_deref().is_some_and(|flow| eager::holds(config, &segment, flow));
    let reason = 'kernel: {
        let admitted = flow::admit(tables, config, &segment, &key, found.as_deref(), ours, opened);
        if let Err(reason) = admitted {
            break 'kernel reason;
        }
        let Some(flow) = &found else { break 'kernel unknown(beyond) };
        let admitted = entry::admit(frame, config, &segment, &key, flow, &entry)
            .and_then(|()| entry::admit_way(tables, flow, &entry));
        match admitted {
            Ok(()) if flow.action == action::ROUTE => {
                return Ok(direct::depart(frame, tables, &segment, flow));
            }
            Ok(()) => return encap::carry(frame, tables, config, &segment, flow),
            Err(reason) if opened && eager::is_for_us_alone(&segment) => {
                return finish(frame, tables, config, &segment, tables.unknown(reason));
            }
            Err(Outcome::KernelTcpState) if ours => {
                flow::answer(tables, flow);
                Outcome::KernelTcpState
            }
            Err(reason) => reason,
        }
    };
    let reason = tables.unknown(reason);
    // The device derives the outer source port from this. It has to be the same
    // before and behind a translation.
    entry.hash = frame.hash();
    let left = Left {
        segment: in_memory(&segment),
        entry: in_memory(&entry),
        direction: direction::OUT,
        grounds: Grounds::of(reason),
        flags: 0,
        always: false,
    };
    tables.leave(frame, left, found.as_ref());
    Err(reason)
}

/// The packet as it comes, if a bridge would take it.
#[inline(always)]
fn enter<S: Skb, T: Tables>(frame: &S, tables: &T) -> Result<Entry, Outcome> {
    let (mac, sender) = macs(frame, 0).ok_or(Outcome::KernelMalformed)?;
    // A bridge takes no frame that comes from nobody. One to a group it may route all
    // the same (`br_netfilter` does so after DNAT), but `bpf_redirect_neigh` drops it.
    if !wire::is_station(sender) || wire::is_group(mac) {
        return Err(Outcome::KernelForeignMac);
    }
    Ok(Entry::new(tables.now(), frame.ifindex(), direct::NO_OUTER_SOURCE, mac))
}

#[inline(always)]
fn unknown(beyond: bool) -> Outcome {
    if beyond { Outcome::KernelBeyond } else { Outcome::KernelUnconfirmed }
}

/// Sends the end of a connection that the kernel does not know, and whose
/// window is over, where its route leads now.
#[inline(always)]
fn finish<S: Skb, T: Tables>(
    frame: &mut S,
    tables: &T,
    config: &Config,
    segment: &Segment,
    reason: Outcome,
) -> Result<Verdict, Outcome> {
    let subnet = tables.subnet(segment.tuple.daddr).ok_or(reason)?;
    if subnet.flags & subnet_flag::DIRECT != 0 || config.flags & flag::KEEP_OUT != 0 {
        return Err(reason);
    }
    let way = encap::way(frame, tables, config, segment, subnet, 0).ok_or(reason)?;
    let max_len = config.mtu.min(way.mtu.saturating_sub(ENCAP_LEN as u16));
    if segment.wire_len(frame.gso_size()) > u32::from(max_len) {
        return Err(reason);
    }
    let dscp = segment.tos & !ECN_MASK;
    let flow = Flow {
        out_ifindex: way.ifindex,
        peer_id: subnet.peer_id,
        peer_ip: subnet.public_ip,
        next_hop: way.next_hop.address,
        next_hop_family: way.next_hop.family,
        dst_mac: subnet.vtep_mac,
        treatment: Treatment { entry_dscp: dscp, dscp, ..Treatment::default() },
        ..Flow::default()
    };
    encap::carry(frame, tables, config, segment, &flow)
}
