//! The clock of these tests is the time since their start.

use super::*;

const fn ms(number: u64) -> Duration {
    Duration::from_millis(number)
}

/// A loop whose first pass is over.
fn started() -> Schedule<Duration> {
    let mut schedule = Schedule::new(ms(0));
    assert_eq!(schedule.begin_pass(ms(0)), Wake::ALL);
    assert_eq!(schedule.pass_at(), None);
    schedule
}

const NOTHING: Wake = Wake {
    links: false,
    look: false,
    order: false,
    next_hops: false,
    generation: false,
    firewall: false,
};
const LINKS: Wake = Wake { links: true, ..NOTHING };
const ONLY_LOOK: Wake = Wake { look: true, links: false, ..LINKS };
const ONLY_RULES: Wake = Wake { firewall: true, links: false, ..LINKS };
const ONLY_GENERATION: Wake = Wake { generation: true, links: false, ..LINKS };

#[test]
fn events_that_come_together_make_one_pass() {
    let mut schedule = started();
    schedule.wake(LINKS, ms(1000));
    schedule.wake(ONLY_LOOK, ms(1010));
    schedule.wake(Wake::default(), ms(1011));
    assert_eq!(schedule.pass_at(), Some(ms(1020)));
    let both = Wake { look: true, ..LINKS };
    assert_eq!(schedule.begin_pass(ms(1020)), both);
    assert_eq!(schedule.pass_at(), None);
}

#[test]
fn confirmations_alone_wait_longer_than_what_has_to_be_put_right() {
    let mut schedule = started();
    schedule.wake(ONLY_GENERATION, ms(1000));
    assert_eq!(schedule.pass_at(), Some(ms(1050)));
    schedule.wake(LINKS, ms(1001));
    assert_eq!(schedule.pass_at(), Some(ms(1021)));
}

#[test]
fn looks_that_follow_each_other_become_rare() {
    let mut schedule = started();
    schedule.wake(ONLY_LOOK, ms(1000));
    assert_eq!(schedule.begin_pass(ms(1020)), ONLY_LOOK, "the first is alone");
    schedule.wake(ONLY_LOOK, ms(1030));
    assert_eq!(schedule.begin_pass(ms(1050)), ONLY_LOOK, "two make a row");
    for round in 0..3 {
        schedule.wake(Wake { links: true, ..ONLY_LOOK }, ms(1060 + 300 * round));
        assert_eq!(schedule.begin_pass(ms(1080 + 300 * round)), LINKS, "too early");
        assert_eq!(schedule.pass_at(), Some(ms(1350 + 300 * round)));
        assert_eq!(schedule.begin_pass(ms(1350 + 300 * round)), ONLY_LOOK);
        assert_eq!(schedule.pass_at(), None);
    }
}

#[test]
fn a_look_after_a_while_is_made_at_once() {
    let mut schedule = started();
    for at in [1000, 1400, 1800] {
        schedule.wake(ONLY_LOOK, ms(at));
        assert_eq!(schedule.begin_pass(ms(at + 20)), ONLY_LOOK);
    }
}

#[test]
fn the_next_look_waits_longer_where_looks_take_long() {
    for (took, waits) in [(0, 0), (2, 10), (50, 250), (900, 300)] {
        let mut schedule = started();
        schedule.end_pass(Wake::ALL, ms(took), ms(1000));
        schedule.wake(ONLY_LOOK, ms(1000));
        schedule.begin_pass(ms(1000));
        assert_eq!(schedule.pass_at(), (waits > 0).then(|| ms(1000 + waits)), "{took} ms");
    }
    let mut schedule = started();
    schedule.end_pass(LINKS, ms(50), ms(1000));
    schedule.wake(ONLY_LOOK, ms(1000));
    assert_eq!(schedule.begin_pass(ms(1020)), ONLY_LOOK, "it was no look that took long");
}

