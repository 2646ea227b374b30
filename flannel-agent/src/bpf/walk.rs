//! Goes through a map, a part at a time, and again and again: nobody tells when somebody
//! else writes into it.

use std::io;
use std::os::fd::BorrowedFd;

use zerocopy::{FromBytes, IntoBytes};

use super::sys::{self, Token};

/// The kernel's answer where a map type has no batches (`linux/errno.h`).
const ENOTSUPP: i32 = 524;

/// How far it has come. `K` is the map's key.
pub(super) enum Walk<K> {
    /// Before the next part of a batch.
    Batch(Option<Token>),
    /// Behind a key, where the kernel has no batches.
    Key(Option<K>),
}

/// A part of the map.
pub(super) struct Part<K, V> {
    /// What is in it.
    pub(super) entries: Vec<(K, V)>,
    /// The next part is the first one again.
    pub(super) is_last: bool,
}

impl<K> Default for Walk<K> {
    fn default() -> Self {
        Self::Batch(None)
    }
}

impl<K: Copy + FromBytes + IntoBytes> Walk<K> {
    /// The next entries of the map, `most` at the most.
    ///
    /// # Errors
    /// The kernel's; the next call begins a round.
    pub(super) fn next<V>(&mut self, map: BorrowedFd<'_>, most: usize) -> io::Result<Part<K, V>>
    where
        V: Copy + FromBytes + IntoBytes,
    {
        let (entries, next) = match std::mem::take(self) {
            Self::Batch(token) => match batch(map, token, most) {
                Err(error) if is_unsupported(&error) => by_key(map, None, most),
                read => read,
            },
            Self::Key(key) => by_key(map, key, most),
        }?;
        let is_last = matches!(next, Self::Batch(None) | Self::Key(None));
        *self = next;
        Ok(Part { entries, is_last })
    }
}

/// All entries of a map, read `most` at a time.
///
/// # Errors
/// The kernel's.
pub(super) fn all<K, V>(map: BorrowedFd<'_>, most: usize) -> io::Result<Vec<(K, V)>>
where
    K: Copy + FromBytes + IntoBytes,
    V: Copy + FromBytes + IntoBytes,
{
    let (mut walk, mut all) = (Walk::default(), Vec::new());
    loop {
        let part = walk.next(map, most)?;
        all.extend(part.entries);
        if part.is_last {
            return Ok(all);
        }
    }
}

fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(ENOTSUPP | libc::EOPNOTSUPP))
}

/// Entries, and where it goes on.
type Read<K, V> = (Vec<(K, V)>, Walk<K>);

fn batch<K, V>(map: BorrowedFd<'_>, from: Option<Token>, most: usize) -> io::Result<Read<K, V>>
where
    K: Copy + FromBytes + IntoBytes,
    V: Copy + FromBytes + IntoBytes,
{
    let mut keys = vec![K::new_zeroed(); most];
    let mut values = vec![V::new_zeroed(); most];
    let (count, next) = sys::lookup_batch(map, from, &mut keys, &mut values)?;
    Ok((keys.into_iter().zip(values).take(count).collect(), Walk::Batch(next)))
}

fn by_key<K, V>(map: BorrowedFd<'_>, after: Option<K>, most: usize) -> io::Result<Read<K, V>>
where
    K: Copy + FromBytes + IntoBytes,
    V: FromBytes + IntoBytes,
{
    let (mut entries, mut at) = (Vec::new(), after);
    while entries.len() < most {
        match sys::next_element(map, at)? {
            Some((key, value)) => {
                at = Some(key);
                entries.push((key, value));
            }
            None => return Ok((entries, Walk::Key(None))),
        }
    }
    Ok((entries, Walk::Key(at)))
}
