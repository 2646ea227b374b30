//! A packet at a TC hook: `__sk_buff`.
//!
//! Every packet pointer is derived anew, and checked, at each access, because
//! helpers that resize the packet invalidate all of them.

use aya_ebpf::bindings::{
    __sk_buff, BPF_CSUM_LEVEL_DEC, BPF_F_ADJ_ROOM_ENCAP_L2_ETH, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4,
    BPF_F_ADJ_ROOM_ENCAP_L4_UDP, BPF_F_ADJ_ROOM_FIXED_GSO, BPF_F_ADJ_ROOM_NO_CSUM_RESET,
    BPF_F_INGRESS, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC,
    bpf_redir_neigh,
};
use aya_ebpf::helpers::{
    bpf_csum_level, bpf_get_hash_recalc, bpf_l4_csum_replace, bpf_redirect, bpf_redirect_neigh,
    bpf_redirect_peer, bpf_skb_adjust_room, bpf_skb_change_tail, bpf_skb_change_type,
    bpf_skb_pull_data,
};
use flannel_ebpf::abi::{HANDOVER, Handover};
use flannel_ebpf::path::{Frame, OUTER_HEADERS, Skb, Verdict};
use flannel_ebpf::wire::{ENCAP_LEN, ETH_LEN};

/// TCX_NEXT: the programs after ours still run. TC_ACT_OK would end the chain.
const PASS: i32 = -1;
/// TC_ACT_SHOT.
const DROP: i32 = 2;
/// PACKET_HOST (`linux/if_packet.h`).
const PACKET_HOST: u32 = 0;

/// A packet.
pub(crate) struct Buff {
    raw: *mut __sk_buff,
}

impl Buff {
    /// The packet of a program's context.
    #[inline(always)]
    pub(crate) fn new(raw: *mut __sk_buff) -> Self {
        Self { raw }
    }

    /// Address of `len` bytes at `offset`, if they lie in the linear part.
    #[inline(always)]
    fn at(&self, offset: usize, len: usize) -> Option<*mut u8> {
        // SAFETY: `raw` is the context that the kernel passed to the program.
        let (start, end) = unsafe { ((*self.raw).data as usize, (*self.raw).data_end as usize) };
        let first = start + offset;
        if first + len > end { None } else { Some(first as *mut u8) }
    }
}

impl Frame for Buff {
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
}

impl Skb for Buff {
    #[inline(always)]
    fn to_us(&self) -> bool {
        // SAFETY: as in `at`.
        unsafe { (*self.raw).pkt_type == PACKET_HOST }
    }

    #[inline(always)]
    fn store<const N: usize>(&mut self, offset: usize, bytes: &[u8; N]) -> Option<()> {
        let at = self.at(offset, N)?;
        // SAFETY: `at` found N bytes there; TC programs may write to packets.
        unsafe { at.cast::<[u8; N]>().write(*bytes) };
        Some(())
    }

    #[inline(always)]
    fn add_to_checksum(&mut self, offset: usize, sum: u32, pseudo: bool, udp: bool) -> Option<()> {
        let pseudo = if pseudo { BPF_F_PSEUDO_HDR } else { 0 };
        let flags = u64::from(pseudo | if udp { BPF_F_MARK_MANGLED_0 } else { 0 });
        // SAFETY: `raw` is the program's context.
        let done =
            unsafe { bpf_l4_csum_replace(self.raw, offset as u32, 0, u64::from(sum), flags) };
        (done == 0).then_some(())
    }

    #[inline(always)]
    fn trim(&mut self, len: u32) -> Option<()> {
        // SAFETY: `raw` is the program's context.
        (unsafe { bpf_skb_change_tail(self.raw, len, 0) } == 0).then_some(())
    }

    #[inline(always)]
    fn hash(&mut self) -> u32 {
        // SAFETY: `raw` is the program's context.
        unsafe { bpf_get_hash_recalc(self.raw) }
    }

