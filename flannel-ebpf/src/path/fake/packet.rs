//! A packet in a buffer, and what the kernel makes of it on its way.

use etherparse::PacketBuilder;

use super::{GATEWAY_MAC, OVERLAY, POD_MAC, PORT, UNDERLAY, VETH, pod, underlay, vtep};
use crate::abi::Handover;
use crate::path::hook::from_wire::{Stripped, Wire};
use crate::path::{Frame, OUTER_HEADERS, Skb};
use crate::wire::{self, ENCAP_LEN, ETH_LEN, Outer};

/// A packet at a hook.
#[derive(Clone, Debug)]
pub(crate) struct Packet {
    pub(crate) bytes: Vec<u8>,
    pub(crate) ifindex: u32,
    pub(crate) gso_size: u32,
    pub(crate) tagged: bool,
    pub(crate) to_us: bool,
    /// `skb->mark`.
    pub(crate) mark: u32,
    /// `bpf_skb_adjust_room` refuses.
    pub(crate) rigid: bool,
    /// `skb->tc_index`.
    pub(crate) ticket: u16,
    /// `skb->hash`.
    pub(crate) hash: u32,
    /// `skb->priority`.
    pub(crate) priority: u32,
    /// What the VXLAN device has left in front of the packet.
    pub(crate) outer: Option<[u8; OUTER_HEADERS]>,
    /// The transport checksum is left to the device (CHECKSUM_PARTIAL).
    pub(crate) partial: bool,
    /// Metadata gets lost.
    pub(crate) forgetful: bool,
    /// Metadata.
    pub(crate) handover: Option<Handover>,
}

/// The same bytes and metadata; the ticket does not matter.
impl PartialEq for Packet {
    fn eq(&self, other: &Self) -> bool {
        let plain = |packet: &Self| {
            let Self { ifindex, gso_size, tagged, to_us, mark, priority, handover, .. } = packet;
            (*ifindex, *gso_size, *tagged, *to_us, *mark, *priority, *handover)
        };
        self.bytes == other.bytes && plain(self) == plain(other)
    }
}

impl Eq for Packet {}

impl Packet {
    pub(crate) fn new(bytes: Vec<u8>, ifindex: u32) -> Self {
        Self {
            bytes,
            ifindex,
            gso_size: 0,
            tagged: false,
            to_us: true,
            mark: 0,
            rigid: false,
            ticket: 0,
            hash: 0,
            priority: 0,
            outer: None,
            partial: false,
            forgetful: false,
            handover: None,
        }
    }

    /// UDP as the pod of one node sends it to the pod of another.
    pub(crate) fn udp(from: u8, to: u8, payload: &[u8]) -> Self {
        let mut bytes = Vec::new();
        PacketBuilder::ethernet2(POD_MAC, GATEWAY_MAC)
            .ipv4(pod(from), pod(to), 64)
            .udp(4000, 5000)
            .write(&mut bytes, payload)
            .unwrap();
        Self::new(bytes, VETH)
    }

    /// TCP likewise; `flags` are those of [`wire`]. ACK is set on all but a SYN.
    pub(crate) fn tcp(from: u8, to: u8, flags: u8, payload: &[u8]) -> Self {
        let mut builder = PacketBuilder::ethernet2(POD_MAC, GATEWAY_MAC)
            .ipv4(pod(from), pod(to), 64)
            .tcp(4000, 5000, 1, 1000);
        if flags & wire::TCP_SYN != 0 {
            builder = builder.syn();
        }
        if flags & wire::TCP_SYN == 0 || flags & wire::TCP_ACK != 0 {
            builder = builder.ack(1);
        }
        if flags & wire::TCP_FIN != 0 {
            builder = builder.fin();
        }
        if flags & wire::TCP_RST != 0 {
            builder = builder.rst();
        }
        let mut bytes = Vec::new();
        builder.write(&mut bytes, payload).unwrap();
        Self::new(bytes, VETH)
    }

    pub(crate) fn at(mut self, ifindex: u32) -> Self {
        self.ifindex = ifindex;
        self
    }

