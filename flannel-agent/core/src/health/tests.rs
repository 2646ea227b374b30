use std::collections::BTreeSet;
use std::time::Duration;

use proptest::prelude::*;

use super::*;

fn subnet(third: u8) -> Part {
    Part::Subnet(Ipv4Network::new(Ipv4Addr::new(10, 5, third, 0), 24).unwrap())
}

fn peer(third: u8) -> About {
    let Part::Subnet(subnet) = subnet(third) else { unreachable!("a subnet") };
    About::peer(subnet)
}

fn texts(health: &Health) -> Vec<String> {
    health.lines(Instant::now()).into_iter().map(|line| line.what).collect()
}

#[test]
fn reasons_stay_on_their_line() {
    let (mut health, now) = (Health::default(), Instant::now());
    let hostile = || format!("no\nMAINPID=1{}", "x".repeat(1 << 20));
    for _ in 0..2 {
        health.report(Subject::Store, Found::not_well(hostile()), now);
    }
    let lines = health.lines(now);
    assert!(lines[0].reason.starts_with("no\\nMAINPID=1xxx"), "{lines:?}");
    assert!(lines[0].reason.len() < text::REASON + 10);
    assert_eq!(health.report(Subject::Store, Found::not_well(hostile()), now), [], "said once");
}

#[test]
fn complaints_come_change_and_go() {
    let (mut health, now) = (Health::default(), Instant::now());
    let refused = || "connection refused".to_owned();
    let began = health.report(Subject::Store, Found::not_well(refused()), now);
    assert_eq!(began, [HealthChange::Began(Subject::Store.into(), refused())]);
    assert_eq!(health.report(Subject::Store, Some(refused()), now), [], "said once");
    let differs = health.report(Subject::Store, Err::<(), _>("timeout"), now);
    assert_eq!(differs, [HealthChange::Differs(Subject::Store.into(), "timeout".to_owned())]);
    let later = now + Duration::from_secs(7);
    let line = Line {
        subject: Subject::Store,
        what: "store".into(),
        reason: "timeout".into(),
        since_seconds: 7,
    };
    assert_eq!(health.lines(later), [line]);
    assert_eq!(health.reason(Subject::Store), Some("timeout"));
    let ended = health.report(Subject::Store, Ok::<_, String>(()), later);
    assert_eq!(ended, [HealthChange::Ended(Subject::Store.into())]);
    assert_eq!(health.report(Subject::Store, Found::well(), later), []);
    assert_eq!(health.lines(later), []);
}

#[test]
fn a_report_tells_of_all_parts() {
    let (mut health, now) = (Health::default(), Instant::now());
    let failed = |parts: &[u8]| -> Found {
        parts.iter().map(|part| (subnet(*part), "no such device".to_owned())).collect()
    };
    health.report(Subject::Mtu, Found::not_well("too small"), now);
    health.report(Subject::Peers, Found::not_well("too many"), now);
    health.report(Subject::Peer, failed(&[2, 3]), now);
    assert_eq!(texts(&health), ["MTU", "peer 10.5.2.0/24", "peer 10.5.3.0/24", "peers"]);
    let changes = health.report(Subject::Peer, failed(&[3, 4]), now);
    assert_eq!(
        changes,
        [HealthChange::Ended(peer(2)), HealthChange::Began(peer(4), "no such device".to_owned())]
    );
    let first = health.first_of(&[Subject::Peer, Subject::Device]);
    assert_eq!(first.as_deref(), Some("peer 10.5.3.0/24: no such device"));
    assert_eq!(health.first_of(&[Subject::Device]), None);
    health.report(Subject::Peer, Found::well(), now);
    assert_eq!(texts(&health), ["MTU", "peers"]);
}

#[test]
fn the_list_is_bounded() {
    let (mut health, now) = (Health::default(), Instant::now());
    let many = (0..LIMIT + 10).map(|number| (Part::Name(number.to_string()), "x".to_owned()));
    let changes = health.report(Subject::Hook, many.collect::<Found>(), now);
    let unlisted = changes.iter().filter(|change| matches!(change, HealthChange::Unlisted(..)));
    assert_eq!((health.lines(now).len(), unlisted.count()), (LIMIT, 10));
}

#[test]
fn each_subject_has_a_text_of_its_own() {
    let texts: BTreeSet<&str> = Subject::ALL.iter().map(|subject| subject.text()).collect();
    assert_eq!(texts.len(), Subject::ALL.len());
}

proptest! {
    /// What stands about a subject is what its last report said, whatever was
    /// reported before and about whatever else.
    #[test]
    fn nothing_is_left_standing(
        reports in proptest::collection::vec(
            (0..Subject::ALL.len(), proptest::collection::btree_set(0..4_u8, 0..4)),
            0..60,
        )
    ) {
        let (mut health, now) = (Health::default(), Instant::now());
        let mut last = BTreeMap::new();
        for (subject, parts) in reports {
            let subject = Subject::ALL[subject];
            let found = parts.iter().map(|part| (subnet(*part), part.to_string()));
            health.report(subject, found.collect::<Found>(), now);
            last.insert(subject, parts);
        }
        let expected: BTreeSet<String> = last
            .iter()
            .flat_map(|(subject, parts)| {
                parts.iter().map(|part| About { subject: *subject, part: subnet(*part) }.to_string())
            })
            .collect();
        let stands: BTreeSet<String> = texts(&health).into_iter().collect();
        prop_assert_eq!(stands, expected);
        for subject in last.keys() {
            health.report(*subject, Found::well(), now);
        }
        prop_assert_eq!(health.lines(now), []);
    }
}
