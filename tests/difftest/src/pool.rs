//! Connections side by side: which one speaks next. Pure.
//!
//! What opens and ends a connection has to arrive before what follows. So these
//! packets are collected, and sent in *turns*: before a turn all that was sent has
//! to have arrived. Between turns the connections that are open carry data.

use std::collections::VecDeque;

use rand::Rng;
use rand::rngs::StdRng;

use super::connection::{Connection, Word};
use super::demands;
use super::kind::{Kind, MAPPED};
use super::mode::Mode;
use super::slots::Slot;

/// Packets of connections between two turns.
const APART: usize = 60;
/// Client ports, but for those of [`Kind::SourceNat`].
const PORTS: std::ops::Range<u16> = 32_000..60_000;

/// What is sent next.
pub struct Next {
    /// The connection, as it is afterwards.
    pub connection: Connection,
    /// What it says.
    pub word: Word,
    /// Everything before has to have arrived.
    pub waits: bool,
    /// It may be odd: the order of what follows does not rest on it.
    pub loose: bool,
}

/// All connections that live.
pub struct Pool {
    mode: Mode,
    ready: Vec<Connection>,
    turn: VecDeque<Connection>,
    waiting: Vec<Connection>,
    since: usize,
    must_wait: bool,
    port: u16,
    mapped: u16,
}

impl Pool {
    /// One connection for each slot of the mode.
    pub fn new(mode: Mode, rng: &mut StdRng) -> Self {
        let mut pool = Self {
            mode,
            ready: Vec::new(),
            turn: VecDeque::new(),
            waiting: Vec::new(),
            since: 0,
            must_wait: false,
            port: PORTS.start,
            mapped: MAPPED.start,
        };
        for slot in mode.slots() {
            let connection = pool.fresh(slot, rng);
            pool.waiting.push(connection);
        }
        pool
    }

    /// The next packet; `None`: there are no connections in this mode.
    pub fn next(&mut self, rng: &mut StdRng) -> Option<Next> {
        if self.turn.is_empty() && (self.ready.is_empty() || self.since >= APART) {
            self.start_turn();
        }
        self.since += 1;
        let (mut connection, loose) = match self.turn.pop_front() {
            Some(connection) => (connection, false),
            None if self.ready.is_empty() => return None,
            None => (self.ready.swap_remove(rng.random_range(0..self.ready.len())), true),
        };
        let word = connection.speak(rng);
        let waits = std::mem::take(&mut self.must_wait);
        self.put_back(connection.clone(), loose, rng);
        Some(Next { connection, word, waits, loose })
    }

    /// The connection that spoke last is not to be relied on: another takes its
    /// place.
    pub fn forget(&mut self, connection: &Connection, rng: &mut StdRng) {
        let same =
            |other: &Connection| other.ends == connection.ends && other.slot == connection.slot;
        let lives = self.ready.len() + self.waiting.len();
        for list in [&mut self.ready, &mut self.waiting] {
            list.retain(|other| !same(other));
        }
        // Else it was over anyway, and another has taken its place.
        if self.ready.len() + self.waiting.len() < lives {
            let fresh = self.fresh(connection.slot, rng);
            self.waiting.push(fresh);
        }
    }

    fn start_turn(&mut self) {
        let (open, rest): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.waiting).into_iter().partition(Connection::is_loose);
        self.ready.extend(open);
        self.turn.extend(rest);
        self.since = 0;
        self.must_wait = true;
    }

    fn put_back(&mut self, connection: Connection, loose: bool, rng: &mut StdRng) {
        if connection.is_over() {
            // The same ports again at once, or others.
            let may = demands::REUSED || self.mode != Mode::Eager;
            let next = if may && rng.random_bool(0.25) {
                let left = rng.random_range(self.mode.packets());
                connection.again(left, self.mode.backend(), rng)
            } else {
                self.fresh(connection.slot, rng)
            };
            self.waiting.push(next);
        } else if loose && connection.is_loose() {
            self.ready.push(connection);
        } else {
            self.waiting.push(connection);
        }
    }

    fn fresh(&mut self, slot: Slot, rng: &mut StdRng) -> Connection {
        let (next, range) = if slot.kind == Kind::SourceNat {
            (&mut self.mapped, MAPPED)
        } else {
            (&mut self.port, PORTS)
        };
        let port = *next;
        *next = if port + 1 < range.end { port + 1 } else { range.start };
        let left = rng.random_range(self.mode.packets());
        Connection::new(slot, port, left, self.mode.backend(), rng)
    }
}

#[cfg(test)]
mod tests;
