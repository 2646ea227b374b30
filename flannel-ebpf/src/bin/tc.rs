//! The programs: glue between `__sk_buff` (TC; `xdp_md` in [`xdp`]), the maps
//! and [`flannel_ebpf::path`].
//!
//! Every packet pointer is derived anew, and checked, at each access, because
//! helpers that resize the packet invalidate all of them.
#![no_std]
#![no_main]
#![allow(
    unreachable_pub,
    missing_docs,
    reason = "the classifier macro exports each program again, without its docs"
)]

#[path = "tc/xdp.rs"]
mod xdp;

use core::ffi::c_void;
use core::marker::PhantomData;
use core::ops::Deref;
use core::ptr::NonNull;

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{
    __sk_buff, BPF_ANY, BPF_CSUM_LEVEL_DEC, BPF_F_ADJ_ROOM_ENCAP_L2_ETH,
    BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L4_UDP, BPF_F_ADJ_ROOM_FIXED_GSO,
    BPF_F_ADJ_ROOM_NO_CSUM_RESET, BPF_F_INGRESS, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC,
    bpf_fib_lookup, bpf_redir_neigh,
};
use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray};
use aya_ebpf::helpers::{
    bpf_csum_level, bpf_fib_lookup as fib_lookup, bpf_get_hash_recalc, bpf_get_prandom_u32,
    bpf_ktime_get_coarse_ns, bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer,
    bpf_skb_adjust_room, bpf_skb_change_type, bpf_skb_pull_data,
};
use aya_ebpf::macros::{btf_map, classifier};
use aya_ebpf::programs::TcContext;
use flannel_ebpf::abi::{
    Config, Exemption, Flow, FlowKey, HANDOVER, Handover, MAX_EXEMPTIONS, MAX_FLOWS,
    MAX_PEER_STATS, MAX_PEERS, MAX_VETHS, OUTCOMES, Outcome, Peer, PeerStats, Subnet, Veth,
};
use flannel_ebpf::path::{Frame, Tables, Traffic, Trip, Verdict, direct, inbound, outbound};
use flannel_ebpf::wire::{ENCAP_LEN, ETH_LEN};

#[btf_map(name = "fl_cfg")]
static CFG: Array<Config, 1> = Array::new();
#[btf_map(name = "fl_subnets4")]
static SUBNETS: LpmTrie<[u8; 4], Subnet, { MAX_PEERS as usize }> = LpmTrie::new();
#[btf_map(name = "fl_peers4")]
static PEERS: HashMap<[u8; 4], Peer, { MAX_PEERS as usize }> = HashMap::new();
#[btf_map(name = "fl_flows4")]
static FLOWS: LruHashMap<FlowKey, Flow, { MAX_FLOWS as usize }> = LruHashMap::new();
/// Where a flow is made before it is put into the table.
#[btf_map(name = "fl_scratch")]
static SCRATCH: PerCpuArray<Flow, 1> = PerCpuArray::new();
#[btf_map(name = "fl_veths")]
static VETHS: HashMap<u32, Veth, { MAX_VETHS as usize }> = HashMap::new();
#[btf_map(name = "fl_exemptions")]
static EXEMPTIONS: Array<Exemption, { MAX_EXEMPTIONS as usize }> = Array::new();
#[btf_map(name = "fl_stats")]
static STATS: PerCpuArray<u64, { OUTCOMES as usize }> = PerCpuArray::new();
#[btf_map(name = "fl_peer_stats")]
static PEER_STATS: PerCpuArray<PeerStats, { MAX_PEER_STATS as usize }> = PerCpuArray::new();

/// TCX_NEXT: the programs after ours still run. TC_ACT_OK would end the chain.
const PASS: i32 = -1;
/// TC_ACT_SHOT.
const DROP: i32 = 2;
/// PACKET_HOST (`linux/if_packet.h`).
const PACKET_HOST: u32 = 0;
const AF_INET: u8 = 2;
/// Interface index of `lo` in every network namespace (LOOPBACK_IFINDEX).
const LOOPBACK_IFINDEX: u32 = 1;
/// BPF_FIB_LKUP_RET_NOT_FWDED: the node itself is the destination.
const FIB_NOT_FORWARDED: i64 = 4;
/// `skb->tc_index` between two programs of this node. What it was made for
/// (dsmark, the tcindex classifier) is gone from the kernel.
const FAST: u32 = 0xf1a;
/// BPF_FIB_LKUP_RET_SUCCESS.
const FIB_SUCCESS: i64 = 0;

