//! The kernel's routes and neighbours: functions of their own, as those of `functions`. The
//! structure that the kernel fills is large, and a program has little stack.

use aya_ebpf::bindings::{__sk_buff, BPF_FIB_LOOKUP_OUTPUT, bpf_fib_lookup};
use aya_ebpf::helpers::bpf_fib_lookup as fib_lookup;
use flannel_ebpf::path::{NextHop, Trip, Way};

use super::SCRATCH;

const AF_INET: u8 = NextHop::IPV4;
/// Interface index of `lo` in every network namespace (LOOPBACK_IFINDEX).
const LOOPBACK_IFINDEX: u32 = 1;
/// BPF_FIB_LKUP_RET_SUCCESS.
const FIB_SUCCESS: i64 = 0;
/// BPF_FIB_LKUP_RET_NOT_FWDED: the node itself is the destination.
const FIB_NOT_FORWARDED: i64 = 4;

/// Where the kernel would send a packet.
#[inline(always)]
pub(super) fn way(skb: *mut __sk_buff, trip: &Trip) -> Option<Way> {
    let word = |addr| u64::from(u32::from_ne_bytes(addr));
    let port = |port| u64::from(u16::from_ne_bytes(port));
    let addresses = word(trip.source) << 32 | word(trip.destination);
    let rest = port(trip.sport) << 48
        | port(trip.dport) << 32
        | u64::from(trip.len) << 16
        | u64::from(trip.proto);
    let found = fl_way(skb, addresses, rest, trip.vrf.into());
    if found == 0 {
        return None;
    }
    let address = SCRATCH.get_ptr(0)?.cast::<[u8; 16]>();
    // SAFETY: within this CPU's own element, where `fl_way` has just left the address; no
    // other program of ours runs on this CPU between both.
    let address = unsafe { address.read() };
    Some(Way {
        ifindex: found as u32,
        next_hop: NextHop { family: (found >> 48) as u8, address },
        mtu: (found >> 32) as u16,
    })
}

/// Where the kernel would send a packet: 0 if it would not; else from below the output
/// interface, 16 bits of the MTU and 8 of the next hop's family. Its address is in the
/// scratch.
#[inline(never)]
#[unsafe(no_mangle)]
pub(super) extern "C" fn fl_way(skb: *mut __sk_buff, addresses: u64, rest: u64, vrf: u64) -> u64 {
    // SAFETY: all of its fields are integers, for which zero is valid.
    let mut params: bpf_fib_lookup = unsafe { core::mem::zeroed() };
    params.l4_protocol = rest as u8;
    params.sport = (rest >> 48) as u16;
    params.dport = (rest >> 32) as u16;
    params.__bindgen_anon_1.tot_len = (rest >> 16) as u16;
    params.__bindgen_anon_3.ipv4_src = (addresses >> 32) as u32;
    params.__bindgen_anon_4.ipv4_dst = addresses as u32;
    if look_up(skb, &mut params, vrf as u32) != FIB_SUCCESS {
        return 0;
    }
    // The family is that of the next hop: IPv6 behind `via inet6`.
    // SAFETY: the look-up has set the field of the family; the other bytes are zero.
    let [first, second, third, fourth] = unsafe { params.__bindgen_anon_4.ipv6_dst };
    let rest = if params.family == AF_INET { [0; 3] } else { [second, third, fourth] };
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else { return 0 };
    // SAFETY: within this CPU's own element.
    unsafe { scratch.cast::<(u32, [u32; 3])>().write((first, rest)) };
    // SAFETY: a look-up with `tot_len` that succeeds sets this field.
    let mtu = unsafe { params.__bindgen_anon_1.mtu_result };
    u64::from(params.ifindex) | u64::from(mtu) << 32 | u64::from(params.family) << 48
}

/// Whether this is an address of the node itself.
#[inline(never)]
#[unsafe(no_mangle)]
pub(super) extern "C" fn fl_is_local(skb: *mut __sk_buff, addr: u64) -> u64 {
    // SAFETY: all of its fields are integers, for which zero is valid.
    let mut params: bpf_fib_lookup = unsafe { core::mem::zeroed() };
    params.__bindgen_anon_4.ipv4_dst = addr as u32;
    (look_up(skb, &mut params, 0) == FIB_NOT_FORWARDED).into()
}

/// Asks for the route of a packet of the node's own, bound to no interface, as
/// the kernel's VXLAN device does: BPF_FIB_LOOKUP_OUTPUT would force one. A VXLAN
/// device over a VRF is bound to the VRF (vxlan_xmit_one, sk_bound_dev_if).
#[inline(always)]
fn look_up(skb: *mut __sk_buff, params: &mut bpf_fib_lookup, vrf: u32) -> i64 {
    params.family = AF_INET;
    params.ifindex = if vrf == 0 { LOOPBACK_IFINDEX } else { vrf };
    let flags = if vrf == 0 { 0 } else { BPF_FIB_LOOKUP_OUTPUT };
    // SAFETY: `skb` is the program's context, `params` lives on the stack.
    unsafe { fib_lookup(skb.cast(), params, size_of::<bpf_fib_lookup>() as i32, flags) }
}
