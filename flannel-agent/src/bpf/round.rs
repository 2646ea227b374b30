//! Looks after many hooks, in turns.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use flannel_core::schedule::HOOKS;

use super::hook::Hook;

/// What a look after the hooks that was left for others has seen so far: the next turn
/// goes on from there. Otherwise all of them would be asked in each turn.
#[derive(Debug, Default)]
pub(super) struct Round {
    began: Option<Instant>,
    sound: BTreeSet<(u32, &'static str)>,
}

/// A round that lasts longer begins anew: there may always be something to attach, and
/// what somebody takes away has to be seen.
const LONGEST: Duration = HOOKS;

impl Round {
    /// A turn begins at this time.
    pub(super) fn turn(&mut self, now: Instant) {
        match self.began {
            Some(began) if now.duration_since(began) < LONGEST => {}
            _ => {
                self.sound.clear();
                self.began = Some(now);
            }
        }
    }

    /// Whether an earlier turn found its program there.
    pub(super) fn has(&self, hook: &Hook) -> bool {
        self.sound.contains(&(hook.ifindex, hook.program))
    }

    /// Its program is there.
    pub(super) fn note(&mut self, hook: &Hook) {
        self.sound.insert((hook.ifindex, hook.program));
    }

    /// All hooks have been looked after.
    pub(super) fn end(&mut self) {
        self.sound.clear();
        self.began = None;
    }
}

#[cfg(test)]
mod tests {
    use flannel_ebpf::abi::program;

    use super::*;

    fn hook(ifindex: u32) -> Hook {
        Hook { ifindex, interface: format!("veth{ifindex}"), program: program::TO_POD }
    }

    #[test]
    fn a_turn_goes_on_where_the_one_before_left() {
        let (mut round, start) = (Round::default(), Instant::now());
        round.turn(start);
        round.note(&hook(1));
        round.turn(start + Duration::from_millis(20));
        assert!(round.has(&hook(1)) && !round.has(&hook(2)));
        assert!(!round.has(&Hook { program: program::FROM_POD, ..hook(1) }));
    }

    #[test]
    fn a_round_that_ended_or_lasts_too_long_begins_anew() {
        let (mut round, start) = (Round::default(), Instant::now());
        round.turn(start);
        round.note(&hook(1));
        round.turn(start + LONGEST);
        assert!(!round.has(&hook(1)));
        round.note(&hook(1));
        round.turn(start + LONGEST + Duration::from_millis(20));
        assert!(round.has(&hook(1)));
        round.end();
        round.turn(start + LONGEST + Duration::from_millis(40));
        assert!(!round.has(&hook(1)));
    }
}
