//! Maps and their elements, one by one and many at a time.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{bpf, bpf_open};

/// `bpf_cmd` BPF_MAP_UPDATE_BATCH (`linux/bpf.h`).
const BPF_MAP_UPDATE_BATCH: libc::c_long = 26;
/// `bpf_cmd` BPF_MAP_LOOKUP_BATCH.
const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;
/// `bpf_cmd` BPF_MAP_CREATE.
const BPF_MAP_CREATE: libc::c_long = 0;
/// `bpf_attr.map_flags`: entries are allocated as they come.
const BPF_F_NO_PREALLOC: u32 = 1;
/// `bpf_cmd` BPF_MAP_UPDATE_ELEM.
const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
/// `bpf_cmd` BPF_MAP_LOOKUP_ELEM.
const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
/// `bpf_cmd` BPF_MAP_GET_NEXT_KEY.
const BPF_MAP_GET_NEXT_KEY: libc::c_long = 4;

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
pub(in super::super) fn update_batch<K, V>(
    map: BorrowedFd<'_>,
    keys: &[K],
    values: &[V],
) -> io::Result<()>
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
    unsafe { bpf(BPF_MAP_UPDATE_BATCH, &mut attr) }.map(drop)
}

/// Where a reading in batches goes on: a bucket of a hash, or a key of a trie.
pub(in super::super) type Token = [u32; 2];

/// Fills as much of both slices as the map has from `from` on (`None`: from its
/// beginning). How many pairs they hold now, and where the map goes on.
///
/// # Errors
/// 524 (ENOTSUPP) where the map type has no batches (LPM tries before Linux 5.13).
pub(in super::super) fn lookup_batch<K, V>(
    map: BorrowedFd<'_>,
    from: Option<Token>,
    keys: &mut [K],
    values: &mut [V],
) -> io::Result<(usize, Option<Token>)>
where
    K: FromBytes + IntoBytes,
    V: FromBytes + IntoBytes,
{
    const { assert!(size_of::<K>() <= size_of::<Token>()) };
    let mut next = Token::default();
    let mut attr = BatchAttr {
        in_batch: from.as_ref().map_or(0, |token| std::ptr::from_ref(token) as u64),
        out_batch: std::ptr::from_mut(&mut next) as u64,
        keys: keys.as_mut_bytes().as_mut_ptr() as u64,
        values: values.as_mut_bytes().as_mut_ptr() as u64,
        count: u32::try_from(keys.len().min(values.len())).unwrap_or(u32::MAX),
        map_fd: map.as_raw_fd() as u32,
        ..BatchAttr::default()
    };
    // SAFETY: `keys` and `values` have room for `count` elements of the map's key and
    // value size, of which any bytes are valid; both tokens are as large as a key. All
    // outlive the call.
    match unsafe { bpf(BPF_MAP_LOOKUP_BATCH, &mut attr) } {
        Ok(_) => Ok((attr.count as usize, Some(next))),
        // The last ones.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok((attr.count as usize, None)),
        Err(error) => Err(error),
    }
}

/// The members of `union bpf_attr` for one element.
#[repr(C)]
#[derive(Default)]
struct ElementAttr {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// The key after this one (`None`: the first), with its value; `None` at the end. A
/// key that has gone begins from the start.
///
/// # Errors
/// The kernel's, but ENOENT.
pub(in super::super) fn next_element<K, V>(
    map: BorrowedFd<'_>,
    after: Option<K>,
) -> io::Result<Option<(K, V)>>
where
    K: FromBytes + IntoBytes + Copy,
    V: FromBytes + IntoBytes,
{
    let map_fd = map.as_raw_fd() as u32;
    let mut after = after;
    loop {
        let mut key = K::new_zeroed();
        let mut attr = ElementAttr {
            map_fd,
            key: after.as_ref().map_or(0, |key| std::ptr::from_ref(key) as u64),
            value: std::ptr::from_mut(&mut key) as u64,
            ..ElementAttr::default()
        };
        // SAFETY: both keys are of the map's key size, and outlive the call.
        match unsafe { bpf(BPF_MAP_GET_NEXT_KEY, &mut attr) } {
            Ok(_) => {}
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
            Err(error) => return Err(error),
        }
        match lookup_element(map, &key)? {
            Some(value) => return Ok(Some((key, value))),
            // Gone between the two calls.
            None => after = Some(key),
        }
    }
}

/// The value of a key, if the map has one: of a trie, that of the longest prefix.
///
/// # Errors
/// The kernel's, but ENOENT.
pub(in super::super) fn lookup_element<K, V>(map: BorrowedFd<'_>, key: &K) -> io::Result<Option<V>>
where
    K: IntoBytes,
    V: FromBytes + IntoBytes,
{
    let mut value = V::new_zeroed();
    let mut attr = ElementAttr {
        map_fd: map.as_raw_fd() as u32,
        key: std::ptr::from_ref(key) as u64,
        value: std::ptr::from_mut(&mut value) as u64,
        ..ElementAttr::default()
    };
    // SAFETY: `key` and `value` are of the map's key and value size, and outlive the
    // call; any bytes are a valid value.
    match unsafe { bpf(BPF_MAP_LOOKUP_ELEM, &mut attr) } {
        Ok(_) => Ok(Some(value)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Writes one entry.
///
/// # Errors
/// The kernel's.
pub(in super::super) fn update_element<K, V>(
    map: BorrowedFd<'_>,
    key: &K,
    value: &V,
) -> io::Result<()>
where
    K: IntoBytes + Immutable,
    V: IntoBytes + Immutable,
{
    let mut attr = ElementAttr {
        map_fd: map.as_raw_fd() as u32,
        key: std::ptr::from_ref(key) as u64,
        value: std::ptr::from_ref(value) as u64,
        ..ElementAttr::default()
    };
    // SAFETY: `key` and `value` are of the map's key and value size, and outlive the call.
    unsafe { bpf(BPF_MAP_UPDATE_ELEM, &mut attr) }.map(drop)
}

/// The first members of `union bpf_attr` for a new map.
#[repr(C)]
struct CreateAttr {
    kind: u32,
    key_size: u32,
    value_size: u32,
    entries: u32,
    flags: u32,
}

/// Makes a map of this `bpf_map_type` whose entries are allocated as they come.
///
/// # Errors
/// The kernel's.
pub(in super::super) fn create_map<K, V>(kind: u32, entries: u32) -> io::Result<OwnedFd> {
    let mut attr = CreateAttr {
        kind,
        key_size: size_of::<K>() as u32,
        value_size: size_of::<V>() as u32,
        entries,
        flags: BPF_F_NO_PREALLOC,
    };
    // SAFETY: it has no pointers.
    unsafe { bpf_open(BPF_MAP_CREATE, &mut attr) }
}
