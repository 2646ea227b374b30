//! Proofs: what an exit hook has found out about a packet, and the flow that it confirms.

use super::segment::Segment;
use super::ticket::{self, Of};
use super::{NextHop, Tables, eager, exemption, flow, treatment};
use crate::abi::{
    Config, Flow, FlowKey, Outcome, Ticket, Treatment, action, direction, flag, state,
};
use crate::wire;

/// A packet at an exit hook, and how the next ones of its flow are to be sent.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Proof {
    /// The packet as it is now.
    pub(super) packet: Segment,
    /// The mark that the next ones get.
    pub(super) mark: u32,
    /// The priority that the next ones get.
    pub(super) priority: u32,
    /// Their way.
    pub(super) exit: Exit,
    /// What the kernel did to the packet ([`Witness::examine`]).
    treatment: Treatment,
}

/// How the fast path is to send a flow's packets.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Exit {
    /// Monotonic time in ns until which the way here was proven.
    pub(super) until: u64,
    /// Output interface.
    pub(super) ifindex: u32,
    /// Index into [`map::PEER_STATS`](crate::abi::map::PEER_STATS).
    pub(super) peer_id: u32,
    /// [`Flow::peer_ip`].
    pub(super) peer_ip: [u8; 4],
    /// Largest IP packet in bytes.
    pub(super) max_len: u16,
    /// [`action`]; [`action::KERNEL`] where something keeps packets from this way, or it is
    /// not known.
    pub(super) action: u8,
    /// Outwards the underlay's next hop.
    pub(super) next_hop: NextHop,
    /// [`Flow::dst_mac`].
    pub(super) dst_mac: [u8; 6],
    /// [`Flow::src_mac`].
    pub(super) src_mac: [u8; 6],
}

/// The packet of a proof, in one word. Functions of the programs are called with it: the
/// verifier goes through such a function once, not once per way to it.
///
/// From below: the number of its ticket, TCP flags, protocol, `KEPT`, `LAST`, `CONNECTED`,
/// `CUT`.
#[derive(Clone, Copy, Debug)]
pub struct Witness(pub u64);

impl Witness {
    /// Shift of the bit: a rule keeps the flow with the kernel. Its next packets need no
    /// tickets then.
    const KEPT: u32 = 32;
    /// Shift of the bit: no later packet of its flow is known to be under way.
    const LAST: u32 = 33;
    /// Shift of the bit: it also proves the pair of the connection that it opens.
    const CONNECTED: u32 = 34;
    /// Shift of the bit: it may be the first one of an aggregate that the kernel has cut.
    const CUT: u32 = 35;
    /// No ticket has the number 0.
    const NOTHING: Self = Self(0);

    /// The packet of this ticket.
    #[inline(always)]
    pub(super) fn new(number: u16) -> Self {
        Self(number.into())
    }

    /// The same; it also proves the pair of the connection that it opens.
    #[inline(always)]
    pub(super) fn connected(self) -> Self {
        Self(self.0 | 1 << Self::CONNECTED)
    }

    /// The same; it may be the first one of an aggregate that the kernel has cut.
    #[inline(always)]
    pub(super) fn maybe_cut(self) -> Self {
        Self(self.0 | 1 << Self::CUT)
    }

    /// The same, with what is known of the packet and its flow.
    #[inline(always)]
    fn with(self, packet: &Segment, kept: bool, last: bool) -> Self {
        Self(
            self.0
                | u64::from(packet.tcp_flags) << 16
                | u64::from(packet.proto) << 24
                | u64::from(kept) << Self::KEPT
                | u64::from(last) << Self::LAST,
        )
    }

    #[inline(always)]
    fn number(self) -> u16 {
        self.0 as u16
    }

    #[inline(always)]
    fn tcp_flags(self) -> u8 {
        (self.0 >> 16) as u8
    }

    #[inline(always)]
    fn proto(self) -> u8 {
        (self.0 >> 24) as u8
    }

    #[inline(always)]
    fn is(self, shift: u32) -> bool {
        self.0 >> shift & 1 != 0
    }

    /// Confirms what the packet proves, if nothing is against it.
    #[inline(always)]
    pub(super) fn testify<T: Tables>(self, tables: &T, now: u64) {
        let witness = tables.examine(self, now);
        if tables.confirm(witness, now)
            && witness.is(Self::CONNECTED)
            && witness.tcp_flags() & wire::TCP_SYN != 0
        {
            tables.confirm_pair(witness);
        }
    }

