//! BPF_MAP_UPDATE_BATCH, which aya does not offer.
#![allow(unsafe_code, reason = "bpf(2) with pointers to our buffers")]

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use zerocopy::{Immutable, IntoBytes};

/// `bpf_cmd` BPF_MAP_UPDATE_BATCH (`linux/bpf.h`).
const BPF_MAP_UPDATE_BATCH: libc::c_long = 26;

/// The `batch` member of `union bpf_attr`.
#[repr(C)]
#[derive(Default)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// Puts all pairs into the map in one call.
///
/// # Errors
/// EINVAL, or 524 (ENOTSUPP) where the map type has no batches (LPM tries
/// before Linux 5.13, hashes before 5.6); any error of a single update, with
/// the elements before it done.
pub(super) fn update<K, V>(map: BorrowedFd<'_>, keys: &[K], values: &[V]) -> io::Result<()>
where
    K: IntoBytes + Immutable,
    V: IntoBytes + Immutable,
{
    let count = u32::try_from(keys.len().min(values.len())).unwrap_or(u32::MAX);
    if count == 0 {
        return Ok(());
    }
    let mut attr = BatchAttr {
        keys: keys.as_bytes().as_ptr() as u64,
        values: values.as_bytes().as_ptr() as u64,
        count,
        map_fd: map.as_raw_fd() as u32,
        ..BatchAttr::default()
    };
    // SAFETY: `attr` is a prefix of `union bpf_attr` of the size passed; `keys`
    // and `values` hold `count` elements each of the map's key and value size,
    // and outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_MAP_UPDATE_BATCH,
            std::ptr::from_mut(&mut attr),
            size_of::<BatchAttr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