#[test]
fn rules_are_compared_less_often_than_anything_else() {
    let mut schedule = started();
    schedule.wake(Wake { look: true, ..ONLY_RULES }, ms(400));
    assert_eq!(schedule.begin_pass(ms(420)), ONLY_LOOK);
    assert_eq!(schedule.pass_at(), Some(ms(500)));
    assert_eq!(schedule.begin_pass(ms(500)), ONLY_RULES);
}

#[test]
fn the_first_of_a_row_of_losses_are_put_back_at_once() {
    let mut schedule = started();
    let mut at_once = |at| (0..20).take_while(|_| schedule.may_repair(ms(at))).count();
    assert_eq!(at_once(1000), 8);
    assert_eq!(at_once(1019), 0);
    assert_eq!(at_once(1020), 1);
    assert_eq!(at_once(1080), 3);
    assert_eq!(at_once(9000), 8, "a row has ended");
}

#[test]
fn what_failed_makes_a_pass_of_its_own() {
    let mut schedule = started();
    schedule.retry(Some(ms(1200)));
    schedule.retry(Some(ms(1500)));
    schedule.retry(None);
    assert_eq!(schedule.pass_at(), Some(ms(1200)));
    assert_eq!(schedule.begin_pass(ms(1200)), Wake::default());
    assert_eq!(schedule.pass_at(), None);
}

#[test]
fn the_first_lease_is_taken_in_at_once_and_those_behind_it_together() {
    let mut schedule = started();
    schedule.leases_changed(ms(1000));
    assert_eq!(schedule.leases_at(), Some(ms(1000)));
    schedule.begin_leases();
    schedule.leases_taken(ms(2), ms(1002));
    schedule.leases_changed(ms(1003));
    schedule.leases_changed(ms(1004));
    assert_eq!(schedule.leases_at(), Some(ms(1008)), "three times as long as it took");
    schedule.begin_leases();
    schedule.leases_taken(ms(500), ms(1600));
    schedule.leases_changed(ms(1600));
    assert_eq!(schedule.leases_at(), Some(ms(1620)), "but none waits for long");
    schedule.begin_leases();
    schedule.leases_changed(ms(9000));
    assert_eq!(schedule.leases_at(), Some(ms(9000)));
}

#[test]
fn oddities_are_told_once_a_second() {
    let mut schedule = started();
    schedule.odd(ms(1000));
    schedule.odd(ms(1010));
    assert_eq!(schedule.oddities_at(), Some(ms(1020)));
    schedule.tell_oddities(ms(1020));
    assert_eq!(schedule.oddities_at(), None);
    schedule.odd(ms(1030));
    assert_eq!(schedule.oddities_at(), Some(ms(2020)));
}

#[test]
fn hooks_are_looked_after_again_and_again() {
    let mut schedule = started();
    assert_eq!(schedule.hooks_at(), ms(800));
    schedule.hooks_checked(1, ms(850));
    assert_eq!(schedule.hooks_at(), ms(1650));
}

#[test]
fn maps_are_looked_after_between_two_looks_whatever_their_size() {
    for entries in [0, 1, MAP_STEP, 2 * MAP_STEP, 5000, 65_536] {
        let mut schedule = started();
        schedule.hooks_checked(entries, schedule.hooks_at());
        let mut steps = 1;
        while let Some(next) = schedule.maps_at() {
            assert!(next < schedule.hooks_at());
            schedule.maps_checked(entries, next);
            steps += 1;
        }
        assert!(steps * MAP_STEP >= entries, "{entries} entries, {steps} steps");
        assert!(entries > MAP_STEP || steps == 1, "a small map wakes nobody else");
    }
}

#[test]
fn confirmations_end_at_the_first_time_that_was_asked_for() {
    let mut schedule = started();
    schedule.end_confirmations(Some(ms(1050)));
    schedule.end_confirmations(Some(ms(1020)));
    schedule.end_confirmations(None);
    assert_eq!(schedule.confirmations_at(), Some(ms(1020)));
    schedule.begin_confirmations();
    assert_eq!(schedule.confirmations_at(), None);
}
