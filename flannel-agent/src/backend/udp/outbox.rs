//! Packets on their way out, gathered so that one system call sends many.
//! Pure: who sends them is told what to send.
//!
//! Consecutive packets for one node that are of one size (the last may be
//! shorter) form a [`Run`], which UDP GSO sends as one.

use std::net::Ipv4Addr;

/// Longest payload of a UDP datagram over IPv4, which bounds a run as well.
const LONGEST: usize = 65_507;
/// Bytes gathered before they are sent.
const ROOM: usize = 256 * 1024;
/// Runs gathered before they are sent.
const RUNS: usize = 64;

/// Datagrams for one node, one behind the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    /// The node.
    pub(super) to: Ipv4Addr,
    start: usize,
    /// All bytes.
    pub(super) len: usize,
    /// Bytes of each datagram; the last may have fewer.
    pub(super) segment: usize,
    /// Datagrams.
    pub(super) count: usize,
    closed: bool,
}

/// The gathered packets.
#[derive(Debug)]
pub(super) struct Outbox {
    arena: Vec<u8>,
    used: usize,
    runs: Vec<Run>,
    most: usize,
}

impl Outbox {
    /// An empty one; a run has at most `most` datagrams.
    pub(super) fn new(most: usize) -> Self {
        Self { arena: vec![0; ROOM], used: 0, runs: Vec::with_capacity(RUNS), most }
    }

    /// Whether a packet of `len` bytes has to wait until [`clear`](Self::clear).
    pub(super) fn is_full(&self, len: usize) -> bool {
        self.arena.len() - self.used < len || self.runs.len() == RUNS
    }

    /// Where the next packet is to be written.
    pub(super) fn space(&mut self) -> &mut [u8] {
        self.arena.get_mut(self.used..).unwrap_or_default()
    }

    /// The next `len` bytes of [`space`](Self::space) are a packet for `to`.
    pub(super) fn commit(&mut self, len: usize, to: Ipv4Addr) {
        let len = len.min(self.arena.len() - self.used);
        let most = self.most;
        let fits = |run: &&mut Run| {
            !run.closed
                && run.to == to
                && len <= run.segment
                && run.count < most
                && run.len + len <= LONGEST
        };
        match self.runs.last_mut().filter(fits) {
            Some(run) => {
                run.closed = len < run.segment;
                run.len += len;
                run.count += 1;
            }
            None => self.runs.push(Run {
                to,
                start: self.used,
                len,
                segment: len,
                count: 1,
                closed: false,
            }),
        }
        self.used += len;
    }

    /// What is to be sent, in order.
    pub(super) fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// The bytes of a run.
    pub(super) fn bytes(&self, run: &Run) -> &[u8] {
        self.arena.get(run.start..run.start + run.len).unwrap_or_default()
    }

    /// All is sent.
    pub(super) fn clear(&mut self) {
        self.used = 0;
        self.runs.clear();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn node(last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 99, 0, last)
    }

    fn filled(packets: &[(usize, u8)]) -> Vec<(u8, usize, usize)> {
        let mut outbox = Outbox::new(4);
        for (len, to) in packets {
            outbox.commit(*len, node(*to));
        }
        outbox.runs().iter().map(|run| (run.to.octets()[3], run.count, run.len)).collect()
    }

    #[test]
    fn runs_have_one_node_and_one_size() {
        assert_eq!(filled(&[(100, 1), (100, 1), (60, 1)]), [(1, 3, 260)]);
        assert_eq!(filled(&[(100, 1), (60, 1), (60, 1)]), [(1, 2, 160), (1, 1, 60)]);
        assert_eq!(filled(&[(60, 1), (100, 1)]), [(1, 1, 60), (1, 1, 100)]);
        assert_eq!(filled(&[(60, 1), (60, 2), (60, 1)]), [(1, 1, 60), (2, 1, 60), (1, 1, 60)]);
        assert_eq!(filled(&[(9, 1); 5]), [(1, 4, 36), (1, 1, 9)]);
        assert_eq!(filled(&[(30_000, 1); 3]), [(1, 2, 60_000), (1, 1, 30_000)]);
    }

    proptest! {
        #[test]
        fn nothing_is_lost_or_reordered(
            packets in proptest::collection::vec((1usize..2000, 0u8..3), 0..60),
        ) {
            let mut outbox = Outbox::new(16);
            let mut expected: Vec<(u8, Vec<u8>)> = Vec::new();
            for (index, (len, to)) in packets.iter().enumerate() {
                prop_assert!(!outbox.is_full(*len));
                outbox.space()[..*len].fill(index as u8);
                outbox.commit(*len, node(*to));
                expected.push((*to, vec![index as u8; *len]));
            }
            let mut sent = Vec::new();
            for run in outbox.runs() {
                let datagrams = outbox.bytes(run).chunks(run.segment);
                prop_assert_eq!(datagrams.len(), run.count);
                sent.extend(datagrams.map(|bytes| (run.to.octets()[3], bytes.to_vec())));
            }
            prop_assert_eq!(sent, expected);
            outbox.clear();
            prop_assert!(outbox.runs().is_empty() && !outbox.is_full(ROOM));
        }
    }
}