struct Skb {
    raw: *mut __sk_buff,
}

impl Skb {
    /// Address of `len` bytes at `offset`, if they lie in the linear part.
    #[inline(always)]
    fn at(&self, offset: usize, len: usize) -> Option<*mut u8> {
        // SAFETY: `raw` is the context that the kernel passed to the program.
        let (start, end) = unsafe { ((*self.raw).data as usize, (*self.raw).data_end as usize) };
        let first = start + offset;
        if first + len > end { None } else { Some(first as *mut u8) }
    }
}

impl Frame for Skb {
    #[inline(always)]
    fn len(&self) -> u32 {
        // SAFETY: as in `at`.
        unsafe { (*self.raw).len }
    }

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        // SAFETY: as in `at`.
        unsafe { (*self.raw).ifindex }
    }

    #[inline(always)]
    fn gso_size(&self) -> u32 {
        // SAFETY: as in `at`.
        unsafe { (*self.raw).gso_size }
    }

    #[inline(always)]
    fn tagged(&self) -> bool {
        // SAFETY: as in `at`.
        unsafe { (*self.raw).vlan_present != 0 }
    }

    #[inline(always)]
    fn to_us(&self) -> bool {
        // SAFETY: as in `at`.
        unsafe { (*self.raw).pkt_type == PACKET_HOST }
    }

    #[inline(always)]
    fn mark(&self) -> u32 {
        // SAFETY: as in `at`.
        unsafe { (*self.raw).mark }
    }

    #[inline(always)]
    fn linearize(&mut self, bytes: u32) {
        let len = self.len();
        let wanted = if bytes < len { bytes } else { len };
        if self.at(0, wanted as usize).is_none() {
            // A failure shows at the next load.
            // SAFETY: `raw` is the program's context.
            unsafe { bpf_skb_pull_data(self.raw, wanted) };
        }
    }

    #[inline(always)]
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        let at = self.at(offset, N)?;
        // SAFETY: `at` found N bytes there; an array of bytes has no alignment.
        Some(unsafe { at.cast::<[u8; N]>().read() })
    }

    #[inline(always)]
    fn store<const N: usize>(&mut self, offset: usize, bytes: &[u8; N]) -> Option<()> {
        let at = self.at(offset, N)?;
        // SAFETY: `at` found N bytes there; TC programs may write to packets.
        unsafe { at.cast::<[u8; N]>().write(*bytes) };
        Some(())
    }

    #[inline(always)]
    fn hash(&mut self) -> u32 {
        // SAFETY: `raw` is the program's context.
        unsafe { bpf_get_hash_recalc(self.raw) }
    }

    #[inline(always)]
    fn mark_fast(&mut self) {
        // SAFETY: as in `at`; TC programs may write this field.
        unsafe { (*self.raw).tc_index = FAST };
    }

    #[inline(always)]
    fn take_fast(&mut self) -> bool {
        // SAFETY: as in `mark_fast`.
        unsafe {
            let fast = (*self.raw).tc_index == FAST;
            if fast {
                (*self.raw).tc_index = 0;
            }
            fast
        }
    }

    #[inline(always)]
    fn grow(&mut self) -> bool {
        // FIXED_GSO keeps gso_size, so that segments stay as the sender made
        // them, and is what lets UDP GSO packets through. The inner L2 header
        // is the 14 bytes of Ethernet.
        let flags = u64::from(
            BPF_F_ADJ_ROOM_FIXED_GSO
                | BPF_F_ADJ_ROOM_ENCAP_L3_IPV4
                | BPF_F_ADJ_ROOM_ENCAP_L4_UDP
                | BPF_F_ADJ_ROOM_ENCAP_L2_ETH,
        ) | (ETH_LEN as u64) << 56;
        // SAFETY: `raw` is the program's context.
        unsafe { bpf_skb_adjust_room(self.raw, ENCAP_LEN as i32, BPF_ADJ_ROOM_MAC, flags) == 0 }
    }

    #[inline(always)]
    fn shrink(&mut self) -> bool {
        // The device has checked the inner checksum if it says so: that says
        // the level (one header less now), as the kernel's VXLAN device does;
        // without NO_CSUM_RESET it would be computed again in software.
        let flags = u64::from(BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_NO_CSUM_RESET);
        let len = -(ENCAP_LEN as i32);
        // SAFETY: `raw` is the program's context.
        unsafe {
            if bpf_skb_adjust_room(self.raw, len, BPF_ADJ_ROOM_MAC, flags) != 0 {
                return false;
            }
            bpf_csum_level(self.raw, u64::from(BPF_CSUM_LEVEL_DEC));
        }
        true
    }

    #[inline(always)]
    fn take_handover(&mut self) -> Option<Handover> {
        // SAFETY: as in `at`.
        let (meta, data) = unsafe { ((*self.raw).data_meta as usize, (*self.raw).data as usize) };
        if meta + size_of::<Handover>() > data {
            return None;
        }
        let handover = meta as *mut Handover;
        // SAFETY: so many bytes lie between `meta` and `data`.
        let found = unsafe { handover.read_unaligned() };
        if found.magic != HANDOVER {
            return None;
        }
        // A node in the pod must not take it for its own.
        // SAFETY: as above; TC programs may write to metadata.
        unsafe { (meta as *mut u32).write_unaligned(0) };
        // SAFETY: `raw` is the program's context.
        unsafe { bpf_skb_change_type(self.raw, PACKET_HOST) };
        Some(found)
    }
}

