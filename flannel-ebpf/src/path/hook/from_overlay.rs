//! TC ingress of `flannel.<VNI>`, where all tunnel packets meet: checks the source
//! of those that `from_underlay` has not checked, confirms tunnels, and hands GSO
//! aggregates on to the pod.

use network_types::ip::Ipv4Hdr;

use crate::abi::{Config, Outcome, direction, flag};
use crate::path::segment::{Segment, ipv4_at, plain_ipv4};
use crate::path::{
    NOBODY, Skb, Tables, Traffic, Verdict, decap, eager, flow, shortcut, source, ticket,
};
use crate::wire::{self, ETH_LEN, IPV4_LEN};

/// Decides about a packet that the tunnel brought.
#[inline(always)]
pub fn run<S: Skb, T: Tables>(frame: &mut S, tables: &T) -> Verdict {
    let Some(config) = tables.config() else { return Verdict::Pass };
    let now = tables.now();
    frame.linearize((ETH_LEN + IPV4_LEN) as u32);
    let ethertype = frame.load::<2>(ETH_LEN - 2).unwrap_or_default();
    if ethertype == wire::ETHERTYPE_IPV4
        && let Some(ip) = ipv4_at(frame, ETH_LEN)
    {
        if !is_checked(frame, tables, config, &ip, now)
            && let Err(verdict) = check(frame, tables, config, Some(ip.src_addr), now)
        {
            return verdict;
        }
        return hand_on(frame, tables, config, now).unwrap_or(Verdict::Pass);
    }
    check(frame, tables, config, None, now).err().unwrap_or(Verdict::Pass)
}

/// Whether `from_underlay` has checked this packet. If so, it proves its peer's
/// tunnel.
#[inline(always)]
fn is_checked<S: Skb, T: Tables>(
    frame: &S,
    tables: &T,
    config: &Config,
    ip: &Ipv4Hdr,
    now: u64,
) -> bool {
    let Some(ticket) = ticket::presented(frame, tables, config, now) else { return false };
    let checked = ticket.key.direction == direction::IN && ticket::is_of(ticket, ip);
    if checked {
        shortcut::confirm(frame, tables, config, ticket, now);
    }
    checked
}

/// Checks the source of a packet that `from_underlay` has not seen.
///
/// # Errors
/// It is dropped.
#[inline(always)]
fn check<S: Skb, T: Tables>(
    frame: &mut S,
    tables: &T,
    config: &Config,
    inner: Option<[u8; 4]>,
    now: u64,
) -> Result<(), Verdict> {
    frame.set_ticket(0);
    let peer = source::verify_late(frame, tables, config, inner, now)?;
    if peer != NOBODY {
        let len = frame.len().wrapping_sub(ETH_LEN as u32);
        tables.count_peer(peer, Traffic::RxKernel, len);
    }
    Ok(())
}

/// Packets of flows with GSO aggregates, which `from_underlay` left to the kernel
/// device, go on to the pod from here.
#[inline(always)]
fn hand_on<S: Skb, T: Tables>(
    frame: &mut S,
    tables: &T,
    config: &Config,
    now: u64,
) -> Option<Verdict> {
    // A wrong inner MAC arrives here too, marked as somebody else's.
    if config.flags & flag::FAST_PATH == 0 || !frame.to_us() {
        return None;
    }
    let ip = plain_ipv4(frame)?;
    let segment = Segment::parse(frame, ETH_LEN, &ip).ok()?;
    let flow = tables.flow(&segment.key(direction::IN))?;
    // The kernel has to see how a connection begins and ends, if it knows it.
    let state = segment.tcp_flags & (wire::TCP_SYN | wire::TCP_FIN | wire::TCP_RST) != 0;
    if segment.ttl <= 1
        || (state && !eager::holds(config, &segment, &flow))
        || flow.sticky_ns <= now
        || flow::fresh(&flow, config, now).is_err()
        || flow::fits(&flow, &segment).is_err()
        || segment.wire_len(frame.gso_size()) > u32::from(flow.max_len)
    {
        return None;
    }
    frame.set_ticket(0);
    Some(decap::deliver(frame, tables, &segment, &flow, Outcome::FastAggregate))
}
