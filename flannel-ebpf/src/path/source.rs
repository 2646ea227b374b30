//! Verified source: who may speak through the tunnel.

use network_types::ip::Ipv4Hdr;

use super::direct::NO_TUNNEL;
use super::{Frame, Tables, Verdict};
use crate::abi::{Config, Outcome, flag};
use crate::wire::{self, ETH_LEN};

/// Checks a tunnel packet's outer source, and its inner source if that is
/// known, against the leases. Returns the peer's id.
///
/// # Errors
/// What was forged.
#[inline(always)]
pub fn verify<T: Tables>(
    tables: &T,
    config: &Config,
    outer: [u8; 4],
    inner: Option<[u8; 4]>,
) -> Result<u32, Outcome> {
    let inner = inner.filter(|&addr| wire::within(addr, config.network, config.netmask));
    if let Some(inner) = inner {
        if let Some(subnet) = tables.subnet(inner)
            && subnet.public_ip == outer
        {
            return Ok(subnet.peer_id);
        }
        return Err(match tables.peer(outer) {
            Some(_) => Outcome::ForgedInnerSource,
            None => Outcome::ForgedOuterSource,
        });
    }
    tables.peer(outer).ok_or(Outcome::ForgedOuterSource)
}

/// What `--verify-source` says to do about a forged packet: `Some` to drop it.
#[inline(always)]
pub fn refuse<T: Tables>(tables: &T, config: &Config, forged: Outcome) -> Option<Verdict> {
    if config.flags & (flag::VERIFY_DROP | flag::VERIFY_COUNT) != 0 {
        tables.count(forged);
    }
    (config.flags & flag::VERIFY_DROP != 0).then_some(Verdict::Drop)
}

/// Whether a pod's packet is a tunnel packet to a tunnel end: to an address of
/// this node, to one of its own subnet, or to a peer. Masqueraded, it would look
/// like a packet of this node's own VTEP.
///
/// First fragments hold the whole UDP header, so they are looked at too.
#[inline(always)]
pub fn aims_at_tunnel<T: Tables, F: Frame>(
    tables: &T,
    config: &Config,
    frame: &mut F,
    ip: &Ipv4Hdr,
) -> bool {
    if ip.proto != wire::UDP || wire::is_later_fragment(ip) || config.port == NO_TUNNEL {
        return false;
    }
    let l4 = ETH_LEN + usize::from(ip.vihl & 0x0f) * 4;
    frame.linearize((l4 + wire::UDP_LEN) as u32);
    let to = ip.dst_addr;
    frame.load::<2>(l4 + 2) == Some(config.port)
        && (wire::within(to, config.subnet, config.subnet_mask)
            || tables.peer(to).is_some()
            || tables.is_local(to))
}
