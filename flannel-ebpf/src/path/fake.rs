//! A packet in a buffer, maps in memory, and the kernel's part of the way:
//! what it takes to run the hooks of a node in a test.

use core::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ops::Deref;

use etherparse::PacketBuilder;

use super::hook::from_wire::{Stripped, Wire};
use super::hook::{from_overlay, from_pod, from_underlay, to_overlay, to_pod};
use super::{
    Counters, Frame, Lookups, NextHop, OUTER_HEADERS, Skb, Tables, Traffic, Trip, Verdict,
    Way as Route,
};
use crate::abi::{
    Config, Exemption, Flow, FlowKey, Handover, Outcome, Stranger, Subnet, Ticket, TicketNumbers,
    Veth, flag,
};
use crate::wire::{self, ENCAP_LEN, ETH_LEN, Outer};

pub(crate) const UNDERLAY: u32 = 2;
pub(crate) const OVERLAY: u32 = 3;
pub(crate) const VETH: u32 = 7;
pub(crate) const PORT: u16 = 8472;
pub(crate) const GATEWAY_MAC: [u8; 6] = [2, 0, 0, 0, 1, 1];
pub(crate) const POD_MAC: [u8; 6] = [2, 0, 0, 0, 1, 2];
pub(crate) const SECOND: u64 = 1_000_000_000;

/// Address of a service, outside of the overlay network.
pub(crate) const SERVICE: [u8; 4] = [10, 96, 0, 7];
/// Tickets of the one CPU that takes some.
pub(crate) const SLOTS: u32 = 16;
/// Another address of every node.
pub(crate) const SECONDARY: [u8; 4] = [203, 0, 113, 9];

/// Addresses of the two nodes of the tests.
pub(crate) fn underlay(node: u8) -> [u8; 4] {
    [192, 0, 2, node]
}

pub(crate) fn vtep(node: u8) -> [u8; 6] {
    [2, 0, 0, 0, 0, node]
}

pub(crate) fn pod(node: u8) -> [u8; 4] {
    [10, 5, node, 2]
}

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

/// The maps of one node.
pub(crate) struct Node {
    pub(crate) config: Config,
    pub(crate) now: Cell<u64>,
    pub(crate) flows: RefCell<HashMap<FlowKey, Flow>>,
    pub(crate) subnets: HashMap<[u8; 3], Subnet>,
    pub(crate) veths: HashMap<u32, Veth>,
    pub(crate) exemptions: Vec<Exemption>,
    pub(crate) strangers: RefCell<HashMap<[u8; 4], Stranger>>,
    tickets: Vec<Cell<Ticket>>,
    pub(crate) epoch: Cell<u32>,
    /// Path MTU to every peer.
    pub(crate) path_mtu: Cell<u16>,
    /// Where tunnel packets leave.
    pub(crate) way_out: Cell<u32>,
    pub(crate) resolved: Cell<bool>,
    counters: RefCell<HashMap<&'static str, u64>>,
    peer_counters: RefCell<HashMap<(u32, &'static str), u64>>,
}

impl Node {
    /// Node `me` with peers 1 to 3 but for itself.
    pub(crate) fn new(me: u8) -> Self {
        let subnets = (1..=3)
            .filter(|&node| node != me)
            .map(|node| {
                let subnet = Subnet {
                    vtep_mac: vtep(node),
                    flags: 0,
                    public_ip: underlay(node),
                    peer_id: u32::from(node),
                };
                ([10, 5, node], subnet)
            })
            .collect();
        Self {
            config: Config {
                abi_version: crate::abi::ABI_VERSION,
                generation: 1,
                window_ns: 5 * SECOND,
                udp_window_ns: 5 * SECOND,
                flags: flag::FAST_PATH | flag::TCP | flag::VERIFY_DROP,
                vni: 1,
                underlay_ifindex: UNDERLAY,
                overlay_ifindex: OVERLAY,
                local_ip: underlay(me),
                network: [10, 5, 0, 0],
                netmask: [255, 255, 0, 0],
                subnet: [10, 5, me, 0],
                subnet_mask: [255, 255, 255, 0],
                port: PORT.to_be_bytes(),
                mtu: 1450,
                vtep_mac: vtep(me),
                sport_min: 32_768,
                sport_max: 60_999,
                direct_mtu: 1500,
                exemptions: 0,
                tickets: TicketNumbers { slots_log2: 4, index_log2: 5 },
                reserved: [0; 6],
            },
            now: Cell::new(SECOND),
            flows: RefCell::default(),
            subnets,
            veths: HashMap::from([(VETH, Veth { action: 2, mtu: 1450, ..Veth::default() })]),
            exemptions: Vec::new(),
            strangers: RefCell::default(),
            tickets: (0..2 * SLOTS).map(|_| Cell::default()).collect(),
            epoch: Cell::new(0),
            path_mtu: Cell::new(1500),
            way_out: Cell::new(UNDERLAY),
            resolved: Cell::new(true),
            counters: RefCell::default(),
            peer_counters: RefCell::default(),
        }
    }

