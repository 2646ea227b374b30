//! A packet of the kernel's, seen from outside: `sk_buff` or `xdp_buff`. Everything is
//! read by a helper that fails softly.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::bpf_probe_read_kernel;
use flannel_ebpf::monitor::Layout;
use flannel_ebpf::path::Frame;

/// A packet.
pub(crate) struct Peek {
    /// Where it begins in the kernel's memory.
    data: u64,
    /// Bytes that are there; the rest is elsewhere.
    linear: u32,
    len: u32,
    ifindex: u32,
}

/// Reads a `T`, of which any bytes are a valid value.
#[inline(always)]
fn read<T: Copy + Default>(at: u64) -> Option<T> {
    let mut value = T::default();
    // SAFETY: the helper writes `size_of::<T>()` bytes to `value`, or none.
    let failed = unsafe {
        bpf_probe_read_kernel(
            core::ptr::from_mut(&mut value).cast(),
            size_of::<T>() as u32,
            at as *const c_void,
        )
    };
    (failed == 0).then_some(value)
}

/// A member of a structure.
#[inline(always)]
fn member<T: Copy + Default>(of: u64, offset: u32) -> Option<T> {
    read(of + u64::from(offset))
}

impl Peek {
    /// The packet of a TC program: its first argument.
    #[inline(always)]
    pub(crate) fn skb(context: *mut c_void, layout: &Layout) -> Option<Self> {
        let skb: u64 = read(context as u64)?;
        let len: u32 = member(skb, layout.skb_len)?;
        let elsewhere: u32 = member(skb, layout.skb_data_len)?;
        let device = member(skb, layout.skb_dev)?;
        Some(Self {
            data: member(skb, layout.skb_data)?,
            linear: len.saturating_sub(elsewhere),
            len,
            ifindex: member(device, layout.dev_ifindex)?,
        })
    }

    /// The packet of an XDP program.
    #[inline(always)]
    pub(crate) fn buffer(context: *mut c_void, layout: &Layout) -> Option<Self> {
        let buffer: u64 = read(context as u64)?;
        let data: u64 = member(buffer, layout.xdp_data)?;
        let end: u64 = member(buffer, layout.xdp_data_end)?;
        let device = member(member(buffer, layout.xdp_rxq)?, layout.rxq_dev)?;
        let len = end.saturating_sub(data) as u32;
        Some(Self { data, linear: len, len, ifindex: member(device, layout.dev_ifindex)? })
    }
}

/// What cannot be seen from outside answers as for a plain packet.
impl Frame for Peek {
    #[inline(always)]
    fn len(&self) -> u32 {
        self.len
    }

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        self.ifindex
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
        if (offset + N) as u32 > self.linear {
            return None;
        }
        let mut bytes = [0; N];
        // SAFETY: the helper writes N bytes to `bytes`, or none.
        let failed = unsafe {
            bpf_probe_read_kernel(
                bytes.as_mut_ptr().cast(),
                N as u32,
                (self.data + offset as u64) as *const c_void,
            )
        };
        (failed == 0).then_some(bytes)
    }
}
