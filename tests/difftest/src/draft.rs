//! A packet as somebody wants it to be, and the frames that it becomes. Pure.

use etherparse::checksum::Sum16BitWords;
use etherparse::{Ethernet2Header, Ipv4Header, TcpHeader, UdpHeader};

/// Length of an Ethernet header in bytes.
pub const ETH: usize = 14;

/// What follows the IPv4 header.
#[derive(Clone, Debug)]
pub enum Transport {
    /// TCP with the right checksum.
    Tcp(TcpHeader),
    /// UDP with the right length and checksum: source and destination port.
    Udp(u16, u16),
    /// Header bytes of any other protocol.
    Other(Vec<u8>),
}

/// What is done to a packet that was right.
#[derive(Clone, Debug)]
pub enum Edit {
    /// A byte of the IPv4 header; its checksum stays right.
    Header {
        /// Offset in the IPv4 header.
        at: usize,
        /// New value.
        value: u8,
    },
    /// The total length; the header checksum stays right.
    TotalLen(u16),
    /// Turns bits of the IPv4 header checksum.
    HeaderChecksum(u16),
    /// Bytes of the TCP or UDP header.
    Transport {
        /// Offset in the header.
        at: usize,
        /// New values.
        bytes: Vec<u8>,
    },
    /// Turns bits of the TCP or UDP checksum.
    TransportChecksum(u16),
    /// Sends the packet in fragments with this many bytes in each.
    Fragment(usize),
    /// Cuts the (last) frame to this length.
    Cut(usize),
    /// Puts bytes behind the (last) frame.
    Pad(usize),
}

/// A packet with a right header in every layer, and what is wrong with it.
#[derive(Clone, Debug)]
pub struct Draft {
    /// Ethernet header; its type stands behind the tags.
    pub eth: Ethernet2Header,
    /// VLAN tags, outermost first: TPID and TCI.
    pub tags: Vec<[u8; 4]>,
    /// IPv4 header; length and checksum are filled in.
    pub ip: Ipv4Header,
    /// TCP, UDP or other header; lengths and checksum are filled in.
    pub transport: Transport,
    /// What the transport carries.
    pub payload: Vec<u8>,
    /// Done in this order.
    pub edits: Vec<Edit>,
}

impl Draft {
    /// Offset of the IPv4 header in the frame.
    pub fn l3(&self) -> usize {
        ETH + 4 * self.tags.len()
    }

    /// Offset of the transport header in the frame.
    pub fn l4(&self) -> usize {
        self.l3() + self.ip.header_len()
    }

    /// Length of the transport header.
    pub fn transport_len(&self) -> usize {
        match &self.transport {
            Transport::Tcp(tcp) => tcp.header_len(),
            Transport::Udp(..) => UdpHeader::LEN,
            Transport::Other(bytes) => bytes.len(),
        }
    }

    /// Length of the whole IP packet.
    pub fn total_len(&self) -> usize {
        self.ip.header_len() + self.transport_len() + self.payload.len()
    }

    /// The frames: one, or several fragments.
    ///
    /// # Panics
    /// The payload is longer than 64 KiB.
    pub fn frames(&self) -> Vec<Vec<u8>> {
        let mut frame = self.whole();
        let (l3, l4) = (self.l3(), self.l4());
        let mut fragment = None;
        for edit in &self.edits {
            match edit {
                Edit::Header { at, value } => {
                    set(&mut frame, l3 + at, &[*value]);
                    renew_checksum(&mut frame, l3);
                }
                Edit::TotalLen(value) => {
                    set(&mut frame, l3 + 2, &value.to_be_bytes());
                    renew_checksum(&mut frame, l3);
                }
                Edit::HeaderChecksum(bits) => turn(&mut frame, l3 + 10, *bits),
                Edit::Transport { at, bytes } => set(&mut frame, l4 + at, bytes),
                Edit::TransportChecksum(bits) => {
                    let at = if matches!(self.transport, Transport::Udp(..)) { 6 } else { 16 };
                    turn(&mut frame, l4 + at, *bits);
                }
                Edit::Fragment(bytes) => fragment = Some(*bytes),
                Edit::Cut(length) => frame.truncate(*length),
                Edit::Pad(bytes) => frame.resize(frame.len() + bytes, 0xa5),
            }
        }
        match fragment {
            Some(bytes) => fragments(&frame, l3, bytes),
            None => vec![frame],
        }
    }

