//! Verified source: who may speak through the tunnel.
//!
//! `from_underlay` checks what it sees. All tunnel packets meet at
//! `flannel.<VNI>`, whatever way they came; so `from_overlay` checks what bears no
//! ticket of that check.

use network_types::ip::Ipv4Hdr;

use super::direct::NO_TUNNEL;
use super::exemption::{pair, unpaired};
use super::segment::ipv4_at;
use super::{Frame, Lookups, NOBODY, Skb, Tables, Verdict};
use crate::abi::{Config, Outcome, flag};
use crate::wire::{self, ETH_LEN, IPV4_LEN, UDP_LEN};

/// VLAN tags that a pod's frame may have: one of a provider, and one of its own.
const MOST_TAGS: u32 = 2;

/// The sender of a tunnel packet, in words: a function of the programs is called with
/// them. The verifier goes through such a function once, not once per call.
#[derive(Clone, Copy, Debug)]
pub struct Sender {
    /// Outer source in the upper half, inner one in the lower.
    pub addresses: u64,
    /// Whether the inner source is known.
    pub is_whole: u64,
    /// Monotonic time in ns.
    pub now: u64,
}

impl Sender {
    /// One that nothing is known of: no peer has this address.
    const NOBODY: Self = Self { addresses: 0, is_whole: 0, now: 0 };

    #[inline(always)]
    pub(super) fn new(outer: [u8; 4], inner: Option<[u8; 4]>, now: u64) -> Self {
        let addresses = pair(outer, inner.unwrap_or_default());
        Self { addresses, is_whole: inner.is_some().into(), now }
    }

    /// What `--verify-source` says of it.
    #[inline(always)]
    pub fn judged<T: Tables>(self, tables: &T) -> Judged {
        let Some(config) = tables.config() else { return Judged(NOBODY.into()) };
        match self.verify(tables, config) {
            Ok(peer) => Judged(peer.into()),
            Err(forged) if refuse(tables, config, forged).is_some() => Judged::REFUSED,
            Err(_) => Judged(NOBODY.into()),
        }
    }

    /// Checks outer source, and inner source if that is known, against the leases. Returns
    /// the peer's id.
    ///
    /// An inner source that is in no lease is legitimate: a node may route for
    /// others, and the overlay network may be as wide as 10.0.0.0/8.
    ///
    /// # Errors
    /// What was forged.
    #[inline(always)]
    fn verify<T: Tables>(self, tables: &T, config: &Config) -> Result<u32, Outcome> {
        let (outer, inner) = unpaired(self.addresses);
        if self.is_whole == 0 {
            return known(tables, outer);
        }
        if let Some(subnet) = tables.subnet(inner) {
            if subnet.public_ip == outer {
                return Ok(subnet.peer_id);
            }
            known(tables, outer).inspect_err(|_| {
                tables.note_stranger(outer, inner, subnet.peer_id, self.now);
            })?;
            return Err(Outcome::ForgedInnerSource);
        }
        let peer = known(tables, outer)?;
        if wire::within(inner, config.subnet, config.subnet_mask) {
            return Err(Outcome::ForgedInnerSource);
        }
        Ok(peer)
    }
}

/// What is said of a sender, in one word.
#[derive(Clone, Copy, Debug)]
pub struct Judged(pub u64);

impl Judged {
    const REFUSED: Self = Self(1 << 32);

    /// The peer's id; [`NOBODY`] if it is forged, and passes nevertheless.
    ///
    /// # Errors
    /// The packet is dropped; it is counted.
    #[inline(always)]
    pub(super) fn peer(self) -> Result<u32, Verdict> {
        if self.0 == Self::REFUSED.0 { Err(Verdict::Drop) } else { Ok(self.0 as u32) }
    }
}

#[inline(always)]
fn known<T: Lookups>(tables: &T, outer: [u8; 4]) -> Result<u32, Outcome> {
    tables.peer(outer).ok_or(Outcome::ForgedOuterSource)
}

/// What `--verify-source` says to do about a forged packet: `Some` to drop it.
#[inline(always)]
pub(super) fn refuse<T: Tables>(tables: &T, config: &Config, forged: Outcome) -> Option<Verdict> {
    let by_leases = matches!(forged, Outcome::ForgedOuterSource | Outcome::ForgedInnerSource);
    if by_leases
        && config.flags & (flag::VERIFY_DROP | flag::VERIFY_COUNT) != 0
        && !is_vouched_for(tables)
    {
        tables.count(Outcome::Unattended);
        return None;
    }
    if config.flags & (flag::VERIFY_DROP | flag::VERIFY_COUNT) != 0 {
        tables.count(forged);
    }
    // With more peers than the tables hold, a sender may be one of them.
    let unknown = config.flags & flag::MORE_PEERS != 0 && forged == Outcome::ForgedOuterSource;
    (config.flags & flag::VERIFY_DROP != 0 && !unknown).then_some(Verdict::Drop)
}

