//! Looks after many hooks, in turns.

use std::collections::BTreeSet;
use std::time::Instant;

use flannel_core::schedule::HOOKS_REST;

use super::hook::Hook;

/// What looks after the hooks have found right a moment ago. A look that was left for
/// others goes on from there in its next turn, and passes that follow one another do not
/// ask all hooks again.
#[derive(Debug, Default)]
pub(super) struct Round {
    began: Option<Instant>,
    sound: BTreeSet<(u32, &'static str)>,
}

impl Round {
    /// A look or a turn of it begins at this time. What somebody takes away has to be seen:
    /// a round does not last.
    pub(super) fn turn(&mut self, now: Instant) {
        match self.began {
            Some(began) if now.duration_since(began) < HOOKS_REST => {}
            _ => {
                self.sound.clear();
                self.began = Some(now);
            }
        }
    }

    /// Whether its program was found there in this round.
    pub(super) fn has(&self, hook: &Hook) -> bool {
        self.sound.contains(&(hook.ifindex, hook.program))
    }

    /// Its program is there.
    pub(super) fn note(&mut self, hook: &Hook) {
        self.sound.insert((hook.ifindex, hook.program));
    }

    /// The next look asks all hooks.
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
        round.turn(start + HOOKS_REST / 20);
        assert!(round.has(&hook(1)) && !round.has(&hook(2)));
        assert!(!round.has(&Hook { program: program::FROM_POD, ..hook(1) }));
    }

    #[test]
    fn a_round_that_was_ended_or_lasts_too_long_begins_anew() {
        let (mut round, start) = (Round::default(), Instant::now());
        round.turn(start);
        round.note(&hook(1));
        round.turn(start + HOOKS_REST);
        assert!(!round.has(&hook(1)));
        round.note(&hook(1));
        round.turn(start + HOOKS_REST * 3 / 2);
        assert!(round.has(&hook(1)));
        round.end();
        round.turn(start + HOOKS_REST * 8 / 5);
        assert!(!round.has(&hook(1)));
    }
}
