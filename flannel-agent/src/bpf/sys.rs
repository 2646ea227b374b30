//! Calls of bpf(2) that aya does not offer, or not without CAP_SYS_ADMIN.
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
pub(super) fn update_batch<K, V>(map: BorrowedFd<'_>, keys: &[K], values: &[V]) -> io::Result<()>
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
    // SAFETY: `keys` and `values` hold `count` elements each of the map's key
    // and value size, and outlive the call.
    unsafe { bpf(BPF_MAP_UPDATE_BATCH, &mut attr) }
}

/// `bpf_cmd` BPF_PROG_QUERY (`linux/bpf.h`).
const BPF_PROG_QUERY: libc::c_long = 16;
/// Programs that a hook can hold (BPF_MPROG_MAX).
const MAX_PROGRAMS: usize = 64;

/// A tcx hook: `bpf_attach_type` BPF_TCX_INGRESS and BPF_TCX_EGRESS.
#[derive(Clone, Copy, Debug)]
#[repr(u32)]
pub(super) enum TcxHook {
    Ingress = 46,
    Egress = 47,
}

/// The `query` member of `union bpf_attr`.
#[repr(C)]
#[derive(Default)]
struct QueryAttr {
    target_ifindex: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    count: u32,
    reserved: u32,
    prog_attach_flags: u64,
    link_ids: u64,
    link_attach_flags: u64,
    revision: u64,
}

/// Ids of the programs on a tcx hook. aya's query opens each program, for which
/// the kernel wants CAP_SYS_ADMIN; the ids alone need CAP_NET_ADMIN.
///
/// # Errors
/// EINVAL where the kernel has no tcx (before Linux 6.6), ENODEV if the
/// interface has gone.
pub(super) fn tcx_programs(ifindex: u32, hook: TcxHook) -> io::Result<Vec<u32>> {
    let mut ids = [0_u32; MAX_PROGRAMS];
    let mut attr = QueryAttr {
        target_ifindex: ifindex,
        attach_type: hook as u32,
        prog_ids: ids.as_mut_ptr() as u64,
        count: MAX_PROGRAMS as u32,
        ..QueryAttr::default()
    };
    // SAFETY: `ids` has room for `count` ids and outlives the call.
    unsafe { bpf(BPF_PROG_QUERY, &mut attr) }?;
    Ok(ids.into_iter().take(attr.count as usize).collect())
}

/// Calls bpf(2).
///
/// # Safety
/// `attr` is a prefix of `union bpf_attr` for this command; the pointers in it
/// are valid for what the kernel reads and writes there.
unsafe fn bpf<T>(command: libc::c_long, attr: &mut T) -> io::Result<()> {
    let attr = std::ptr::from_mut(attr);
    // SAFETY: the caller's promise.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attr, size_of::<T>()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