    #[inline(always)]
    fn known_hash(&self) -> u32 {
        // SAFETY: as in `at`.
        unsafe { (*self.raw).hash }
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
    fn mark(&self) -> u32 {
        // SAFETY: as in `at`.
        unsafe { (*self.raw).mark }
    }

    #[inline(always)]
    fn set_mark(&mut self, mark: u32) {
        // SAFETY: as in `at`; TC programs may write this field.
        unsafe { (*self.raw).mark = mark };
    }

    #[inline(always)]
    fn priority(&self) -> u32 {
        // SAFETY: as in `at`.
        unsafe { (*self.raw).priority }
    }

    #[inline(always)]
    fn set_priority(&mut self, priority: u32) {
        // SAFETY: as in `set_mark`.
        unsafe { (*self.raw).priority = priority };
    }

    #[inline(always)]
    fn ticket(&self) -> u16 {
        // What else `tc_index` was made for (dsmark, the tcindex classifier) is
        // gone from the kernel.
        // SAFETY: as in `at`.
        unsafe { (*self.raw).tc_index as u16 }
    }

    #[inline(always)]
    fn set_ticket(&mut self, number: u16) {
        // SAFETY: as in `set_mark`.
        unsafe { (*self.raw).tc_index = u32::from(number) };
    }

    #[inline(always)]
    fn outer_headers(&self) -> Option<[u8; OUTER_HEADERS]> {
        let mut headers = [0_u8; OUTER_HEADERS];
        // SAFETY: as in `at`.
        let inner = unsafe { (*self.raw).data as usize };
        // The device moves `data` over the outer headers (`skb_pull`), and every
        // copy of the buffer takes what is in front of `data` along
        // (`pskb_expand_head`). The helper reads kernel memory and fails softly.
        // SAFETY: as many bytes as `headers` has are written to it.
        let read = unsafe {
            aya_ebpf::helpers::generated::bpf_probe_read_kernel(
                headers.as_mut_ptr().cast(),
                OUTER_HEADERS as u32,
                (inner - OUTER_HEADERS) as *const core::ffi::c_void,
            )
        };
        (read == 0).then_some(headers)
    }

    #[inline(always)]
    fn take_handover(&mut self) -> Option<Handover> {
        // SAFETY: as in `at`.
        let (meta, data) = unsafe { ((*self.raw).data_meta as usize, (*self.raw).data as usize) };
        if meta + size_of::<Handover>() > data {
            return None;
        }
        // SAFETY: more bytes than these lie between `meta` and `data`.
        if unsafe { (meta as *const u32).read_unaligned() } != HANDOVER {
            return None;
        }
        // In memory: it would take a register for each byte.
        // SAFETY: so many bytes lie between `meta` and `data`.
        let found = core::hint::black_box(unsafe { (meta as *const Handover).read_unaligned() });
        // A node in the pod must not take it for its own.
        // SAFETY: as above; TC programs may write to metadata.
        unsafe { (meta as *mut u32).write_unaligned(0) };
        // SAFETY: `raw` is the program's context.
        unsafe { bpf_skb_change_type(self.raw, PACKET_HOST) };
        Some(found)
    }
}

/// Does with the packet what a hook decided; the program's return value.
#[inline(always)]
pub(crate) fn carry_out(verdict: Verdict) -> i32 {
    match verdict {
        Verdict::Pass => PASS,
        Verdict::Drop => DROP,
        Verdict::NextHop { ifindex, next_hop } => {
            // SAFETY: all of its fields are integers, for which zero is valid.
            let mut params: bpf_redir_neigh = unsafe { core::mem::zeroed() };
            params.nh_family = u32::from(next_hop.family);
            let [a, b, c, d] = words(next_hop.address);
            params.__bindgen_anon_1.ipv6_nh = [a, b, c, d];
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

/// An address by words: IPv4 and IPv6 begin at the same place.
#[inline(always)]
fn words(address: [u8; 16]) -> [u32; 4] {
    zerocopy::transmute!(address)
}