    /// Finds out what the kernel did to the packet. If that can be repeated, what is known of
    /// the packet and its flow; else one that confirms nothing.
    #[inline(always)]
    pub fn examine<T: Tables>(self, tables: &T, now: u64) -> Self {
        let Some(config) = tables.config() else { return Self::NOTHING };
        let Some(ticket) = self.ticket(tables, config) else { return Self::NOTHING };
        let Some(Some(treatment)) = tables.read_proof(|proof| self.treatment(ticket, proof)) else {
            tables.count(Outcome::RefusedChanged);
            return Self::NOTHING;
        };
        tables.edit_proof(|proof| proof.treatment = treatment);
        let kept = exemption::covers(tables, config, &ticket.key, &treatment.tuple);
        let last = ticket::is_last(self.number(), tables, config, ticket, Of::Flow);
        let witness = tables.read_proof(|proof| self.with(&proof.packet, kept, last));
        let witness = witness.unwrap_or(Self::NOTHING);
        if self.is(Self::CONNECTED) && treatment.translated != 0 {
            tables.bar(witness, now);
        }
        witness
    }

    /// What the kernel did to the packet; `None` if it was more than can be repeated.
    #[inline(always)]
    fn treatment(self, ticket: &Ticket, proof: &Proof) -> Option<Treatment> {
        let Proof { packet, mark, priority, .. } = proof;
        if self.is(Self::CUT)
            && let Some(found) = treatment::of_aggregate(ticket, packet, *mark, *priority)
        {
            return Some(found);
        }
        treatment::of(ticket, packet, *mark, *priority)
    }

    /// The ticket, if it has not been given out again meanwhile.
    #[inline(always)]
    fn ticket<'a, T: Tables>(self, tables: &'a T, config: &Config) -> Option<&'a Ticket> {
        let ticket = tables.ticket(config.tickets.index(self.number()))?;
        config.tickets.is_of(self.number(), ticket.sequence).then_some(ticket)
    }

    /// Ends the flow, or confirms it if nothing is against that. Whether nothing is.
    #[inline(always)]
    pub fn confirm<T: Tables>(self, tables: &T, proof: &Proof, now: u64) -> bool {
        let Some(config) = tables.config() else { return false };
        let Some(ticket) = self.ticket(tables, config) else { return false };
        let found = tables.flow(&ticket.key);
        if let Some(found) = &found
            && (flow::end(tables, &ticket.key, found)
                || has_moved(tables, config, &ticket.key, found, proof, now))
        {
            return false;
        }
        if let Err(against) = self.admit(tables, config, ticket, found.as_deref(), proof, now) {
            tables.count(against);
            return false;
        }
        if flow::may_confirm(self.proto(), self.tcp_flags()) {
            self.note(tables, config, ticket, found, proof);
        }
        true
    }

    /// Confirms the pair of the connection that the packet opens, if it was not translated.
    #[inline(always)]
    pub fn confirm_pair<T: Tables>(self, tables: &T, proof: &Proof) {
        if proof.treatment.translated != 0 || self.is(Self::KEPT) {
            return;
        }
        let Some(config) = tables.config() else { return };
        let Some(ticket) = self.ticket(tables, config) else { return };
        if let Some(pair) = eager::pair(config, self.tcp_flags(), &ticket.key) {
            note_pair(tables, config, ticket, &pair, proof);
        }
    }

    /// Keeps the pair with the kernel to which the packet was translated.
    #[inline(always)]
    pub fn bar<T: Tables>(self, tables: &T, proof: &Proof, now: u64) {
        let Some(config) = tables.config() else { return };
        if let Some(ticket) = self.ticket(tables, config) {
            let key = FlowKey { tuple: proof.treatment.tuple, ..ticket.key };
            eager::bar(tables, config, &key, now);
        }
    }

    /// Whether the flow of a proven packet may be confirmed. `found` is what stands
    /// under its key.
    ///
    /// # Errors
    /// What is against it.
    #[inline(always)]
    fn admit<T: Tables>(
        self,
        tables: &T,
        config: &Config,
        ticket: &Ticket,
        found: Option<&Flow>,
        proof: &Proof,
        now: u64,
    ) -> Result<(), Outcome> {
        let out = ticket.key.direction == direction::OUT;
        if proof.exit.action == action::KERNEL {
            return Err(if out { Outcome::UnresolvedNextHop } else { Outcome::RefusedKept });
        }
        if out && is_held(tables, config, ticket, proof) {
            return Err(Outcome::RefusedKept);
        }
        if let Some(flow) = found
            && flow::stands(flow, config, now).is_ok()
        {
            let same = if out {
                flow.entry_ifindex == ticket.entry_ifindex
            } else {
                flow.peer_ip == ticket.peer_ip
            };
            // A pod that sends under another's address does not take its flow over.
            if !same {
                return Err(Outcome::RefusedSender);
            }
        }
        // A flow that is known tells of later packets on all CPUs, tickets of this one's.
        if found.is_some_and(|flow| flow::has_later(flow, self.number())) || !self.is(Self::LAST) {
            return Err(Outcome::RefusedOrder);
        }
        Ok(())
    }

    /// Confirms the flow of a ticket, or notes that a rule keeps it.
    ///
    /// The bound of one window counts from the entry: what the kernel decided then is
    /// repeated no longer.
    #[inline(always)]
    fn note<T: Tables>(
        self,
        tables: &T,
        config: &Config,
        ticket: &Ticket,
        found: Option<T::FlowRef<'_>>,
        Proof { exit, treatment, .. }: &Proof,
    ) {
        let (key, kept) = (ticket.key, self.is(Self::KEPT));
        let index = config.tickets.index(self.number());
        let sequence = tables.ticket_sequence(index);
        let surely = treatment.translated == 0
            || key.proto != wire::UDP
            || found.as_deref().is_some_and(|flow| {
                matches!(flow.state, state::SEEN | state::CONFIRMED)
                    && flow.treatment.tuple == treatment.tuple
            });
        let state = match (kept, surely) {
            (true, _) => state::KEPT,
            (false, true) => state::CONFIRMED,
            (false, false) => state::SEEN,
        };
        if found.is_none() {
            tables.count(Outcome::FlowNew);
        }
        let epoch = tables.epoch();
        tables.set_flow(&key, found, state, |flow| {
            flow.time_ns = exit.until.min(ticket.time_ns + flow::window(config, key.proto));
            flow.generation = ticket.generation;
            flow.epoch = epoch;
            flow.entry_ifindex = ticket.entry_ifindex;
            flow.entry_mac = ticket.entry_mac;
            flow.treatment = *treatment;
            flow.eager = 0;
            lead(flow, exit);
        });
        // Another CPU reads the slot of this one: it may have been given out again.
        if tables.ticket_sequence(index) != sequence {
            tables.remove_flow(&key);
            return;
        }
        if kept {
            tables.count(Outcome::RefusedRule);
        } else if surely {
            if treatment.translated != 0 {
                tables.count(Outcome::ConfirmedTranslated);
            }
            let out = key.direction == direction::OUT;
            tables.count(if out { Outcome::ConfirmedOut } else { Outcome::ConfirmedIn });
        }
    }
}

