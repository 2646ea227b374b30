//! The last events, and how changes become few of them.

use std::collections::{BTreeMap, VecDeque};
use std::time::SystemTime;

use ipnetwork::Ipv4Network;

use crate::health::HealthChange;
use crate::peer::Peer;
use crate::status::{Event, Events, What};

/// Events that are kept.
pub const KEPT: usize = 1_000;

/// Peers that one change tells one by one, and hooks that one event names.
const NAMED: usize = 5;

/// The last [`KEPT`] events.
#[derive(Debug, Default)]
pub struct Ring {
    events: VecDeque<Event>,
    last: u64,
}

impl Ring {
    /// Takes in what happened at this time.
    pub fn note(&mut self, what: What, at: SystemTime) {
        if self.events.len() == KEPT {
            self.events.pop_front();
        }
        self.last += 1;
        self.events.push_back(Event { number: self.last, at, what });
    }

    /// Those with a greater number than this.
    pub fn after(&self, number: u64) -> Events {
        let newer = self.events.iter().filter(|event| event.number > number);
        Events { last: self.last, events: newer.cloned().collect() }
    }
}

/// The event of a change in what is not well. What is not listed is none.
pub fn of_condition(change: &HealthChange) -> Option<What> {
    let (about, reason) = match change {
        HealthChange::Began(about, reason) | HealthChange::Differs(about, reason) => {
            (about, reason.clone())
        }
        HealthChange::Ended(about) => (about, String::new()),
        HealthChange::Unlisted(..) => return None,
    };
    let (subject, what) = (about.subject, about.to_string());
    Some(match change {
        HealthChange::Began(..) => What::ConditionBegan { subject, what, reason },
        HealthChange::Differs(..) => What::ConditionDiffers { subject, what, reason },
        HealthChange::Ended(_) | HealthChange::Unlisted(..) => {
            What::ConditionEnded { subject, what }
        }
    })
}

/// The first few hooks, and how many more there are.
pub fn named(hooks: &[String]) -> (Vec<String>, usize) {
    (hooks.iter().take(NAMED).cloned().collect(), hooks.len().saturating_sub(NAMED))
}

/// Changes of peers that come together. Each of the first few is an event, and all
/// others are one.
#[derive(Debug, Default)]
pub struct PeerChanges {
    named: Vec<What>,
    added: usize,
    changed: usize,
    removed: usize,
}

impl PeerChanges {
    /// What differs between two sets of peers.
    pub fn between(
        before: &BTreeMap<Ipv4Network, Peer>,
        now: &BTreeMap<Ipv4Network, Peer>,
    ) -> Self {
        let mut changes = Self::default();
        for (subnet, peer) in now {
            changes.note(before.get(subnet), Some(peer));
        }
        for (_, peer) in before.iter().filter(|(subnet, _)| !now.contains_key(subnet)) {
            changes.note(Some(peer), None);
        }
        changes
    }

    /// One of them.
    pub fn note(&mut self, before: Option<&Peer>, now: Option<&Peer>) {
        let (what, count) = match (before, now) {
            (None, Some(now)) => {
                let what = What::PeerAdded { subnet: now.subnet, public_ip: now.public_ip };
                (what, &mut self.added)
            }
            (Some(before), None) => {
                let (subnet, public_ip) = (before.subnet, before.public_ip);
                (What::PeerRemoved { subnet, public_ip }, &mut self.removed)
            }
            (Some(before), Some(now)) if before != now => {
                let (subnet, public_ip) = (now.subnet, now.public_ip);
                let what = What::PeerChanged { subnet, public_ip, former: before.public_ip };
                (what, &mut self.changed)
            }
            _ => return,
        };
        if self.named.len() < NAMED {
            self.named.push(what);
        } else {
            *count += 1;
        }
    }

    /// Their events.
    pub fn events(self) -> impl Iterator<Item = What> {
        let Self { named, added, changed, removed } = self;
        let others = (added + changed + removed > 0).then_some(What::PeersChanged {
            added,
            changed,
            removed,
        });
        named.into_iter().chain(others)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::{About, Subject};
    use crate::mac::MacAddr;

    fn peer(number: u8) -> Peer {
        Peer {
            subnet: format!("10.5.{number}.0/24").parse().unwrap(),
            vtep_mac: MacAddr([2, 0, 0, 0, 0, number]),
            public_ip: [192, 0, 2, number].into(),
        }
    }

    fn peers(numbers: std::ops::Range<u8>) -> BTreeMap<Ipv4Network, Peer> {
        numbers.map(peer).map(|peer| (peer.subnet, peer)).collect()
    }

    #[test]
    fn the_last_ones_are_kept_with_their_numbers() {
        let mut ring = Ring::default();
        assert_eq!(ring.after(0), Events::default());
        for number in 0..KEPT + 10 {
            let what = What::Ready { subnet: peer(1).subnet, peers: number };
            ring.note(what, SystemTime::UNIX_EPOCH);
        }
        let all = ring.after(0);
        assert_eq!((all.last, all.events.len()), (KEPT as u64 + 10, KEPT));
        assert_eq!(all.events[0].number, 11);
        let text = serde_json::to_string(&ring.after(KEPT as u64 + 9)).unwrap();
        assert!(text.contains(r#""number":1010,"at":"1970-01-01T00:00:00.000Z""#), "{text}");
        assert!(text.contains(r#""event":"ready","subnet":"10.5.1.0/24","peers":1009"#), "{text}");
        let read: Events = serde_json::from_str(&text).unwrap();
        assert_eq!(read.events[0].what, all.events[KEPT - 1].what);
        assert!(ring.after(all.last).events.is_empty());
    }

    #[test]
    fn many_peers_are_few_events() {
        let few = PeerChanges::between(&peers(1..3), &peers(2..4));
        let few: Vec<What> = few.events().collect();
        let (new, old) = (peer(3), peer(1));
        let added = What::PeerAdded { subnet: new.subnet, public_ip: new.public_ip };
        let removed = What::PeerRemoved { subnet: old.subnet, public_ip: old.public_ip };
        assert_eq!(few, [added, removed]);

        let many: Vec<What> = PeerChanges::between(&peers(0..0), &peers(0..200)).events().collect();
        assert_eq!(many.len(), NAMED + 1);
        let rest = What::PeersChanged { added: 200 - NAMED, changed: 0, removed: 0 };
        assert_eq!(many[NAMED], rest);

        let mut moved = PeerChanges::default();
        moved.note(Some(&peer(1)), Some(&peer(1)));
        moved.note(Some(&peer(1)), Some(&Peer { public_ip: [192, 0, 2, 99].into(), ..peer(1) }));
        let moved: Vec<String> = moved.events().map(|what| what.to_string()).collect();
        assert_eq!(moved, ["peer 10.5.1.0/24 at 192.0.2.99: its lease named 192.0.2.1 before"]);
    }

    #[test]
    fn conditions_begin_and_end() {
        let about = About::from(Subject::Store);
        let began = of_condition(&HealthChange::Began(about.clone(), "away".to_owned())).unwrap();
        assert_eq!(began.to_string(), "not well: store: away");
        assert_eq!(
            of_condition(&HealthChange::Ended(about.clone())).unwrap().to_string(),
            "well again: store"
        );
        assert_eq!(of_condition(&HealthChange::Unlisted(about, String::new())), None);
    }
}
