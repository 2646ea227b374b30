//! The maps, and the kernel's tables.

mod functions;
mod routes;

use core::ffi::c_void;
use core::marker::PhantomData;
use core::ops::Deref;
use core::ptr::NonNull;

use aya_ebpf::bindings::{BPF_ANY, BPF_F_NO_PREALLOC};
use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray};
use aya_ebpf::helpers::{bpf_get_prandom_u32, bpf_get_smp_processor_id, bpf_ktime_get_coarse_ns};
use aya_ebpf::macros::btf_map;
use flannel_ebpf::abi::{
    Attendance, Config, Exemption, Flow, FlowKey, MAX_EXEMPTIONS, MAX_FLOWS, MAX_PEER_STATS,
    MAX_PEERS, MAX_STRANGERS, MAX_VETHS, OUTCOMES, Outcome, Peer, PeerStats, Stranger, Subnet,
    Ticket, TicketNumbers, Veth,
};
use flannel_ebpf::path::eager::Opening;
use flannel_ebpf::path::exemption::Asked;
use flannel_ebpf::path::leave::Left;
use flannel_ebpf::path::proof::{Proof, Witness};
use flannel_ebpf::path::segment::Segment;
use flannel_ebpf::path::source::{Judged, Sender};
use flannel_ebpf::path::ticket::{Among, Checked, Entry};
use flannel_ebpf::path::{Counters, Lookups, Skb, Tables, Traffic, Trip, Way};

#[btf_map(name = "fl_cfg")]
static CFG: Array<Config, 1> = Array::new();
#[btf_map(name = "fl_subnets4")]
static SUBNETS: LpmTrie<[u8; 4], Subnet, { MAX_PEERS as usize }> = LpmTrie::new();
/// Its entries are allocated as they come: the kernel tells how many there are then.
#[btf_map(name = "fl_peers4")]
static PEERS: HashMap<[u8; 4], Peer, { MAX_PEERS as usize }, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();
#[btf_map(name = "fl_flows4")]
static FLOWS: LruHashMap<FlowKey, Flow, { MAX_FLOWS as usize }> = LruHashMap::new();
/// Where a flow is made before it is put into the table.
#[btf_map(name = "fl_scratch")]
static SCRATCH: PerCpuArray<Flow, 1> = PerCpuArray::new();
/// What `fl_confirm` is about.
#[btf_map(name = "fl_proof")]
static PROOF: PerCpuArray<Proof, 1> = PerCpuArray::new();
/// The agent makes it as large as the machine's CPUs need.
#[btf_map(name = "fl_tickets")]
static TICKETS: Array<Ticket, 1024> = Array::new();
#[btf_map(name = "fl_epoch")]
static EPOCH: Array<u32, 1> = Array::new();
#[btf_map(name = "fl_attended")]
static ATTENDED: Array<Attendance, 1> = Array::new();
#[btf_map(name = "fl_veths")]
static VETHS: HashMap<u32, Veth, { MAX_VETHS as usize }> = HashMap::new();
#[btf_map(name = "fl_exemptions")]
static EXEMPTIONS: Array<Exemption, { MAX_EXEMPTIONS as usize }> = Array::new();
#[btf_map(name = "fl_strangers4")]
static STRANGERS: LruHashMap<[u8; 4], Stranger, { MAX_STRANGERS as usize }> = LruHashMap::new();
#[btf_map(name = "fl_stats")]
static STATS: PerCpuArray<u64, { OUTCOMES as usize }> = PerCpuArray::new();
/// The agent makes it as large as the machine's CPUs need.
#[btf_map(name = "fl_peer_stats")]
static PEER_STATS: Array<PeerStats, { MAX_PEER_STATS as usize }> = Array::new();

/// An element of `fl_flows4`.
pub(crate) struct FlowRef<'a> {
    at: NonNull<Flow>,
    tables: PhantomData<&'a Maps>,
}

impl FlowRef<'_> {
    /// The element here; `None` of null.
    ///
    /// # Safety
    /// It is null or an element of `fl_flows4`, found since the program began.
    #[inline(always)]
    unsafe fn new(at: *mut Flow) -> Option<Self> {
        Some(Self { at: NonNull::new(at)?, tables: PhantomData })
    }
}

