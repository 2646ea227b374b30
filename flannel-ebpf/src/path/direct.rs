//! Peers that are reached without a tunnel (host-gw, DirectRouting): their
//! packets leave and come in as they are.

#[cfg(test)]
mod tests;

use network_types::ip::Ipv4Hdr;

use super::leave::{Grounds, Left};
use super::segment::{Segment, in_memory};
use super::ticket::Entry;
use super::{NextHop, Skb, Tables, Traffic, Verdict, decap, entry, flow, to_kernel, treatment};
use crate::abi::{CARRIED, Config, Flow, Outcome, direction, flag, subnet_flag};
use crate::wire::ETH_LEN;

/// [`Config::port`] where no peer is behind a tunnel.
pub(super) const NO_TUNNEL: [u8; 2] = [0; 2];
/// [`Flow::peer_ip`] of a flow that comes without a tunnel.
pub(super) const NO_OUTER_SOURCE: [u8; 4] = [0; 4];

/// Sends a confirmed flow's packet to its next hop.
#[inline(always)]
pub(super) fn depart<S: Skb, T: Tables>(
    frame: &mut S,
    tables: &T,
    segment: &Segment,
    flow: &Flow,
) -> Verdict {
    let whole = if segment.is_padded(frame, ETH_LEN) {
        frame.trim(ETH_LEN as u32 + u32::from(segment.total_len))
    } else {
        Some(())
    };
    if whole.and_then(|()| treatment::repeat(frame, segment, &flow.treatment, ETH_LEN)).is_none() {
        tables.count(Outcome::DropBroken);
        return Verdict::Drop;
    }
    // It is met again by `to_underlay`, which has nothing to learn from it.
    frame.set_ticket(CARRIED);
    tables.count(Outcome::FastRoutedOut);
    tables.count_peer(flow.peer_id, Traffic::TxFast, u32::from(segment.total_len));
    let next_hop = NextHop { family: flow.next_hop_family, address: flow.next_hop };
    Verdict::NextHop { ifindex: flow.out_ifindex, next_hop }
}

/// A packet that came without a tunnel, if it is of a direct peer: `None` if not.
///
/// GRO's aggregates may be handed on as they are: they carry no tunnel's mark.
#[inline(always)]
pub(super) fn arrive<S: Skb, T: Tables>(
    frame: &mut S,
    tables: &T,
    config: &Config,
    ip: &Ipv4Hdr,
) -> Option<Verdict> {
    let subnet = tables.subnet(ip.src_addr)?;
    if subnet.flags & subnet_flag::DIRECT == 0 || config.flags & flag::FAST_PATH == 0 {
        return None;
    }
    tables.count(Outcome::SeenFromUnderlay);
    Some(match repeat(frame, tables, config, ip) {
        Ok(verdict) => verdict,
        Err(reason) => {
            let len = frame.len().wrapping_sub(ETH_LEN as u32);
            tables.count_peer(subnet.peer_id, Traffic::RxKernel, len);
            to_kernel(tables, reason)
        }
    })
}

#[inline(always)]
fn repeat<S: Skb, T: Tables>(
    frame: &mut S,
    tables: &T,
    config: &Config,
    ip: &Ipv4Hdr,
) -> Result<Verdict, Outcome> {
    let segment = Segment::parse(frame, ETH_LEN, ip)?;
    let key = segment.key(direction::IN);
    let mac = frame.load(0).unwrap_or_default();
    let entry = Entry::new(tables.now(), frame.ifindex(), NO_OUTER_SOURCE, mac);
    let found = tables.flow(&key);
    let ours = found.as_deref().is_some_and(|flow| flow::is_senders(flow, &key, &entry));
    let ours = config.unsure(ours);
    let reason = 'kernel: {
        let admitted = flow::admit(tables, config, &segment, &key, found.as_deref(), ours, false);
        if let Err(reason) = admitted {
            break 'kernel reason;
        }
        let Some(flow) = &found else { break 'kernel Outcome::KernelUnconfirmed };
        match entry::admit(frame, config, &segment, &key, flow, &entry) {
            Ok(()) => {
                return Ok(decap::deliver_direct(frame, tables, &segment, flow));
            }
            Err(Outcome::KernelTcpState) if ours => {
                flow::answer(tables, flow);
                Outcome::KernelTcpState
            }
            Err(reason) => reason,
        }
    };
    let reason = tables.unknown(reason);
    let left = Left {
        segment: in_memory(&segment),
        entry: in_memory(&entry),
        direction: direction::IN,
        grounds: Grounds::of(reason),
        flags: 0,
        // A SYN proves nothing; but its exit has to know that it comes from a peer.
        always: segment.is_syn(),
    };
    tables.leave(frame, left, found.as_ref());
    Err(reason)
}