/// Whether something that acts on packets keeps what goes by this way.
#[inline(always)]
fn is_held<T: Tables>(tables: &T, config: &Config, ticket: &Ticket, proof: &Proof) -> bool {
    let open = tables.veth(ticket.entry_ifindex).is_some_and(|veth| veth.keep_out == 0);
    // Rules may choose a route by the mark.
    let marked = proof.exit.action == action::ROUTE
        && proof.treatment.mark != 0
        && config.flags & flag::MARKED_ROUTES != 0;
    !open || marked
}

/// Ends a flow that leads into another pod than this packet went to: the bridge floods, or
/// the pod moved, and one veth is not the answer.
#[inline(always)]
fn has_moved<T: Tables>(
    tables: &T,
    config: &Config,
    key: &FlowKey,
    found: &Flow,
    proof: &Proof,
    now: u64,
) -> bool {
    let moved = key.direction == direction::IN
        && found.state == state::CONFIRMED
        && found.out_ifindex != proof.exit.ifindex
        && flow::stands(found, config, now).is_ok();
    if moved {
        tables.remove_flow(key);
    }
    moved
}

/// Confirms a pair by a packet of a handshake that was not translated.
#[inline(always)]
fn note_pair<T: Tables>(
    tables: &T,
    config: &Config,
    ticket: &Ticket,
    pair: &FlowKey,
    Proof { exit, treatment, .. }: &Proof,
) {
    let found = tables.flow(pair);
    match &found {
        Some(flow) if flow.state == state::BARRED && ticket.time_ns < flow.time_ns => return,
        Some(_) => {}
        None => tables.count(Outcome::FlowNew),
    }
    let epoch = tables.epoch();
    tables.set_flow(pair, found, state::CONFIRMED, |flow| {
        flow.time_ns = exit.until.min(ticket.time_ns + flow::window(config, wire::TCP));
        flow.generation = ticket.generation;
        flow.epoch = epoch;
        flow.entry_ifindex = ticket.entry_ifindex;
        flow.entry_mac = ticket.entry_mac;
        flow.treatment = *treatment;
        lead(flow, exit);
    });
    tables.count(Outcome::ConfirmedPair);
}

#[inline(always)]
fn lead(flow: &mut Flow, exit: &Exit) {
    flow.out_ifindex = exit.ifindex;
    flow.action = exit.action;
    flow.max_len = exit.max_len;
    flow.peer_id = exit.peer_id;
    flow.peer_ip = exit.peer_ip;
    flow.next_hop = exit.next_hop.address;
    flow.next_hop_family = exit.next_hop.family;
    flow.dst_mac = exit.dst_mac;
    flow.src_mac = exit.src_mac;
}