impl Deref for FlowRef<'_> {
    type Target = Flow;

    #[inline(always)]
    fn deref(&self) -> &Flow {
        // SAFETY: elements of a hash stay readable until the program ends; one
        // that is changed or replaced meanwhile reads as old or new values of
        // its fields, all of which are valid.
        unsafe { self.at.as_ref() }
    }
}

/// The maps, and the context that helpers want.
pub(crate) struct Maps {
    raw: *mut c_void,
}

impl Maps {
    /// For the program that runs with this context.
    #[inline(always)]
    pub(crate) fn new(raw: *mut c_void) -> Self {
        Self { raw }
    }

    /// For a function that is called with integers.
    #[inline(always)]
    fn without_context() -> Self {
        Self::new(core::ptr::null_mut())
    }
}

impl Lookups for Maps {
    type FlowRef<'a> = FlowRef<'a>;

    #[inline(always)]
    fn config(&self) -> Option<&Config> {
        CFG.get(0)
    }

    #[inline(always)]
    fn now(&self) -> u64 {
        // SAFETY: a helper without arguments.
        unsafe { bpf_ktime_get_coarse_ns() }
    }

    #[inline(always)]
    fn flow(&self, key: &FlowKey) -> Option<FlowRef<'_>> {
        // SAFETY: the element was found just now.
        unsafe { FlowRef::new(FLOWS.get_ptr_mut(key)?) }
    }

    #[inline(always)]
    fn ticket(&self, index: u32) -> Option<&Ticket> {
        TICKETS.get(index)
    }

    #[inline(always)]
    fn ticket_sequence(&self, index: u32) -> u32 {
        let Some(ticket) = TICKETS.get_ptr(index) else { return 0 };
        // Another CPU may write it at this moment.
        // SAFETY: within the element that was found, aligned as `Ticket` is.
        unsafe { ticket.cast::<u32>().read_volatile() }
    }

    #[inline(always)]
    fn subnet(&self, addr: [u8; 4]) -> Option<&Subnet> {
        SUBNETS.get(&Key::new(32, addr))
    }

    #[inline(always)]
    fn peer(&self, addr: [u8; 4]) -> Option<u32> {
        // SAFETY: as in `flow`.
        unsafe { PEERS.get(addr) }.map(|peer| peer.peer_id)
    }

    #[inline(always)]
    fn veth(&self, ifindex: u32) -> Option<Veth> {
        // SAFETY: as in `flow`.
        unsafe { VETHS.get(ifindex) }.copied()
    }

    #[inline(always)]
    fn unknown<V: Copy>(&self, value: V) -> V {
        const { assert!(size_of::<V>() <= size_of::<Flow>() && align_of::<V>() <= 8) };
        let Some(scratch) = SCRATCH.get_ptr_mut(0) else { return value };
        let scratch = scratch.cast::<V>();
        // SAFETY: within this CPU's own element, aligned as a flow is; no other program
        // of ours runs on this CPU between both.
        unsafe {
            scratch.write_volatile(value);
            scratch.read_volatile()
        }
    }

    #[inline(always)]
    fn is_exempt(&self, Asked { addresses, rest }: Asked) -> bool {
        functions::fl_is_exempt(addresses, rest) & 1 != 0
    }

    #[inline(always)]
    fn is_exempt_by(&self, Asked { addresses, rest }: Asked, index: u32) -> bool {
        functions::fl_is_exempt_by(addresses, rest, index.into()) != 0
    }

    #[inline(always)]
    fn is_last(&self, index: u32, sequence: u32, among: Among) -> bool {
        functions::fl_is_last(index.into(), sequence.into(), among.0.into()) & 1 != 0
    }

    #[inline(always)]
    fn is_followed(&self, index: u32, step: u32, among: Among) -> bool {
        functions::fl_is_followed(index.into(), step.into(), among.0.into()) & 1 != 0
    }

    #[inline(always)]
    fn attendance(&self) -> Option<&Attendance> {
        ATTENDED.get(0)
    }

    #[inline(always)]
    fn epoch(&self) -> u32 {
        EPOCH.get(0).copied().unwrap_or(0)
    }

    #[inline(always)]
    fn way(&self, trip: &Trip) -> Option<Way> {
        routes::way(self.raw.cast(), trip)
    }

    #[inline(always)]
    fn is_local(&self, addr: [u8; 4]) -> bool {
        routes::fl_is_local(self.raw.cast(), u32::from_ne_bytes(addr).into()) & 1 != 0
    }
}

