//! Random data in large writes, checked byte by byte at the other end.

use std::io::{Read, Result, Write};

use super::random::Random;

const BLOCK: usize = 128 * 1024;

/// Sends `length` bytes of the seed's sequence.
///
/// # Errors
/// The connection's.
pub fn send(stream: &mut impl Write, seed: u64, length: u64) -> Result<()> {
    let (mut random, mut left) = (Random::new(seed), length);
    let mut block = vec![0; BLOCK];
    while left > 0 {
        let part = usize::try_from(left).map_or(BLOCK, |left| left.min(BLOCK));
        random.fill(&mut block[..part]);
        stream.write_all(&block[..part])?;
        left -= part as u64;
    }
    Ok(())
}

/// Receives `length` bytes; the offset of the first block (of 128 KiB) that is
/// not the seed's, if any.
///
/// # Errors
/// The connection's.
pub fn receive(stream: &mut impl Read, seed: u64, length: u64) -> Result<Option<u64>> {
    let (mut random, mut done) = (Random::new(seed), 0);
    let (mut block, mut expected) = (vec![0; BLOCK], vec![0; BLOCK]);
    let mut wrong = None;
    while done < length {
        let part = usize::try_from(length - done).map_or(BLOCK, |left| left.min(BLOCK));
        stream.read_exact(&mut block[..part])?;
        random.fill(&mut expected[..part]);
        if wrong.is_none() && block[..part] != expected[..part] {
            wrong = Some(done);
        }
        done += part as u64;
    }
    Ok(wrong)
}
