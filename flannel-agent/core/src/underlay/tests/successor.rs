//! An address that takes the place of another.

use std::time::{Duration, Instant};

use super::*;
use crate::underlay::successor::{Heir, Succession};

/// Looks each moment of `steps` (milliseconds, addresses of the card) and follows.
fn moves(wish: &Wish, steps: &[(u64, &[&str])]) -> Vec<Ipv4Addr> {
    let (mut links, mut current) = two_cards();
    let (start, mut succession) = (Instant::now(), Succession::default());
    let mut seen = Vec::new();
    for (at, addresses) in steps {
        links[1].addresses = addresses.iter().copied().map(address).collect();
        let heir = succession.look(&current, &links, wish, start + Duration::from_millis(*at));
        let away = match heir {
            Heir::Is(heir) => Away::Replaced(heir),
            _ => Away::Wait,
        };
        if let Ok(followed) = follow(&current, &links, wish, route(2), away) {
            if followed.address != current.address {
                succession.moved(current.address);
            }
            current = followed;
        }
        seen.push(current.address);
    }
    seen
}

const OWN: &str = "10.0.2.15/24";
const NEW: &str = "10.0.2.61/24";

#[test]
fn a_new_address_in_the_place_of_the_old_one_is_taken_soon() {
    let (own, new) = (ip("10.0.2.15"), ip("10.0.2.61"));
    let named = Wish { iface: vec!["eth0".to_owned()], ..Wish::default() };
    for wish in [&named, &Wish::default()] {
        let steps: &[(u64, &[&str])] =
            &[(0, &[OWN]), (900, &[]), (910, &[NEW]), (1209, &[NEW]), (1210, &[NEW])];
        assert_eq!(moves(wish, steps), [own, own, own, own, new]);
        // The new one first; and beside a virtual address that is before it in order.
        let virtual_one = "10.0.2.100/24";
        let steps: &[(u64, &[&str])] = &[
            (0, &[OWN, virtual_one]),
            (20_000, &[OWN, virtual_one, NEW]),
            (22_000, &[virtual_one, NEW]),
            (22_300, &[virtual_one, NEW]),
        ];
        assert_eq!(moves(wish, steps), [own, own, own, new]);
        // It was none: the old one is back within the time of a flap.
        let steps: &[(u64, &[&str])] =
            &[(0, &[OWN]), (1, &[NEW]), (301, &[NEW]), (5000, &[NEW, OWN]), (5001, &[NEW, OWN])];
        assert_eq!(moves(wish, steps), [own, own, new, own, own]);
    }
    // The node's own of before is as new as any other, however long it stood there.
    let steps: &[(u64, &[&str])] = &[
        (0, &[OWN]),
        (20_000, &[NEW]),
        (20_300, &[NEW]),
        (60_000, &[OWN]),
        (60_300, &[OWN]),
        (99_000, &[NEW]),
        (99_300, &[NEW]),
    ];
    assert_eq!(moves(&Wish::default(), steps), [own, own, new, new, own, own, new]);
    // An address that a flag names is waited for.
    let address = Wish { iface: vec!["10.0.2.15".to_owned()], ..Wish::default() };
    assert_eq!(moves(&address, &[(0, &[OWN]), (1, &[NEW]), (900, &[NEW])]), [own; 3]);
}

#[test]
fn what_stood_beside_the_address_does_not_take_its_place() {
    let own = ip("10.0.2.15");
    for beside in ["10.0.2.100/24", "10.0.2.100/32", "192.168.0.1/24"] {
        // Since before the start; for long; a virtual one that comes and goes.
        let before: &[(u64, &[&str])] =
            &[(0, &[OWN, beside]), (1000, &[beside]), (3000, &[beside])];
        assert_eq!(moves(&Wish::default(), before), [own; 3]);
        let long: &[(u64, &[&str])] = &[
            (0, &[OWN]),
            (1, &[OWN, beside]),
            (10_001, &[OWN, beside]),
            (10_100, &[OWN]),
            (10_200, &[beside]),
            (12_000, &[beside]),
        ];
        assert_eq!(moves(&Wish::default(), long), [own; 6]);
    }
    // Nor does what is no node's own address.
    for odd in ["10.0.2.100/32", "169.254.7.7/16"] {
        let steps: &[(u64, &[&str])] = &[(0, &[OWN]), (1, &[odd]), (900, &[odd])];
        assert_eq!(moves(&Wish::default(), steps), [own; 3]);
    }
    let pods = Wish { pods: Some(ip("10.0.2.60")..=ip("10.0.2.70")), ..Wish::default() };
    assert_eq!(moves(&pods, &[(0, &[OWN]), (1, &[NEW]), (900, &[NEW])]), [own; 3]);
}
