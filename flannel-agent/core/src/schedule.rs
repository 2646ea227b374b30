//! What the loop does next, and when. The caller tells the time, so that a clock of any
//! kind will do.

#[cfg(test)]
mod tests;

use std::ops::Add;
use std::time::Duration;

/// Events that come together are answered together.
const DEBOUNCE: Duration = Duration::from_millis(20);
/// Confirmations are ended at most this often, if there is nothing else to do.
pub const GENERATION: Duration = Duration::from_millis(50);
/// Looks at everything follow each other in this time where others change things all the
/// time. One that comes alone is made at once.
const LOOK: Duration = Duration::from_millis(300);
/// Looks take at most one part in so many of the time: what others do may not end, and a
/// look at thousands of peers delays leases.
const LOOK_SHARE: u32 = 6;
/// Other people's rule sets may change all the time: ours are compared at most this
/// often.
const RULES: Duration = Duration::from_millis(500);
/// A row of leases is taken in for at most this part of the time, but none waits for
/// longer than [`DEBOUNCE`].
const SHARE: u32 = 3;
/// So many losses in a row are put back alone, at once.
const REPAIRS: u32 = 8;
/// What is odd about the leases is told at most this often.
const ODDITIES: Duration = Duration::from_secs(1);
/// Hooks are looked after this often: no event tells of a detached program. What somebody
/// takes away is back within a second.
pub const HOOKS: Duration = Duration::from_millis(800);
/// What was found right at a hook or a device is not asked for again so soon, however many
/// passes there are: each question waits for the kernel's lock of all devices.
pub const HOOKS_REST: Duration = Duration::from_millis(400);
/// Entries of each map that one step of looking after them reads: more would delay a
/// lease. All are read within [`HOOKS`], however many there are.
pub const MAP_STEP: usize = 512;

/// What a pass has to look at anew.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wake {
    /// The device and all that hangs on it.
    pub look: bool,
    /// With the look: which of several routes to one destination comes first.
    pub order: bool,
    /// Links: underlay and veths.
    pub links: bool,
    /// The ways to the peers' PublicIPs.
    pub next_hops: bool,
    /// The kernel's decisions may have changed: end all confirmations.
    pub generation: bool,
    /// The firewall rules.
    pub firewall: bool,
}

impl Wake {
    /// Look at everything; confirmations stay.
    pub const ALL: Self = Self {
        look: true,
        order: true,
        links: true,
        next_hops: true,
        generation: false,
        firewall: true,
    };

    /// Both.
    pub fn merge(&mut self, other: Self) {
        self.look |= other.look;
        self.order |= other.order;
        self.links |= other.links;
        self.next_hops |= other.next_hops;
        self.generation |= other.generation;
        self.firewall |= other.firewall;
    }

    /// Whether there is nothing to look at.
    pub fn is_nothing(self) -> bool {
        self == Self::default()
    }
}

/// When everything is due that the loop does. `T` is a point in time.
#[derive(Clone, Debug)]
pub struct Schedule<T> {
    /// What the next pass looks at.
    wake: Wake,
    pass: Option<T>,
    /// Something failed, and is tried again.
    retry: Option<T>,
    /// The last look, and until when the next one waits.
    looked: Option<T>,
    look_rests: Option<T>,
    /// The same of rules.
    rules_rest: Option<T>,
    /// When all that was put back alone would be, at one in [`DEBOUNCE`].
    repairs: Option<T>,
    leases: Option<T>,
    /// Until when the next lease waits for company.
    leases_rest: Option<T>,
    generation: Option<T>,
    oddities: Option<T>,
    oddities_told: Option<T>,
    hooks: T,
    /// The next step of looking after maps, where there are some between two looks after
    /// the hooks.
    maps: Option<T>,
}

impl<T: Copy + Ord + Add<Duration, Output = T>> Schedule<T> {
    /// Everything is to be looked at by the first pass, which nobody waits for.
    pub fn new(now: T) -> Self {
        Self {
            wake: Wake::ALL,
            pass: None,
            retry: None,
            looked: None,
            look_rests: None,
            rules_rest: None,
            repairs: None,
            leases: None,
            leases_rest: None,
            generation: None,
            oddities: None,
            oddities_told: None,
            hooks: now + HOOKS,
            maps: None,
        }
    }

    /// The next pass looks at this, too.
    pub fn wake(&mut self, wake: Wake, now: T) {
        if wake.is_nothing() {
            return;
        }
        let only_generation = Wake { generation: true, ..Wake::default() };
        let pause = if wake == only_generation { GENERATION } else { DEBOUNCE };
        self.wake.merge(wake);
        self.pass = earliest(self.pass, Some(now + pause));
    }

    /// Whether something that was taken away may be put back alone: the first eight of
    /// a row, and one in 20 ms then. What others do may not end; a look finds the rest.
    pub fn may_repair(&mut self, now: T) -> bool {
        let paid = self.repairs.map_or(now, |paid| paid.max(now));
        if paid > now + DEBOUNCE * (REPAIRS - 1) {
            return false;
        }
        self.repairs = Some(paid + DEBOUNCE);
        true
    }

