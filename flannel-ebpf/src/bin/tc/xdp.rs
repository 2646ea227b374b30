//! The XDP program: glue between `xdp_md`, the maps and
//! [`flannel_ebpf::path::wire_xdp`].

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS};
use aya_ebpf::bindings::xdp_md;
use aya_ebpf::helpers::{bpf_xdp_adjust_head, bpf_xdp_adjust_meta, bpf_xdp_get_buff_len};
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use flannel_ebpf::abi::Handover;
use flannel_ebpf::path::wire_xdp::{self, Stripped, Wire};
use flannel_ebpf::path::{Frame, Verdict};
use flannel_ebpf::wire::ENCAP_LEN;

use super::Maps;

/// Length of the metadata in bytes.
const META_LEN: usize = size_of::<Handover>();

struct Buffer {
    raw: *mut xdp_md,
}

impl Buffer {
    /// Address of `len` bytes at `offset`, if they lie in the first fragment.
    #[inline(always)]
    fn at(&self, offset: usize, len: usize) -> Option<*mut u8> {
        // SAFETY: `raw` is the context that the kernel passed to the program.
        let (start, end) = unsafe { ((*self.raw).data as usize, (*self.raw).data_end as usize) };
        let first = start + offset;
        if first + len > end { None } else { Some(first as *mut u8) }
    }
}

/// What no packet has before there is an skb answers as for a plain one.
impl Frame for Buffer {
    #[inline(always)]
    fn len(&self) -> u32 {
        // SAFETY: `raw` is the program's context.
        unsafe { bpf_xdp_get_buff_len(self.raw) as u32 }
    }

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        // SAFETY: as in `at`.
        unsafe { (*self.raw).ingress_ifindex }
    }

    #[inline(always)]
    fn gso_size(&self) -> u32 {
        0
    }

    #[inline(always)]
    fn tagged(&self) -> bool {
        false
    }

    #[inline(always)]
    fn to_us(&self) -> bool {
        true
    }

    #[inline(always)]
    fn mark(&self) -> u32 {
        0
    }

    #[inline(always)]
    fn linearize(&mut self, _bytes: u32) {}

    #[inline(always)]
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        let at = self.at(offset, N)?;
        // SAFETY: `at` found N bytes there; an array of bytes has no alignment.
        Some(unsafe { at.cast::<[u8; N]>().read() })
    }

    #[inline(always)]
    fn store<const N: usize>(&mut self, offset: usize, bytes: &[u8; N]) -> Option<()> {
        let at = self.at(offset, N)?;
        // SAFETY: `at` found N bytes there; XDP programs may write to packets.
        unsafe { at.cast::<[u8; N]>().write(*bytes) };
        Some(())
    }

    #[inline(always)]
    fn hash(&mut self) -> u32 {
        0
    }

    #[inline(always)]
    fn mark_fast(&mut self) {}

    #[inline(always)]
    fn take_fast(&mut self) -> bool {
        false
    }

    #[inline(always)]
    fn grow(&mut self) -> bool {
        false
    }

    #[inline(always)]
    fn shrink(&mut self) -> bool {
        false
    }

    #[inline(always)]
    fn take_handover(&mut self) -> Option<Handover> {
        None
    }
}

impl Wire for Buffer {
    #[inline(always)]
    fn strip(&mut self, handover: &Handover) -> Stripped {
        // SAFETY: as in `at`.
        let (data, meta) = unsafe { ((*self.raw).data, (*self.raw).data_meta) };
        if data != meta {
            // The driver, or a program before us, has put something there.
            return Stripped::Refused;
        }
        // Metadata first: it is what may be refused. Moving the head takes it
        // along.
        // SAFETY: `raw` is the program's context.
        if unsafe { bpf_xdp_adjust_meta(self.raw, -(META_LEN as i32)) } != 0 {
            return Stripped::Refused;
        }
        // SAFETY: as above.
        if unsafe { bpf_xdp_adjust_head(self.raw, ENCAP_LEN as i32) } != 0 {
            // SAFETY: as above. Should this fail, bytes without meaning stay.
            unsafe { bpf_xdp_adjust_meta(self.raw, META_LEN as i32) };
            return Stripped::Refused;
        }
        // SAFETY: as in `at`.
        let (data, meta) = unsafe { ((*self.raw).data as usize, (*self.raw).data_meta as usize) };
        if meta + META_LEN > data {
            return Stripped::Broken;
        }
        // SAFETY: META_LEN bytes lie between `meta` and `data`.
        unsafe { (meta as *mut Handover).write_unaligned(*handover) };
        Stripped::Done
    }
}

/// XDP of the underlay device.
#[xdp(frags)]
pub fn from_wire(ctx: XdpContext) -> u32 {
    let mut buffer = Buffer { raw: ctx.ctx };
    match wire_xdp::from_wire(&mut buffer, &Maps { raw: ctx.as_ptr() }) {
        Verdict::Drop => XDP_DROP,
        _ => XDP_PASS,
    }
}
