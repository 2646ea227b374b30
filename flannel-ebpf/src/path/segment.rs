//! The TCP or UDP packet that a hook looks at: parsed once, or refused with
//! the reason for which the kernel has to take it.

use network_types::ip::Ipv4Hdr;

use super::Frame;
use crate::abi::{FlowKey, Outcome, Tuple4};
use crate::wire::{self, ETH_LEN, IPV4_LEN};

/// An unfragmented TCP or UDP packet over IPv4 without options.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// Addresses and ports.
    pub(super) tuple: Tuple4,
    /// [`wire::TCP`] or [`wire::UDP`].
    pub(super) proto: u8,
    /// TCP flags; 0 for UDP.
    pub(super) tcp_flags: u8,
    /// IPv4 identification.
    pub(super) id: [u8; 2],
    /// Time to live.
    pub(super) ttl: u8,
    /// TOS byte.
    pub(super) tos: u8,
    /// Header checksum.
    pub(super) check: [u8; 2],
    /// What the transport header says besides ports and checksum
    /// ([`crate::abi::Ticket::transport`]).
    pub(super) transport: [u8; 12],
    /// Transport checksum.
    pub(super) transport_check: [u8; 2],
    /// Length of the IP packet in bytes, as its header says.
    pub(super) total_len: u16,
    /// IP and TCP/UDP header in bytes: what each segment of a GSO packet repeats.
    pub(super) header_len: u16,
}

/// The same, in memory. LLVM would keep each field in a register of its own, and
/// spill it to 8 bytes of the 512 that a program and what it calls have.
#[inline(always)]
pub(super) fn in_memory<T>(value: &T) -> &T {
    core::hint::black_box(value)
}

/// Reads the IPv4 header at `l3`.
#[inline(always)]
pub(super) fn ipv4_at<F: Frame>(frame: &F, l3: usize) -> Option<Ipv4Hdr> {
    frame.load::<IPV4_LEN>(l3).map(wire::ipv4)
}

impl Segment {
    /// Reads the packet whose IPv4 header `ip` stands at `l3`.
    ///
    /// # Errors
    /// The reason why it has to take the kernel path.
    #[inline(always)]
    pub(super) fn parse<F: Frame>(frame: &mut F, l3: usize, ip: &Ipv4Hdr) -> Result<Self, Outcome> {
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
        let transport = match ip.proto {
            wire::TCP => Transport::tcp(frame, l4),
            wire::UDP => Transport::udp(frame, l4),
            _ => return Err(Outcome::KernelProtocol),
        };
        let Transport { header, check, flags, len, least, most } =
            transport.ok_or(Outcome::KernelMalformed)?;
        let [s0, s1, d0, d1] = frame.load(l4).ok_or(Outcome::KernelMalformed)?;
        let total_len = u16::from_be_bytes(ip.tot_len);
        // The kernel refuses a packet that is shorter than it says, and cuts off
        // what is behind one: padding of the smallest frames, which we cut off
        // too. An aggregate beyond 64 KiB says 0.
        let padding = frame.len().wrapping_sub(u32::from(total_len) + l3 as u32);
        let longest = wire::SMALLEST_FRAME;
        if padding != 0 && (padding > longest || frame.len() > longest) {
            return Err(Outcome::KernelMalformed);
        }
        // What conntrack takes for invalid it does not translate: that proves
        // nothing about the flow.
        if most < least || u32::from(total_len) < IPV4_LEN as u32 + u32::from(most) {
            return Err(Outcome::KernelMalformed);
        }
        // The kernel drops a packet with a wrong one; we would mend nothing.
        if wire::ipv4_checksum(ip) != ip.check {
            return Err(Outcome::KernelMalformed);
        }
        Ok(Self {
            tuple: Tuple4 {
                saddr: ip.src_addr,
                daddr: ip.dst_addr,
                sport: [s0, s1],
                dport: [d0, d1],
            },
            proto: ip.proto,
            tcp_flags: flags,
            id: ip.id,
            ttl: ip.ttl,
            tos: ip.tos,
            check: ip.check,
            transport: header,
            transport_check: check,
            total_len,
            header_len: IPV4_LEN as u16 + len,
        })
    }

    /// Key of its flow in this direction ([`crate::abi::direction`]).
    #[inline(always)]
    pub(super) fn key(&self, direction: u8) -> FlowKey {
        FlowKey { tuple: self.tuple, proto: self.proto, direction, reserved: [0; 2] }
    }

    /// Whether bytes follow the IP packet whose header stands at `l3`.
    #[inline(always)]
    pub(super) fn is_padded<F: Frame>(&self, frame: &F, l3: usize) -> bool {
        u32::from(self.total_len) + (l3 as u32) < frame.len()
    }

    /// Whether it asks for a connection.
    #[inline(always)]
    pub(super) fn is_syn(&self) -> bool {
        self.tcp_flags & wire::TCP_HANDSHAKE == wire::TCP_SYN
    }

    /// Length in bytes of the largest IP packet that this becomes on a wire:
    /// itself, or one segment of it.
    #[inline(always)]
    pub(super) fn wire_len(&self, gso_size: u32) -> u32 {
        if gso_size == 0 {
            u32::from(self.total_len)
        } else {
            gso_size + u32::from(self.header_len)
        }
    }
}

/// A transport header, and what its lengths may be.
struct Transport {
    header: [u8; 12],
    check: [u8; 2],
    flags: u8,
    /// Length of the header in bytes.
    len: u16,
    least: u16,
    most: u16,
}

impl Transport {
    #[inline(always)]
    fn tcp<F: Frame>(frame: &mut F, l4: usize) -> Option<Self> {
        frame.linearize((l4 + 20) as u32);
        let header: [u8; 12] = frame.load(l4 + 4)?;
        let len = u16::from(header[8] >> 4) * 4;
        let check = frame.load(l4 + wire::TCP_CHECK)?;
        Some(Self { header, check, flags: header[9], len, least: 20, most: len })
    }

    #[inline(always)]
    fn udp<F: Frame>(frame: &mut F, l4: usize) -> Option<Self> {
        frame.linearize((l4 + wire::UDP_LEN) as u32);
        let [l0, l1, c0, c1] = frame.load(l4 + 4)?;
        Some(Self {
            header: [l0, l1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            check: [c0, c1],
            flags: 0,
            len: wire::UDP_LEN as u16,
            least: wire::UDP_LEN as u16,
            most: u16::from_be_bytes([l0, l1]),
        })
    }
}

/// Reads the IPv4 header behind the Ethernet header, if there is one.
#[inline(always)]
pub(super) fn plain_ipv4<F: Frame>(frame: &mut F) -> Option<Ipv4Hdr> {
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
pub(super) fn macs<F: Frame>(frame: &F, l2: usize) -> Option<([u8; 6], [u8; 6])> {
    Some((frame.load(l2)?, frame.load(l2 + 6)?))
}
