//! The TCP or UDP packet that a hook looks at: parsed once, or refused with
//! the reason for which the kernel has to take it.

use network_types::ip::Ipv4Hdr;

use super::Frame;
use crate::abi::{FlowKey, Outcome};
use crate::wire::{self, ETH_LEN, IPV4_LEN};

/// An unfragmented TCP or UDP packet over IPv4 without options.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Source address.
    pub saddr: [u8; 4],
    /// Destination address.
    pub daddr: [u8; 4],
    /// Source port.
    pub sport: [u8; 2],
    /// Destination port.
    pub dport: [u8; 2],
    /// [`wire::TCP`] or [`wire::UDP`].
    pub proto: u8,
    /// TCP flags; 0 for UDP.
    pub tcp_flags: u8,
    /// IPv4 identification.
    pub id: [u8; 2],
    /// Time to live.
    pub ttl: u8,
    /// TOS byte.
    pub tos: u8,
    /// Header checksum.
    pub check: [u8; 2],
    /// Length of the IP packet in bytes, as its header says.
    pub total_len: u16,
    /// IP and TCP/UDP header in bytes: what each segment of a GSO packet repeats.
    pub header_len: u16,
}

/// Reads the IPv4 header at `l3`.
#[inline(always)]
pub fn ipv4_at<F: Frame>(frame: &F, l3: usize) -> Option<Ipv4Hdr> {
    frame.load::<IPV4_LEN>(l3).map(wire::ipv4)
}

impl Segment {
    /// Reads the packet whose IPv4 header `ip` stands at `l3`.
    ///
    /// # Errors
    /// The reason why it has to take the kernel path.
    #[inline(always)]
    pub fn parse<F: Frame>(frame: &mut F, l3: usize, ip: &Ipv4Hdr) -> Result<Self, Outcome> {
        if ip.vihl >> 4 != 4 {
            return Err(Outcome::KernelNotIpv4);
        }
        if ip.vihl != 0x45 {
            return Err(Outcome::KernelOptions);
        }
        if wire::is_fragment(ip) {
            return Err(Outcome::KernelFragment);
        }
        let l4 = l3 + IPV4_LEN;
        let (tcp_flags, l4_len, least, most) = match ip.proto {
            wire::TCP => {
                frame.linearize((l4 + 20) as u32);
                let [offset, flags] = frame.load(l4 + 12).ok_or(Outcome::KernelMalformed)?;
                let len = u16::from(offset >> 4) * 4;
                (flags, len, 20, len)
            }
            wire::UDP => {
                frame.linearize((l4 + wire::UDP_LEN) as u32);
                let len = frame.load(l4 + 4).map_or(0, u16::from_be_bytes);
                (0, wire::UDP_LEN as u16, wire::UDP_LEN as u16, len)
            }
            _ => return Err(Outcome::KernelProtocol),
        };
        let [s0, s1, d0, d1] = frame.load(l4).ok_or(Outcome::KernelMalformed)?;
        let total_len = u16::from_be_bytes(ip.tot_len);
        // A plain packet has to be exactly as long as it says: the kernel would
        // cut padding off, and refuse a packet that is too short. An aggregate
        // beyond 64 KiB says 0.
        let exact = u32::from(total_len) + l3 as u32 == frame.len();
        // What conntrack takes for invalid it does not translate: that proves
        // nothing about the flow.
        let within = total_len.wrapping_sub(IPV4_LEN as u16);
        let valid = total_len >= IPV4_LEN as u16 && most >= least && most <= within;
        if !exact || !valid {
            return Err(Outcome::KernelMalformed);
        }
        // The kernel drops a packet with a wrong one; we would mend nothing.
        if wire::ipv4_checksum(ip) != ip.check {
            return Err(Outcome::KernelMalformed);
        }
        Ok(Self {
            saddr: ip.src_addr,
            daddr: ip.dst_addr,
            sport: [s0, s1],
            dport: [d0, d1],
            proto: ip.proto,
            tcp_flags,
            id: ip.id,
            ttl: ip.ttl,
            tos: ip.tos,
            check: ip.check,
            total_len,
            header_len: IPV4_LEN as u16 + l4_len,
        })
    }

    /// Key of its flow in this direction ([`crate::abi::direction`]).
    #[inline(always)]
    pub fn key(&self, direction: u8) -> FlowKey {
        FlowKey {
            saddr: self.saddr,
            daddr: self.daddr,
            sport: self.sport,
            dport: self.dport,
            proto: self.proto,
            direction,
            reserved: [0; 2],
        }
    }

    /// Whether it asks for a connection.
    #[inline(always)]
    pub fn is_syn(&self) -> bool {
        self.tcp_flags & wire::TCP_HANDSHAKE == wire::TCP_SYN
    }

    /// Whether it answers a SYN.
    #[inline(always)]
    pub fn is_syn_ack(&self) -> bool {
        self.tcp_flags & wire::TCP_HANDSHAKE == wire::TCP_SYN | wire::TCP_ACK
    }

    /// Length in bytes of the largest IP packet that this becomes on a wire:
    /// itself, or one segment of it.
    #[inline(always)]
    pub fn wire_len(&self, gso_size: u32) -> u32 {
        if gso_size == 0 {
            u32::from(self.total_len)
        } else {
            gso_size + u32::from(self.header_len)
        }
    }

    /// One more hop: TTL and header checksum of the IPv4 header at `l3`.
    #[inline(always)]
    pub fn forward<F: Frame>(&self, frame: &mut F, l3: usize) -> Option<()> {
        let (ttl, check) = wire::decrement_ttl(self.ttl, self.check);
        let [c0, c1] = check;
        frame.store(l3 + 8, &[ttl, self.proto, c0, c1])
    }
}

/// Reads the IPv4 header behind the Ethernet header, if there is one.
#[inline(always)]
pub fn plain_ipv4<F: Frame>(frame: &mut F) -> Option<Ipv4Hdr> {
    if frame.tagged() {
        return None;
    }
    frame.linearize((ETH_LEN + IPV4_LEN) as u32);
    if frame.load::<2>(ETH_LEN - 2)? != wire::ETHERTYPE_IPV4 {
        return None;
    }
    ipv4_at(frame, ETH_LEN)
}

/// Destination and source of the Ethernet header at `l2`.
#[inline(always)]
pub fn macs<F: Frame>(frame: &F, l2: usize) -> Option<([u8; 6], [u8; 6])> {
    Some((frame.load(l2)?, frame.load(l2 + 6)?))
}
