//! The maps of a node in memory.

use core::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;
use std::ops::Deref;

use super::{OVERLAY, PORT, SECOND, SECONDARY, SLOTS, UNDERLAY, VETH, underlay, vtep};
use crate::abi::{
    Attendance, Config, Exemption, Flow, FlowKey, Outcome, Stranger, Subnet, Ticket, TicketNumbers,
    Veth, flag,
};
use crate::path::eager::Opening;
use crate::path::exemption::Asked;
use crate::path::leave::Left;
use crate::path::proof::{Proof, Witness};
use crate::path::segment::Segment;
use crate::path::source::{Judged, Sender};
use crate::path::ticket::{self, Among, Checked, Entry};
use crate::path::{Counters, Lookups, NextHop, Skb, Tables, Traffic, Trip, Way as Route, decap};

const HOUR: u64 = 3_600 * SECOND;

/// The maps of one node.
pub(crate) struct Node {
    pub(crate) config: Config,
    attendance: Attendance,
    pub(crate) now: Cell<u64>,
    pub(crate) flows: RefCell<HashMap<FlowKey, Flow>>,
    pub(crate) subnets: HashMap<[u8; 3], Subnet>,
    pub(crate) veths: HashMap<u32, Veth>,
    pub(crate) exemptions: Vec<Exemption>,
    pub(crate) strangers: RefCell<HashMap<[u8; 4], Stranger>>,
    tickets: Vec<Cell<Ticket>>,
    proof: RefCell<Proof>,
    /// The CPU, of two, that runs the programs.
    pub(crate) cpu: Cell<u32>,
    /// Tickets as they were when somebody looked.
    copies: Vec<OnceCell<Ticket>>,
    copied: Cell<usize>,
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
                underlay_vrf: 0,
                tickets: TicketNumbers { slots_log2: 4, index_log2: 5 },
                reserved: 0,
                ttl_above_64: 0,
            },
            // So that tests may let minutes pass.
            attendance: Attendance { time_ns: HOUR, ..Attendance::default() },
            now: Cell::new(SECOND),
            flows: RefCell::default(),
            subnets,
            veths: HashMap::from([(VETH, Veth { action: 2, mtu: 1450, ..Veth::default() })]),
            exemptions: Vec::new(),
            strangers: RefCell::default(),
            proof: RefCell::default(),
            tickets: (0..2 * SLOTS).map(|_| Cell::default()).collect(),
            cpu: Cell::new(0),
            copies: vec![OnceCell::new(); 256],
            copied: Cell::new(0),
            epoch: Cell::new(0),
            path_mtu: Cell::new(1500),
            way_out: Cell::new(UNDERLAY),
            resolved: Cell::new(true),
            counters: RefCell::default(),
            peer_counters: RefCell::default(),
        }
    }

    pub(crate) fn attended(self, attendance: Attendance) -> Self {
        Self { attendance, ..self }
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
        // A copy that lives as long as the node, or on: tests are short.
        let ticket = self.tickets.get(index as usize)?.get();
        let next = self.copied.replace(self.copied.get() + 1);
        match self.copies.get(next) {
            Some(copy) => Some(copy.get_or_init(|| ticket)),
            None => Some(Box::leak(Box::new(ticket))),
        }
    }
    fn ticket_sequence(&self, index: u32) -> u32 {
        self.tickets.get(index as usize).map_or(0, |ticket| ticket.get().sequence)
    }
    fn subnet(&self, [a, b, c, _]: [u8; 4]) -> Option<&Subnet> {
        self.subnets.get(&[a, b, c])
    }
    fn peer(&self, addr: [u8; 4]) -> Option<u32> {
        self.subnets.values().find(|subnet| subnet.public_ip == addr).map(|subnet| subnet.peer_id)
    }
    fn veth(&self, ifindex: u32) -> Option<Veth> {
        self.veths.get(&ifindex).copied()
    }
    fn unknown<V: Copy>(&self, value: V) -> V {
        value
    }
    fn is_exempt(&self, asked: Asked) -> bool {
        asked.is_covered(self)
    }
    fn is_exempt_by(&self, asked: Asked, index: u32) -> bool {
        self.exemptions.get(index as usize).is_some_and(|exemption| asked.is_covered_by(exemption))
    }
    fn is_last(&self, index: u32, sequence: u32, among: Among) -> bool {
        ticket::none_is_later(self, index, sequence, among)
    }
    fn is_followed(&self, index: u32, step: u32, among: Among) -> bool {
        ticket::is_followed(self, index, step, among)
    }
    fn attendance(&self) -> Option<&Attendance> {
        Some(&self.attendance)
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
    fn note_checked<S: Skb>(&self, frame: &mut S, checked: Checked, entry: &Entry) {
        checked.take(frame, self, entry);
    }
    fn leave<S: Skb>(&self, frame: &mut S, left: Left<'_>, found: Option<&Held>) {
        left.leave(frame, self, found);
    }
    fn frame_for_pod<S: Skb>(&self, frame: &mut S, segment: &Segment, flow: &Flow) -> bool {
        decap::frame_for_pod(frame, segment, flow)
    }
    fn take_ticket(&self, numbers: TicketNumbers, fill: impl FnOnce(&mut Ticket)) -> u16 {
        let region = numbers.region(self.cpu.get());
        let mut counter = self.tickets[region as usize].get();
        counter.sequence += 1;
        if numbers.slot(counter.sequence) == 0 {
            counter.sequence += 1;
        }
        self.tickets[region as usize].set(counter);
        let mut ticket = Ticket::default();
        fill(&mut ticket);
        ticket.sequence = counter.sequence;
        self.tickets[(region | numbers.slot(counter.sequence)) as usize].set(ticket);
        numbers.number(region, counter.sequence)
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
    fn judge(&self, sender: Sender) -> Judged {
        sender.judged(self)
    }
    fn edit_proof(&self, edit: impl FnOnce(&mut Proof)) {
        edit(&mut self.proof.borrow_mut());
    }
    fn read_proof<R>(&self, read: impl FnOnce(&Proof) -> R) -> Option<R> {
        Some(read(&self.proof.borrow()))
    }
    fn examine(&self, witness: Witness, now: u64) -> Witness {
        witness.examine(self, now)
    }
    fn confirm(&self, witness: Witness, now: u64) -> bool {
        witness.confirm(self, &self.proof.borrow(), now)
    }
    fn confirm_pair(&self, witness: Witness) {
        witness.confirm_pair(self, &self.proof.borrow());
    }
    fn open(&self, opening: Opening) {
        opening.open(self);
    }
    fn bar(&self, witness: Witness, now: u64) {
        witness.bar(self, &self.proof.borrow(), now);
    }
}