    /// The IPv4 header at `l3`, edited, with its checksum made right again.
    pub(crate) fn edit(mut self, l3: usize, edit: impl FnOnce(&mut [u8])) -> Self {
        edit(&mut self.bytes[l3..]);
        self.bytes[l3 + 10..l3 + 12].fill(0);
        let header: [u8; 20] = self.bytes[l3..l3 + 20].try_into().unwrap();
        let check = wire::ipv4_checksum(&wire::ipv4(header));
        self.bytes[l3 + 10..l3 + 12].copy_from_slice(&check);
        self
    }

    /// One hop of the kernel's forwarding, with new MACs.
    pub(crate) fn forwarded(self, dst: [u8; 6], src: [u8; 6]) -> Self {
        let mut packet = self.edit(ETH_LEN, |ip| ip[8] -= 1);
        packet.bytes[..6].copy_from_slice(&dst);
        packet.bytes[6..12].copy_from_slice(&src);
        packet
    }

    /// As its sender's node sends it on: with one hop less.
    pub(crate) fn sent(self) -> Self {
        self.edit(ETH_LEN, |ip| ip[8] -= 1)
    }

    /// The destination translated, with all checksums, as netfilter does it.
    pub(crate) fn nat(self, to: [u8; 4], port: u16) -> Self {
        self.translate(16, to, 22, port)
    }

    /// Likewise the source.
    pub(crate) fn snat(self, from: [u8; 4], port: u16) -> Self {
        self.translate(12, from, 20, port)
    }

    fn translate(mut self, addr_at: usize, addr: [u8; 4], port_at: usize, port: u16) -> Self {
        let old: [u8; 4] = self.load(ETH_LEN + addr_at).unwrap();
        let [p0, p1]: [u8; 2] = self.load(ETH_LEN + port_at).unwrap();
        let [q0, q1] = port.to_be_bytes();
        let udp = self.bytes[ETH_LEN + 9] == wire::UDP;
        let field = ETH_LEN + 20 + if udp { wire::UDP_CHECK } else { wire::TCP_CHECK };
        if !udp || self.load(field) != Some([0; 2]) {
            let addresses = wire::sum_of_change([old], [addr]);
            let ports = wire::sum_of_change([[p0, p1, 0, 0]], [[q0, q1, 0, 0]]);
            self.add_to_checksum(field, addresses, true, udp).unwrap();
            self.add_to_checksum(field, ports, false, udp).unwrap();
        }
        let mut packet = self.edit(ETH_LEN, |ip| ip[addr_at..addr_at + 4].copy_from_slice(&addr));
        packet.bytes[ETH_LEN + port_at..ETH_LEN + port_at + 2].copy_from_slice(&[q0, q1]);
        packet
    }

    /// What the kernel's VXLAN device makes of a frame of `flannel.<VNI>`.
    pub(crate) fn encapsulated(self, from: u8, to: u8) -> Self {
        let ip = self.bytes[ETH_LEN..].to_vec();
        let headers = wire::encap_headers(&Outer {
            source: underlay(from),
            destination: underlay(to),
            source_port: 40_000,
            port: PORT.to_be_bytes(),
            vni: 1,
            id: 7,
            ttl: wire::OUTER_TTL,
            inner_tos: ip[1],
            inner_len: ip.len() as u16,
            vtep_dst: vtep(to),
            vtep_src: vtep(from),
            gbp: 0,
        });
        let mut bytes = vec![2, 0, 0, 0, 9, to, 2, 0, 0, 0, 9, from, 8, 0];
        bytes.extend_from_slice(&headers);
        bytes.extend_from_slice(&ip);
        Self { bytes, ifindex: UNDERLAY, ..self }
    }

    /// The answer to this tunnel packet of node 1, as it comes back to node 2
    /// from there: addresses and ports the other way round.
    pub(crate) fn encapsulated_answer(&self) -> Self {
        let mut inner = self.clone().decapsulated();
        inner.bytes.splice(..ETH_LEN, [2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0]);
        let ip = &mut inner.bytes[ETH_LEN..];
        ip[12..20].rotate_left(4);
        ip[20..24].rotate_left(2);
        ip[12..16].copy_from_slice(&pod(1));
        ip[16..20].copy_from_slice(&pod(2));
        let field =
            ETH_LEN + 20 + if ip[9] == wire::UDP { wire::UDP_CHECK } else { wire::TCP_CHECK };
        let (from, to) = (self.bytes[ETH_LEN + ENCAP_LEN + 12..][..8].to_vec(), [pod(1), pod(2)]);
        let before = [from[4..].try_into().unwrap(), from[..4].try_into().unwrap()];
        let udp = inner.bytes[ETH_LEN + 9] == wire::UDP;
        inner.add_to_checksum(field, wire::sum_of_change(before, to), true, udp).unwrap();
        inner.edit(ETH_LEN, |_| ()).encapsulated(1, 2)
    }