    fn whole(&self) -> Vec<u8> {
        let mut frame = Vec::with_capacity(self.l3() + self.total_len());
        frame.extend(self.eth.to_bytes());
        if !self.tags.is_empty() {
            let ether_type = frame.split_off(ETH - 2);
            frame.extend(self.tags.concat());
            frame.extend(ether_type);
        }
        let mut ip = self.ip.clone();
        ip.set_payload_len(self.transport_len() + self.payload.len()).expect("a short packet");
        ip.header_checksum = ip.calc_header_checksum();
        frame.extend(ip.to_bytes());
        match &self.transport {
            Transport::Tcp(tcp) => {
                let mut tcp = tcp.clone();
                tcp.checksum = tcp.calc_checksum_ipv4(&ip, &self.payload).expect("a short packet");
                frame.extend(tcp.to_bytes());
            }
            Transport::Udp(from, to) => {
                let udp = UdpHeader::with_ipv4_checksum(*from, *to, &ip, &self.payload)
                    .expect("a short packet");
                frame.extend(udp.to_bytes());
            }
            Transport::Other(bytes) => frame.extend(bytes),
        }
        frame.extend(&self.payload);
        frame
    }
}

/// Writes what fits.
fn set(frame: &mut [u8], at: usize, bytes: &[u8]) {
    for (to, from) in frame.iter_mut().skip(at).zip(bytes) {
        *to = *from;
    }
}

fn turn(frame: &mut [u8], at: usize, bits: u16) {
    for (to, bits) in frame.iter_mut().skip(at).zip(bits.to_be_bytes()) {
        *to ^= bits;
    }
}

/// Makes the checksum of the IPv4 header at `l3` right, over as many bytes as
/// the header says.
pub fn renew_checksum(frame: &mut [u8], l3: usize) {
    set(frame, l3 + 10, &[0, 0]);
    let length = frame.get(l3).map_or(0, |byte| usize::from(byte & 0x0f) * 4);
    let header = frame.get(l3..frame.len().min(l3 + length)).unwrap_or(&[]);
    let sum = Sum16BitWords::new().add_slice(header).ones_complement();
    set(frame, l3 + 10, &sum.to_ne_bytes());
}

/// Cuts an IP packet into fragments of `bytes` (rounded to 8) of payload. What
/// has no payload stays as it is.
pub fn fragments(frame: &[u8], l3: usize, bytes: usize) -> Vec<Vec<u8>> {
    let bytes = (bytes / 8).max(1) * 8;
    let l4 = l3 + frame.get(l3).map_or(0, |byte| usize::from(byte & 0x0f) * 4);
    let pieces: Vec<_> = frame.get(l4..).unwrap_or(&[]).chunks(bytes).collect();
    if pieces.is_empty() || l4 < l3 + 20 {
        return vec![frame.to_vec()];
    }
    let last = pieces.len().saturating_sub(1);
    let cut = |(index, piece): (usize, &&[u8])| {
        let mut fragment = frame[..l4].to_vec();
        fragment.extend(*piece);
        let total = u16::try_from(fragment.len() - l3).expect("a short packet");
        let offset = u16::try_from(index * bytes / 8).expect("a short packet");
        let more = u16::from(index < last) << 13;
        set(&mut fragment, l3 + 2, &total.to_be_bytes());
        set(&mut fragment, l3 + 6, &(more | offset).to_be_bytes());
        renew_checksum(&mut fragment, l3);
        fragment
    };
    pieces.iter().enumerate().map(cut).collect()
}
