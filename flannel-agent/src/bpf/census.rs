//! How many entries a map has, without reading them: the kernel tells how much memory a
//! map takes, and that of a trie or of a hash that is not filled beforehand grows with
//! each entry. One system call, however many there are.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::os::unix::fs::FileExt as _;

use aya::maps::MapType;
use zerocopy::{FromZeros, Immutable, IntoBytes};

use super::sys;

/// More than the kernel's answer takes (`bpf_map_show_fdinfo`).
const LENGTH: usize = 1024;

/// Counts the entries of one map.
pub(super) struct Census {
    fdinfo: File,
    /// Bytes of the map without entries.
    empty: u64,
    /// Bytes of each entry.
    each: u64,
}

impl Census {
    /// For a map of this type, key and value that has so many entries now. `None` where
    /// the kernel does not tell (`map_mem_usage`, Linux 6.4).
    pub(super) fn of<K, V>(map: BorrowedFd<'_>, kind: MapType, entries: usize) -> Option<Self>
    where
        K: FromZeros + IntoBytes + Immutable,
        V: FromZeros + IntoBytes + Immutable,
    {
        let each = bytes_of_one::<K, V>(kind).ok().filter(|each| *each > 0)?;
        let fdinfo = fdinfo(map).ok()?;
        let empty = memory(&fdinfo).ok()?.checked_sub(each * entries as u64)?;
        Some(Self { fdinfo, empty, each })
    }

    /// Whether the map has so many entries. What cannot be read is not so.
    pub(super) fn is(&self, entries: usize) -> bool {
        memory(&self.fdinfo).is_ok_and(|now| now == self.empty + self.each * entries as u64)
    }
}

/// What one entry takes: tried with a map that has room for one.
fn bytes_of_one<K, V>(kind: MapType) -> io::Result<u64>
where
    K: FromZeros + IntoBytes + Immutable,
    V: FromZeros + IntoBytes + Immutable,
{
    let map = sys::create_map::<K, V>(kind as u32, 1)?;
    let fdinfo = fdinfo(map.as_fd())?;
    let empty = memory(&fdinfo)?;
    sys::update_element(map.as_fd(), &K::new_zeroed(), &V::new_zeroed())?;
    Ok(memory(&fdinfo)?.saturating_sub(empty))
}

fn fdinfo(map: BorrowedFd<'_>) -> io::Result<File> {
    File::open(format!("/proc/self/fdinfo/{}", map.as_raw_fd()))
}

/// Bytes that the map takes.
fn memory(fdinfo: &File) -> io::Result<u64> {
    number(fdinfo, "memlock:")
}

/// Whether somebody has forbidden all writes into the map, for ever (BPF_MAP_FREEZE).
pub(super) fn is_frozen(map: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(number(&fdinfo(map)?, "frozen:")? != 0)
}

fn number(fdinfo: &File, name: &str) -> io::Result<u64> {
    let mut bytes = [0; LENGTH];
    let length = fdinfo.read_at(&mut bytes, 0)?;
    let text = String::from_utf8_lossy(&bytes[..length]);
    let told = text.lines().find_map(|line| line.strip_prefix(name));
    told.and_then(|bytes| bytes.trim().parse().ok()).ok_or(io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Linux 6.4 and later.
    #[test]
    fn entries_are_counted_as_they_come_and_go() {
        let kinds = [(MapType::LpmTrie, 8), (MapType::Hash, 0)];
        for (kind, prefix) in kinds {
            let map = sys::create_map::<[u32; 2], u64>(kind as u32, 100).unwrap();
            let put = |number: u32| {
                let key = [prefix, number.to_be()];
                sys::update_element(map.as_fd(), &key, &u64::from(number)).unwrap();
            };
            (0..3).for_each(|number| put(number << 24));
            let census = Census::of::<[u32; 2], u64>(map.as_fd(), kind, 3).unwrap();
            assert!(census.is(3) && !census.is(2) && !census.is(4), "{kind:?}");
            put(2 << 24);
            assert!(census.is(3), "{kind:?}: one that was there");
            (3..50).for_each(|number| put(number << 24));
            assert!(census.is(50), "{kind:?}");
        }
    }
}