/// An element of `fl_flows4`.
struct FlowRef<'a> {
    at: NonNull<Flow>,
    tables: PhantomData<&'a Maps>,
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

struct Maps {
    /// The program's context.
    raw: *mut c_void,
}

impl Tables for Maps {
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
    fn random(&self) -> u32 {
        // SAFETY: a helper without arguments.
        unsafe { bpf_get_prandom_u32() }
    }

    #[inline(always)]
    fn flow(&self, key: &FlowKey) -> Option<FlowRef<'_>> {
        let at = NonNull::new(FLOWS.get_ptr_mut(key)?)?;
        Some(FlowRef { at, tables: PhantomData })
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
    fn subnet(&self, addr: [u8; 4]) -> Option<Subnet> {
        SUBNETS.get(&Key::new(32, addr)).copied()
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
    fn next_hop(&self, config: &Config, trip: &Trip) -> Option<[u8; 4]> {
        // SAFETY: all of its fields are integers, for which zero is valid.
        let mut params: bpf_fib_lookup = unsafe { core::mem::zeroed() };
        params.family = AF_INET;
        params.l4_protocol = trip.proto;
        params.sport = u16::from_ne_bytes(trip.sport);
        params.dport = u16::from_ne_bytes(trip.dport);
        params.__bindgen_anon_1.tot_len = trip.len;
        // As if the node itself sent it, bound to no interface: the kernel's VXLAN
        // device is not bound either. BPF_FIB_LOOKUP_OUTPUT would force one.
        params.ifindex = LOOPBACK_IFINDEX;
        params.__bindgen_anon_3.ipv4_src = u32::from_ne_bytes(trip.source);
        params.__bindgen_anon_4.ipv4_dst = u32::from_ne_bytes(trip.destination);
        // SAFETY: `raw` is the program's context, `params` lives on the stack.
        let found =
            unsafe { fib_lookup(self.raw, &mut params, size_of::<bpf_fib_lookup>() as i32, 0) };
        // A next hop of another family (`via inet6`), or through another
        // interface, is left to the kernel.
        if found != FIB_SUCCESS
            || params.ifindex != config.underlay_ifindex
            || params.family != AF_INET
        {
            return None;
        }
        // SAFETY: the family is AF_INET, so this is the field that was set.
        Some(unsafe { params.__bindgen_anon_4.ipv4_dst }.to_ne_bytes())
    }

    #[inline(always)]
    fn is_local(&self, addr: [u8; 4]) -> bool {
        // SAFETY: all of its fields are integers, for which zero is valid.
        let mut params: bpf_fib_lookup = unsafe { core::mem::zeroed() };
        params.family = AF_INET;
        params.ifindex = LOOPBACK_IFINDEX;
        params.__bindgen_anon_4.ipv4_dst = u32::from_ne_bytes(addr);
        // SAFETY: `raw` is the program's context, `params` lives on the stack.
        let found =
            unsafe { fib_lookup(self.raw, &mut params, size_of::<bpf_fib_lookup>() as i32, 0) };
        found == FIB_NOT_FORWARDED
    }

    #[inline(always)]
    fn count(&self, outcome: Outcome) {
        if let Some(counter) = STATS.get_ptr_mut(outcome as u32) {
            // SAFETY: this CPU's own slot.
            unsafe { *counter += 1 };
        }
    }

    #[inline(always)]
    fn count_peer(&self, peer_id: u32, traffic: Traffic, bytes: u32) {
        let last = MAX_PEER_STATS - 1;
        let slot = if peer_id < last { peer_id } else { last };
        let Some(stats) = PEER_STATS.get_ptr_mut(slot) else { return };
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

#[inline(always)]
fn run(ctx: &TcContext, hook: impl FnOnce(&mut Skb, &Maps) -> Verdict) -> i32 {
    let raw = ctx.as_ptr().cast::<__sk_buff>();
    match hook(&mut Skb { raw }, &Maps { raw: ctx.as_ptr() }) {
        Verdict::Pass => PASS,
        Verdict::Drop => DROP,
        Verdict::NextHop { ifindex, next_hop } => {
            // SAFETY: all of its fields are integers, for which zero is valid.
            let mut params: bpf_redir_neigh = unsafe { core::mem::zeroed() };
            params.nh_family = u32::from(AF_INET);
            params.__bindgen_anon_1.ipv4_nh = u32::from_ne_bytes(next_hop);
            let size = size_of::<bpf_redir_neigh>() as i32;
            // SAFETY: `params` lives on the stack for the call.
            unsafe { bpf_redirect_neigh(ifindex, &mut params, size, 0) as i32 }
        }
        // SAFETY: helpers that take integers.
        Verdict::Peer { ifindex } => unsafe { bpf_redirect_peer(ifindex, 0) as i32 },
        // SAFETY: as above.
        Verdict::Egress { ifindex } => unsafe { bpf_redirect(ifindex, 0) as i32 },
        // SAFETY: as above.
        Verdict::Ingress { ifindex } => unsafe {
            bpf_redirect(ifindex, u64::from(BPF_F_INGRESS)) as i32
        },
    }
}

/// TC ingress of the host side of a pod's veth.
#[classifier]
pub fn from_pod(ctx: TcContext) -> i32 {
    run(&ctx, outbound::from_pod)
}

/// TC egress of `flannel.<VNI>`.
#[classifier]
pub fn to_overlay(ctx: TcContext) -> i32 {
    run(&ctx, outbound::to_overlay)
}

/// TC ingress of the underlay device.
#[classifier]
pub fn from_underlay(ctx: TcContext) -> i32 {
    run(&ctx, inbound::from_underlay)
}

/// TC egress of the host side of a pod's veth.
#[classifier]
pub fn to_pod(ctx: TcContext) -> i32 {
    run(&ctx, inbound::to_pod)
}

/// TC ingress of `flannel.<VNI>`.
#[classifier]
pub fn from_overlay(ctx: TcContext) -> i32 {
    run(&ctx, inbound::from_overlay)
}

/// TC egress of the underlay device.
#[classifier]
pub fn to_underlay(ctx: TcContext) -> i32 {
    run(&ctx, direct::to_underlay)
}

// Helpers that GPL-only programs may call are among those used above.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // Nothing above panics; the verifier would refuse a program that could.
    loop {}
}