    /// What it makes of a tunnel packet on arrival.
    pub(crate) fn decapsulated(mut self) -> Self {
        let outer = &self.bytes[ETH_LEN..ETH_LEN + OUTER_HEADERS];
        self.outer = Some(outer.try_into().unwrap());
        self.bytes.drain(..ENCAP_LEN);
        self.ifindex = OVERLAY;
        self
    }
}

impl Frame for Packet {
    fn len(&self) -> u32 {
        self.bytes.len() as u32
    }
    fn ifindex(&self) -> u32 {
        self.ifindex
    }
    fn gso_size(&self) -> u32 {
        self.gso_size
    }
    fn tagged(&self) -> bool {
        self.tagged
    }
    fn linearize(&mut self, _bytes: u32) {}
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.bytes.get(offset..offset + N)?.try_into().ok()
    }
}

impl Skb for Packet {
    fn to_us(&self) -> bool {
        self.to_us
    }
    fn store<const N: usize>(&mut self, offset: usize, bytes: &[u8; N]) -> Option<()> {
        self.bytes.get_mut(offset..offset + N)?.copy_from_slice(bytes);
        Some(())
    }
    fn add_to_checksum(&mut self, offset: usize, sum: u32, pseudo: bool, udp: bool) -> Option<()> {
        let field: [u8; 2] = self.load(offset)?;
        let changed = match (self.partial, pseudo) {
            (true, false) => return Some(()),
            (true, true) => wire::changed_partial_sum(field, sum),
            (false, _) => wire::changed_checksum(field, sum),
        };
        let changed = if udp && changed == 0 { 0xffff } else { changed };
        self.store(offset, &changed.to_ne_bytes())
    }
    fn trim(&mut self, len: u32) -> Option<()> {
        self.bytes.truncate(len as usize);
        Some(())
    }
    fn hash(&mut self) -> u32 {
        // Of the flow as it is when somebody asks first.
        if self.hash == 0 {
            let [a, b] = self.load::<2>(ETH_LEN + 20).unwrap_or_default();
            self.hash = 0x1234_0000 | u32::from(a) << 8 | u32::from(b);
        }
        self.hash
    }
    fn known_hash(&self) -> u32 {
        self.hash
    }
    fn grow(&mut self) -> bool {
        if self.rigid {
            return false;
        }
        self.bytes.splice(ETH_LEN..ETH_LEN, [0; ENCAP_LEN]);
        true
    }
    fn shrink(&mut self) -> bool {
        if self.rigid || self.bytes.len() < ETH_LEN + ENCAP_LEN {
            return false;
        }
        self.bytes.drain(ETH_LEN..ETH_LEN + ENCAP_LEN);
        true
    }
    fn mark(&self) -> u32 {
        self.mark
    }
    fn set_mark(&mut self, mark: u32) {
        self.mark = mark;
    }
    fn priority(&self) -> u32 {
        self.priority
    }
    fn set_priority(&mut self, priority: u32) {
        self.priority = priority;
    }
    fn ticket(&self) -> u16 {
        self.ticket
    }
    fn set_ticket(&mut self, number: u16) {
        self.ticket = number;
    }
    fn outer_headers(&self) -> Option<[u8; OUTER_HEADERS]> {
        self.outer
    }
    fn take_handover(&mut self) -> Option<Handover> {
        self.to_us |= self.handover.is_some();
        self.handover.take()
    }
}

impl Wire for Packet {
    fn strip(&mut self, handover: &Handover) -> Stripped {
        if self.rigid {
            return Stripped::Refused;
        }
        self.bytes.drain(..ENCAP_LEN);
        if self.forgetful {
            return Stripped::Broken;
        }
        self.handover = Some(*handover);
        // What `eth_type_trans` makes of the inner destination.
        self.to_us = false;
        Stripped::Done
    }
}