    /// When the next pass is due.
    pub fn pass_at(&self) -> Option<T> {
        earliest(self.pass, self.retry)
    }

    /// A pass begins: what it looks at. What was looked at a moment ago is left for a
    /// later pass.
    pub fn begin_pass(&mut self, now: T) -> Wake {
        let wake = std::mem::take(&mut self.wake);
        let looks = wake.look || wake.next_hops;
        let look_at = if looks { self.look_rests.filter(|rests| *rests > now) } else { None };
        let rules_at = if wake.firewall { not_yet(&mut self.rules_rest, RULES, now) } else { None };
        self.wake = Wake {
            look: wake.look && look_at.is_some(),
            order: wake.order && look_at.is_some(),
            next_hops: wake.next_hops && look_at.is_some(),
            firewall: rules_at.is_some(),
            ..Wake::default()
        };
        if looks && look_at.is_none() {
            self.begin_look(now);
        }
        self.pass = earliest(look_at, rules_at);
        self.retry = None;
        Wake {
            look: wake.look && look_at.is_none(),
            order: wake.order && look_at.is_none(),
            next_hops: wake.next_hops && look_at.is_none(),
            firewall: wake.firewall && rules_at.is_none(),
            ..wake
        }
    }

    fn begin_look(&mut self, now: T) {
        let row = self.looked.is_some_and(|last| now <= last + LOOK + DEBOUNCE);
        self.look_rests = row.then(|| now + LOOK);
        self.looked = Some(now);
    }

    /// A pass that looked at this has ended, and took this long.
    pub fn end_pass(&mut self, wake: Wake, took: Duration, now: T) {
        if wake.look || wake.next_hops {
            let rests = Some(now + (took * (LOOK_SHARE - 1)).min(LOOK));
            self.look_rests = self.look_rests.max(rests);
        }
    }

    /// Something has to be tried again.
    pub fn retry(&mut self, at: Option<T>) {
        self.retry = earliest(self.retry, at);
    }

    /// Peers' leases have changed: the first of a row at once, the others together.
    pub fn leases_changed(&mut self, now: T) {
        let due = self.leases_rest.map_or(now, |free| now.max(free));
        self.leases.get_or_insert(due);
    }

    /// When changed leases are taken in.
    pub fn leases_at(&self) -> Option<T> {
        self.leases
    }

    /// Changed leases are being taken in, alone or by a pass.
    pub fn begin_leases(&mut self) {
        self.leases = None;
    }

    /// They have been taken in, and it took this long.
    pub fn leases_taken(&mut self, took: Duration, now: T) {
        self.leases_rest = Some(now + (took * SHARE).min(DEBOUNCE));
    }

    /// Confirmations have to be ended then.
    pub fn end_confirmations(&mut self, at: Option<T>) {
        self.generation = earliest(self.generation, at);
    }

    /// When confirmations are to be ended.
    pub fn confirmations_at(&self) -> Option<T> {
        self.generation
    }

    /// Confirmations are being ended.
    pub fn begin_confirmations(&mut self) {
        self.generation = None;
    }

    /// Something else may be odd about the leases.
    pub fn odd(&mut self, now: T) {
        let soon = now + DEBOUNCE;
        let due = self.oddities_told.map_or(soon, |told| soon.max(told + ODDITIES));
        self.oddities.get_or_insert(due);
    }

    /// When to tell what is odd.
    pub fn oddities_at(&self) -> Option<T> {
        self.oddities
    }

    /// It is being told.
    pub fn tell_oddities(&mut self, now: T) {
        self.oddities = None;
        self.oddities_told = Some(now);
    }

    /// When to look after the hooks.
    pub fn hooks_at(&self) -> T {
        self.hooks
    }

    /// The hooks have been looked after, and a step of maps that have so many entries.
    pub fn hooks_checked(&mut self, entries: usize, now: T) {
        self.hooks = now + HOOKS;
        self.maps_checked(entries, now);
    }

    /// When to look after some of the maps' entries.
    pub fn maps_at(&self) -> Option<T> {
        self.maps
    }

    /// A step of maps that have so many entries has been looked after.
    pub fn maps_checked(&mut self, entries: usize, now: T) {
        let steps = u32::try_from(entries.div_ceil(MAP_STEP)).unwrap_or(u32::MAX);
        let next = now + HOOKS / steps.max(1);
        self.maps = Some(next).filter(|next| *next < self.hooks);
    }
}

/// When it may be done again, if that is later than now; else notes that it is done now.
fn not_yet<T>(rests: &mut Option<T>, period: Duration, now: T) -> Option<T>
where
    T: Copy + Ord + Add<Duration, Output = T>,
{
    let free = rests.filter(|free| *free > now);
    if free.is_none() {
        *rests = Some(now + period);
    }
    free
}

/// The first of both.
pub fn earliest<T: Ord>(a: Option<T>, b: Option<T>) -> Option<T> {
    a.into_iter().chain(b).min()
}