impl Counters for Maps {
    #[inline(always)]
    fn count(&self, outcome: Outcome) {
        #[cfg(feature = "log")]
        crate::log::outcome(outcome);
        if let Some(counter) = STATS.get_ptr_mut(outcome as u32) {
            // SAFETY: this CPU's own slot.
            unsafe { *counter += 1 };
        }
    }

    #[inline(always)]
    fn count_peer(&self, peer_id: u32, traffic: Traffic, bytes: u32) {
        // SAFETY: a helper without arguments.
        let index = PeerStats::index(unsafe { bpf_get_smp_processor_id() }, peer_id);
        let Some(stats) = PEER_STATS.get_ptr_mut(index) else { return };
        // SAFETY: this CPU's own slot.
        let stats = unsafe { &mut *stats };
        let bytes = u64::from(bytes);
        match traffic {
            Traffic::TxFast => {
                stats.tx_fast_packets += 1;
                stats.tx_fast_bytes += bytes;
            }
            Traffic::TxKernel => {
                stats.tx_kernel_packets += 1;
                stats.tx_kernel_bytes += bytes;
            }
            Traffic::RxFast => {
                stats.rx_fast_packets += 1;
                stats.rx_fast_bytes += bytes;
            }
            Traffic::RxKernel => {
                stats.rx_kernel_packets += 1;
                stats.rx_kernel_bytes += bytes;
            }
        }
    }
}

impl Tables for Maps {
    #[inline(always)]
    fn random(&self) -> u32 {
        // SAFETY: a helper without arguments.
        unsafe { bpf_get_prandom_u32() }
    }

    #[inline(always)]
    fn set_flow(
        &self,
        key: &FlowKey,
        found: Option<FlowRef<'_>>,
        state: u8,
        fill: impl FnOnce(&mut Flow),
    ) {
        let Some(scratch) = SCRATCH.get_ptr_mut(0) else { return };
        // One by one: the compiler would call memset, which goes by bytes.
        for word in 0..size_of::<Flow>() / size_of::<u64>() {
            let old = match &found {
                // SAFETY: within the element that was found, see `FlowRef::deref`.
                Some(found) => unsafe { found.at.as_ptr().cast::<u64>().add(word).read() },
                None => 0,
            };
            // SAFETY: within the element, which is aligned for `Flow`'s u64.
            unsafe { scratch.cast::<u64>().add(word).write_volatile(old) };
        }
        // SAFETY: this CPU's own element, and no other program runs meanwhile.
        let flow = unsafe { &mut *scratch };
        fill(flow);
        flow.state = state;
        // A full table evicts; a failure leaves the flow to the kernel path.
        let _ = FLOWS.insert(key, &*flow, u64::from(BPF_ANY));
    }

    #[inline(always)]
    fn edit_flow(&self, flow: &FlowRef<'_>, edit: impl FnOnce(&mut Flow)) {
        // SAFETY: as in `FlowRef::deref`; fields are written one by one.
        edit(unsafe { &mut *flow.at.as_ptr() });
    }

    #[inline(always)]
    fn remove_flow(&self, key: &FlowKey) {
        let _ = FLOWS.remove(key);
    }

    #[inline(always)]
    fn note_checked<S: Skb>(&self, _: &mut S, checked: Checked, entry: &Entry) {
        let Checked { addresses, rest } = checked;
        functions::fl_note_checked(self.raw.cast(), addresses, rest, entry);
    }

    #[inline(always)]
    fn leave<S: Skb>(&self, _: &mut S, left: Left<'_>, found: Option<&FlowRef<'_>>) {
        let Left { segment, entry, direction, grounds, flags, always } = left;
        let rest = u64::from(always) << 24
            | (grounds as u64) << 16
            | u64::from(direction) << 8
            | u64::from(flags);
        let found = found.map_or(core::ptr::null_mut(), |flow| flow.at.as_ptr());
        functions::fl_leave(self.raw.cast(), segment, entry, found, rest);
    }