    pub(crate) fn counted(&self, outcome: Outcome) -> u64 {
        self.counters.borrow().get(outcome.name()).copied().unwrap_or(0)
    }

    /// Packets that the entry hooks have seen, and the sum of what they did.
    pub(crate) fn balance(&self) -> (u64, u64) {
        let sum = |outcomes: &mut dyn Iterator<Item = &Outcome>| {
            outcomes.map(|&outcome| self.counted(outcome)).sum()
        };
        (
            sum(&mut [Outcome::SeenFromPod, Outcome::SeenFromUnderlay, Outcome::SeenLate].iter()),
            sum(&mut Outcome::ALL.iter().filter(|outcome| outcome.ends_entry())),
        )
    }

    pub(crate) fn peer_counted(&self, peer: u32, traffic: Traffic) -> u64 {
        let name = traffic_name(traffic);
        self.peer_counters.borrow().get(&(peer, name)).copied().unwrap_or(0)
    }

    /// As after ICMP from a router.
    pub(crate) fn raise(&self) {
        self.raise_epoch();
    }

    pub(crate) fn pass_time(&self, ns: u64) {
        self.now.set(self.now.get() + ns);
    }
}

fn traffic_name(traffic: Traffic) -> &'static str {
    match traffic {
        Traffic::TxFast => "tx_fast",
        Traffic::TxKernel => "tx_kernel",
        Traffic::RxFast => "rx_fast",
        Traffic::RxKernel => "rx_kernel",
    }
}

/// A flow as it was when it was found.
pub(crate) struct Held {
    key: FlowKey,
    flow: Flow,
}

impl Deref for Held {
    type Target = Flow;

    fn deref(&self) -> &Flow {
        &self.flow
    }
}

impl Lookups for Node {
    type FlowRef<'a> = Held;

    fn config(&self) -> Option<&Config> {
        Some(&self.config)
    }
    fn now(&self) -> u64 {
        self.now.get()
    }
    fn flow(&self, key: &FlowKey) -> Option<Held> {
        self.flows.borrow().get(key).map(|flow| Held { key: *key, flow: *flow })
    }
    fn ticket(&self, index: u32) -> Option<&Ticket> {
        // A copy that lives on: tests are short.
        let ticket = self.tickets.get(index as usize)?.get();
        Some(Box::leak(Box::new(ticket)))
    }
    fn ticket_sequence(&self, index: u32) -> u32 {
        self.tickets.get(index as usize).map_or(0, |ticket| ticket.get().sequence)
    }
    fn subnet(&self, [a, b, c, _]: [u8; 4]) -> Option<Subnet> {
        self.subnets.get(&[a, b, c]).copied()
    }
    fn peer(&self, addr: [u8; 4]) -> Option<u32> {
        self.subnets.values().find(|subnet| subnet.public_ip == addr).map(|subnet| subnet.peer_id)
    }
    fn veth(&self, ifindex: u32) -> Option<Veth> {
        self.veths.get(&ifindex).copied()
    }
    fn exemption(&self, index: u32) -> Option<&Exemption> {
        self.exemptions.get(index as usize)
    }
    fn epoch(&self) -> u32 {
        self.epoch.get()
    }
    fn way(&self, trip: &Trip) -> Option<Route> {
        // A route to a pod leads by its node.
        let to = self.subnet(trip.destination).map_or(trip.destination, |to| to.public_ip);
        let fits = trip.len <= self.path_mtu.get();
        (self.resolved.get() && fits).then_some(Route {
            ifindex: self.way_out.get(),
            next_hop: NextHop::ipv4(to),
            mtu: self.path_mtu.get(),
        })
    }
    fn is_local(&self, addr: [u8; 4]) -> bool {
        let [a, b, c, _] = self.config.subnet;
        addr == self.config.local_ip || addr == SECONDARY || addr == [a, b, c, 1]
    }
}

impl Counters for Node {
    fn count(&self, outcome: Outcome) {
        *self.counters.borrow_mut().entry(outcome.name()).or_default() += 1;
    }
    fn count_peer(&self, peer_id: u32, traffic: Traffic, _: u32) {
        *self.peer_counters.borrow_mut().entry((peer_id, traffic_name(traffic))).or_default() += 1;
    }
}

