//! A packet at the XDP hook: `xdp_md`.

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::helpers::{bpf_xdp_adjust_head, bpf_xdp_adjust_meta, bpf_xdp_get_buff_len};
use flannel_ebpf::abi::Handover;
use flannel_ebpf::path::Frame;
use flannel_ebpf::path::hook::from_wire::{Stripped, Wire};
use flannel_ebpf::wire::ENCAP_LEN;

/// Length of the metadata in bytes.
const META_LEN: usize = size_of::<Handover>();

/// A packet that has no skb yet.
pub(crate) struct Buffer {
    raw: *mut xdp_md,
}

impl Buffer {
    /// The packet of a program's context.
    #[inline(always)]
    pub(crate) fn new(raw: *mut xdp_md) -> Self {
        Self { raw }
    }

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
    fn linearize(&mut self, _bytes: u32) {}

    #[inline(always)]
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        let at = self.at(offset, N)?;
        // SAFETY: `at` found N bytes there; an array of bytes has no alignment.
        Some(unsafe { at.cast::<[u8; N]>().read() })
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