    #[inline(always)]
    fn frame_for_pod<S: Skb>(&self, _: &mut S, segment: &Segment, flow: &Flow) -> bool {
        functions::fl_frame_for_pod(self.raw.cast(), segment, flow) & 1 != 0
    }

    #[inline(always)]
    fn take_ticket(&self, numbers: TicketNumbers, fill: impl FnOnce(&mut Ticket)) -> u16 {
        // SAFETY: a helper without arguments.
        let region = numbers.region(unsafe { bpf_get_smp_processor_id() });
        let Some(counter) = TICKETS.get_ptr_mut(region) else { return 0 };
        // SAFETY: within the element; this CPU alone writes it, and no other
        // program of ours runs on it meanwhile.
        let mut sequence = unsafe { counter.cast::<u32>().read_volatile() }.wrapping_add(1);
        if numbers.slot(sequence) == 0 {
            sequence = sequence.wrapping_add(1);
        }
        // SAFETY: as above.
        unsafe { counter.cast::<u32>().write_volatile(sequence) };
        let index = region | numbers.slot(sequence);
        let Some(slot) = TICKETS.get_ptr_mut(index) else { return 0 };
        // One by one: the compiler would call memset, which goes by bytes. The
        // sequence is in the first word: readers see an empty slot until the end.
        for word in 0..size_of::<Ticket>() / size_of::<u64>() {
            // SAFETY: within the element, which is aligned for `Ticket`'s u64.
            unsafe { slot.cast::<u64>().add(word).write_volatile(0) };
        }
        // SAFETY: as above.
        fill(unsafe { &mut *slot });
        // SAFETY: as above.
        unsafe { slot.cast::<u32>().write_volatile(sequence) };
        numbers.number(region, sequence)
    }

    #[inline(always)]
    fn raise_epoch(&self) {
        if let Some(epoch) = EPOCH.get_ptr_mut(0) {
            // Two CPUs at once may raise it by one: other than before it is.
            // SAFETY: within the element.
            unsafe { epoch.write_volatile(epoch.read_volatile().wrapping_add(1)) };
        }
    }

    #[inline(always)]
    fn note_stranger(&self, outer: [u8; 4], inner: [u8; 4], peer_id: u32, now: u64) {
        if let Some(known) = STRANGERS.get_ptr_mut(&outer) {
            // SAFETY: elements of a hash stay until the program ends; counts that
            // two CPUs make at once may be one too low.
            let known = unsafe { &mut *known };
            known.time_ns = now;
            known.packets += 1;
            known.inner_source = inner;
            known.peer_id = peer_id;
            return;
        }
        let first = Stranger { time_ns: now, packets: 1, inner_source: inner, peer_id };
        let _ = STRANGERS.insert(&outer, &first, u64::from(BPF_ANY));
    }

    #[inline(always)]
    fn judge(&self, Sender { addresses, is_whole, now }: Sender) -> Judged {
        Judged(functions::fl_judge(addresses, is_whole, now))
    }

    #[inline(always)]
    fn edit_proof(&self, edit: impl FnOnce(&mut Proof)) {
        if let Some(proof) = PROOF.get_ptr_mut(0) {
            // SAFETY: this CPU's own element, and no other program runs meanwhile.
            edit(unsafe { &mut *proof });
        }
    }

    #[inline(always)]
    fn read_proof<R>(&self, read: impl FnOnce(&Proof) -> R) -> Option<R> {
        PROOF.get(0).map(read)
    }

    #[inline(always)]
    fn examine(&self, Witness(witness): Witness, now: u64) -> Witness {
        Witness(functions::fl_examine(witness, now))
    }

    #[inline(always)]
    fn confirm(&self, Witness(witness): Witness, now: u64) -> bool {
        functions::fl_confirm(witness, now) != 0
    }

    #[inline(always)]
    fn confirm_pair(&self, Witness(witness): Witness) {
        functions::fl_confirm_pair(witness);
    }

    #[inline(always)]
    fn open(&self, Opening { key: [first, second], sender, now }: Opening) {
        functions::fl_open(first, second, sender, now);
    }

    #[inline(always)]
    fn bar(&self, Witness(witness): Witness, now: u64) {
        functions::fl_bar(witness, now);
    }
}