impl Tables for Node {
    fn random(&self) -> u32 {
        0xabcd
    }
    fn set_flow(
        &self,
        key: &FlowKey,
        found: Option<Held>,
        state: u8,
        fill: impl FnOnce(&mut Flow),
    ) {
        let mut flows = self.flows.borrow_mut();
        let mut flow = Flow::default();
        if let Some(found) = found {
            assert_eq!(found.key, *key);
            flow = *flows.get(key).expect("a flow that was removed is written");
        }
        fill(&mut flow);
        flow.state = state;
        flows.insert(*key, flow);
    }
    fn edit_flow(&self, found: &Held, edit: impl FnOnce(&mut Flow)) {
        let mut flows = self.flows.borrow_mut();
        edit(flows.get_mut(&found.key).expect("a flow that was removed is edited"));
    }
    fn remove_flow(&self, key: &FlowKey) {
        self.flows.borrow_mut().remove(key);
    }
    fn take_ticket(&self, numbers: TicketNumbers, fill: impl FnOnce(&mut Ticket)) -> u16 {
        let mut counter = self.tickets[0].get();
        counter.sequence += 1;
        if numbers.slot(counter.sequence) == 0 {
            counter.sequence += 1;
        }
        self.tickets[0].set(counter);
        let mut ticket = Ticket::default();
        fill(&mut ticket);
        ticket.sequence = counter.sequence;
        self.tickets[numbers.slot(counter.sequence) as usize].set(ticket);
        numbers.number(0, counter.sequence)
    }
    fn raise_epoch(&self) {
        self.epoch.set(self.epoch.get() + 1);
    }
    fn note_stranger(&self, outer: [u8; 4], inner: [u8; 4], peer_id: u32, now: u64) {
        let mut strangers = self.strangers.borrow_mut();
        let known = strangers.entry(outer).or_default();
        let packets = known.packets + 1;
        *known = Stranger { time_ns: now, packets, inner_source: inner, peer_id };
    }
}

/// The packet, whoever carried it through the tunnel, if the kernel routed it.
pub(crate) fn kernel(way: Way) -> Packet {
    match way {
        Way::Kernel(packet) | Way::Shortcut(packet) => packet,
        other => panic!("not the kernel path: {other:?}"),
    }
}

/// The packet that the fast path carried.
pub(crate) fn fast(way: Way) -> (Packet, Verdict) {
    match way {
        Way::Fast(packet, verdict) => (packet, verdict),
        other => panic!("not the fast path: {other:?}"),
    }
}

/// The way of a packet through a node, and where it came out.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Fast(Packet, Verdict),
    /// The kernel routed it; its VXLAN device had no part in it.
    Shortcut(Packet),
    Kernel(Packet),
    Dropped,
}

/// Sends a pod's packet through node `me` to node `to`.
pub(crate) fn send(node: &Node, packet: Packet, me: u8, to: u8) -> Way {
    let mut packet = packet.at(VETH);
    match from_pod::run(&mut packet, node) {
        Verdict::Pass => {}
        Verdict::Drop => return Way::Dropped,
        verdict => return Way::Fast(packet.at(UNDERLAY), verdict),
    }
    leave(node, packet.forwarded(vtep(to), vtep(me)), me, to)
}

/// Sends a packet that the kernel has routed through `flannel.<VNI>`.
pub(crate) fn leave(node: &Node, packet: Packet, me: u8, to: u8) -> Way {
    let mut packet = packet.at(OVERLAY);
    match to_overlay::run(&mut packet, node) {
        Verdict::Pass => Way::Kernel(packet.encapsulated(me, to)),
        Verdict::NextHop { ifindex, next_hop } => {
            assert_eq!((ifindex, next_hop), (UNDERLAY, NextHop::ipv4(underlay(to))));
            Way::Shortcut(packet.at(UNDERLAY))
        }
        other => panic!("at the exit: {other:?}"),
    }
}

/// Receives a tunnel packet at a node, for its pod.
pub(crate) fn receive(node: &Node, packet: Packet) -> Way {
    let mut packet = packet.at(UNDERLAY);
    let (mut packet, way): (_, fn(Packet) -> Way) = match from_underlay::run(&mut packet, node) {
        Verdict::Pass => (packet.decapsulated(), Way::Kernel),
        Verdict::Ingress { ifindex } => (packet.at(ifindex), Way::Shortcut),
        Verdict::Drop => return Way::Dropped,
        verdict => return Way::Fast(packet.at(VETH), verdict),
    };
    match from_overlay::run(&mut packet, node) {
        Verdict::Pass => {}
        Verdict::Drop => return Way::Dropped,
        verdict => return Way::Fast(packet.at(VETH), verdict),
    }
    let mut packet = packet.forwarded(POD_MAC, GATEWAY_MAC).at(VETH);
    assert_eq!(to_pod::run(&mut packet, node), Verdict::Pass);
    way(packet)
}