/// Whether the agent keeps the tables true. Without it they miss the nodes that
/// have joined since, and the subnets that have changed hands.
#[inline(always)]
fn is_vouched_for<T: Lookups>(tables: &T) -> bool {
    let now = tables.now();
    tables.attendance().is_some_and(|attendance| attendance.vouches(now))
}

/// Checks at `flannel.<VNI>` a packet that `from_underlay` has not checked, by
/// the outer headers that the kernel has left in front of it. Returns the
/// peer's id.
///
/// # Errors
/// `Some` to drop it; it is counted.
#[inline(always)]
pub(super) fn verify_late<S: Skb, T: Tables>(
    frame: &S,
    tables: &T,
    config: &Config,
    inner: Option<[u8; 4]>,
    now: u64,
) -> Result<u32, Verdict> {
    if config.flags & (flag::VERIFY_DROP | flag::VERIFY_COUNT) == 0 {
        return Ok(NOBODY);
    }
    tables.count(Outcome::SeenLate);
    let sender = match outer_source(frame, config) {
        Some(outer) => Sender::new(outer, inner, now),
        // IP options in front of it: only `from_underlay` reads those.
        None => Sender::NOBODY,
    };
    let peer = tables.judge(sender).peer()?;
    if peer != NOBODY {
        tables.count(Outcome::CheckedLate);
    }
    Ok(peer)
}

/// Source address of the outer header, if that is one of our tunnel.
#[inline(always)]
fn outer_source<S: Skb>(frame: &S, config: &Config) -> Option<[u8; 4]> {
    let headers = frame.outer_headers()?;
    let (ip, rest) = headers.split_first_chunk::<IPV4_LEN>()?;
    let ip = wire::ipv4(*ip);
    let (udp, vxlan) = rest.split_first_chunk::<UDP_LEN>()?;
    let [_, _, _, _, v0, v1, v2, _]: [u8; 8] = *vxlan.first_chunk()?;
    let [_, w0, w1, w2] = config.vni.to_be_bytes();
    let ours = ip.vihl == 0x45
        && ip.proto == wire::UDP
        && wire::ipv4_checksum(&ip) == ip.check
        && wire::udp(*udp).dst == config.port
        && [v0, v1, v2] == [w0, w1, w2];
    ours.then_some(ip.src_addr)
}

/// Whether a pod's packet, whose IPv4 header `ip` stands at `l3`, is a tunnel packet
/// to a tunnel end: to an address of this node, to one of its own subnet, or to a
/// peer. Masqueraded, it would look like a packet of this node's own VTEP.
///
/// First fragments hold the whole UDP header, so they are looked at too.
#[inline(always)]
pub(super) fn aims_at_tunnel<T: Lookups, F: Frame>(
    tables: &T,
    config: &Config,
    frame: &mut F,
    l3: usize,
    ip: &Ipv4Hdr,
) -> bool {
    if ip.proto != wire::UDP || wire::is_later_fragment(ip) || config.port == NO_TUNNEL {
        return false;
    }
    let l4 = l3 + usize::from(ip.vihl & 0x0f) * 4;
    frame.linearize((l4 + wire::UDP_LEN) as u32);
    let to = ip.dst_addr;
    frame.load::<2>(l4 + 2) == Some(config.port)
        && (wire::within(to, config.subnet, config.subnet_mask)
            || tables.peer(to).is_some()
            || tables.is_local(to))
}

/// The same of a frame with VLAN tags: the kernel takes off as many of VLAN 0 as
/// there are, and others where there are devices for them. With more of them than
/// anybody needs it counts as one, too.
#[inline(always)]
pub(super) fn aims_behind_tags<T: Lookups, F: Frame>(
    tables: &T,
    config: &Config,
    frame: &mut F,
) -> bool {
    // The first tag is in the packet's metadata.
    let mut l3 = ETH_LEN;
    for _ in 0..MOST_TAGS {
        frame.linearize((l3 + IPV4_LEN) as u32);
        match frame.load::<2>(l3 - 2) {
            Some(wire::ETHERTYPE_IPV4) => {
                let ip = ipv4_at(frame, l3);
                return ip.is_some_and(|ip| aims_at_tunnel(tables, config, frame, l3, &ip));
            }
            Some(ethertype) if wire::is_tag(ethertype) => l3 += wire::TAG_LEN,
            _ => return false,
        }
    }
    true
}
