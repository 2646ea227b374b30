//! Goes through a map again and again, a part at a time: nobody tells when somebody else
//! writes into it.

use std::io;
use std::os::fd::BorrowedFd;

use zerocopy::{FromBytes, IntoBytes};

use super::sys::{self, Token};

/// The kernel's answer where a map type has no batches (`linux/errno.h`).
const ENOTSUPP: i32 = 524;

/// How far it has come. `K` is the map's key.
pub(super) struct Walk<K> {
    at: At<K>,
    /// Keys that this round has met, or that were written meanwhile.
    met: Vec<K>,
}

enum At<K> {
    /// Before the next part of a batch.
    Batch(Option<Token>),
    /// Behind a key, where the kernel has no batches.
    Key(Option<K>),
}

/// A part of the map.
pub(super) struct Part<K, V> {
    /// What is in it.
    pub(super) entries: Vec<(K, V)>,
    /// It was the last one: the keys of the whole round, in order.
    pub(super) round: Option<Vec<K>>,
}

impl<K> Default for Walk<K> {
    fn default() -> Self {
        Self { at: At::Batch(None), met: Vec::new() }
    }
}

impl<K: Copy + Ord + FromBytes + IntoBytes> Walk<K> {
    fn is_at_start(&self) -> bool {
        matches!(self.at, At::Batch(None) | At::Key(None))
    }

    /// These were written: a round that has passed their places does not miss them.
    pub(super) fn wrote(&mut self, keys: &[K]) {
        self.met.extend_from_slice(keys);
    }

    /// The next entries of the map, `most` at the most.
    ///
    /// # Errors
    /// The kernel's; the next call begins a round.
    pub(super) fn next<V>(&mut self, map: BorrowedFd<'_>, most: usize) -> io::Result<Part<K, V>>
    where
        V: Copy + FromBytes + IntoBytes,
    {
        let read = match self.at {
            At::Batch(token) => match batch(map, token, most) {
                Err(error) if is_unsupported(&error) => by_key(map, None, most),
                read => read,
            },
            At::Key(key) => by_key(map, key, most),
        };
        let (entries, at) = match read {
            Ok(read) => read,
            Err(error) => {
                *self = Self::default();
                return Err(error);
            }
        };
        self.met.extend(entries.iter().map(|(key, _)| *key));
        self.at = at;
        let round = self.is_at_start().then(|| {
            let mut met = std::mem::take(&mut self.met);
            met.sort_unstable();
            met
        });
        Ok(Part { entries, round })
    }
}

fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(ENOTSUPP | libc::EOPNOTSUPP))
}

/// Entries, and where it goes on.
type Read<K, V> = (Vec<(K, V)>, At<K>);

fn batch<K, V>(map: BorrowedFd<'_>, from: Option<Token>, most: usize) -> io::Result<Read<K, V>>
where
    K: Copy + FromBytes + IntoBytes,
    V: Copy + FromBytes + IntoBytes,
{
    let mut keys = vec![K::new_zeroed(); most];
    let mut values = vec![V::new_zeroed(); most];
    let (count, next) = sys::lookup_batch(map, from, &mut keys, &mut values)?;
    Ok((keys.into_iter().zip(values).take(count).collect(), At::Batch(next)))
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
            None => return Ok((entries, At::Key(None))),
        }
    }
    Ok((entries, At::Key(at)))
}
