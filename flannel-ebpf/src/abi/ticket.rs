//! Tickets: what an entry hook writes down about one packet that it lets pass.
//! The packet carries the number of its ticket in `skb->tc_index`.
//!
//! Tickets lie in one array. Each CPU has a region of its own, of which slot 0
//! counts the tickets given out. A slot is written by its CPU only, round robin,
//! and may be read by all.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::FlowKey;

/// Tickets of one CPU, with the slot that counts them, as a power of two: 1024,
/// more than packets can wait between entry and exit
/// (`net.core.netdev_max_backlog`).
const MOST_SLOTS_LOG2: u8 = 10;
/// Bits of a number.
const NUMBER_BITS: u8 = 16;

/// Number of a packet that the fast path sends: no ticket has it.
pub const CARRIED: u16 = u16::MAX;

/// How tickets are numbered on this machine: an index into the array, and above
/// it the lowest bits of how often the slot was given out. By those a packet that
/// waited long does not take its slot's next ticket for its own.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct TicketNumbers {
    /// Slots of each CPU's region, as a power of two.
    pub slots_log2: u8,
    /// Bits of an index.
    pub index_log2: u8,
}

impl TicketNumbers {
    /// For a machine with so many CPUs.
    pub const fn of(cpus: u32) -> Self {
        let mut regions_log2 = 0;
        while (1 << regions_log2) < cpus {
            regions_log2 += 1;
        }
        let room = NUMBER_BITS.saturating_sub(regions_log2);
        let slots_log2 = if room < MOST_SLOTS_LOG2 { room } else { MOST_SLOTS_LOG2 };
        Self { slots_log2, index_log2: slots_log2 + regions_log2 }
    }

    /// Slots of each CPU's region.
    #[inline(always)]
    pub const fn slots(self) -> u32 {
        1 << (self.slots_log2 & 15)
    }

    /// Index of the slot that counts a CPU's tickets.
    #[inline(always)]
    pub const fn region(self, cpu: u32) -> u32 {
        cpu << (self.slots_log2 & 15)
    }

    /// Number of a region's ticket of this sequence; 0 if there is none.
    #[inline(always)]
    pub const fn number(self, region: u32, sequence: u32) -> u16 {
        let turn = (sequence >> (self.slots_log2 & 15)) << (self.index_log2 & 31);
        let number = (turn | region | self.slot(sequence)) as u16;
        if number == CARRIED { 0 } else { number }
    }

    /// Slot within its region of a ticket of this sequence.
    #[inline(always)]
    pub const fn slot(self, sequence: u32) -> u32 {
        sequence & (self.slots() - 1)
    }

    /// Index into the array of the ticket with this number.
    #[inline(always)]
    pub const fn index(self, number: u16) -> u32 {
        number as u32 & ((1 << (self.index_log2 & 31)) - 1)
    }

    /// Whether the ticket of this sequence, which stands at the index of a number,
    /// is the one of that number.
    #[inline(always)]
    pub const fn is_of(self, number: u16, sequence: u32) -> bool {
        let index = self.index(number);
        let region = index & !(self.slots() - 1);
        number != 0 && sequence != 0 && self.number(region, sequence) == number
    }
}

/// One packet at its entry hook.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Ticket {
    /// Number of the ticket among all of its CPU; 0 while it is written. In slot
    /// 0 of a region: the number of the last one.
    pub sequence: u32,
    /// [`Config::generation`](super::Config::generation) at the entry.
    pub generation: u32,
    /// Monotonic time in ns.
    pub time_ns: u64,
    /// Key of its flow. The ports are 0 if it is neither TCP nor UDP.
    pub key: FlowKey,
    /// Interface of the entry hook.
    pub entry_ifindex: u32,
    /// Inwards the outer source; zero if the packet came without a tunnel.
    pub peer_ip: [u8; 4],
    /// Outwards the flow hash (`skb->hash`), which the kernel's path leaves alone;
    /// 0: unknown.
    pub hash: u32,
    /// What the transport header says besides ports and checksum: of TCP
    /// sequence, acknowledgement, offset, flags and window, of UDP the length.
    pub transport: [u8; 12],
    /// Transport checksum.
    pub check: [u8; 2],
    /// IPv4 identification.
    pub id: [u8; 2],
    /// Length of the IP packet in bytes, host byte order.
    pub total_len: u16,
    /// TTL.
    pub ttl: u8,
    /// TOS byte.
    pub tos: u8,
    /// Destination MAC of the frame.
    pub entry_mac: [u8; 6],
    /// Bits of [`ticket_flag`].
    pub flags: u8,
    /// Always zero.
    pub reserved: u8,
}

/// Bits of [`Ticket::flags`].
pub mod ticket_flag {
    /// May confirm its flow: TCP or UDP, whole and unchanged by the tunnel.
    pub const FLOW: u8 = 1;
    /// Goes around the kernel's VXLAN device: proves nothing about the tunnel.
    pub const SHORTCUT: u8 = 2;
    /// An aggregate (GSO), which the kernel may cut into its segments on the way.
    pub const AGGREGATE: u8 = 4;
}
