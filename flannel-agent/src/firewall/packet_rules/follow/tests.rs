//! How often rules are read, in paused time.

use std::sync::Mutex;

use super::*;

/// What a fake source was asked, and what it answers.
#[derive(Debug, Default)]
struct State {
    /// When it was looked at, and whether thoroughly.
    looks: Vec<(Instant, bool)>,
    takes: Duration,
    fails: Option<String>,
    answer: Option<Findings>,
    hint: bool,
}

#[derive(Clone, Debug, Default)]
struct Fake(Arc<Mutex<State>>);

impl Fake {
    fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.0.lock().unwrap())
    }

    fn looks(&self) -> usize {
        self.with(|state| state.looks.len())
    }
}

impl Source for Fake {
    fn hints(&mut self) -> bool {
        self.with(|state| state.hint)
    }

    async fn look(&mut self, thoroughly: bool) -> Result<Option<Findings>, String> {
        let takes = self.with(|state| {
            state.looks.push((Instant::now(), thoroughly));
            state.takes
        });
        tokio::time::sleep(takes).await;
        self.with(|state| {
            state.hint = false;
            match &state.fails {
                Some(reason) => Err(reason.clone()),
                None => Ok(state.answer.clone()),
            }
        })
    }
}

fn notrack() -> Findings {
    Findings { notrack: true, ..Findings::default() }
}

const SLOW: Duration = Duration::from_secs(60);
const MILLISECOND: Duration = Duration::from_millis(1);

async fn started(takes: Duration) -> (Fake, RulesFollower) {
    let fake = Fake::default();
    fake.with(|state| {
        state.takes = takes;
        state.answer = Some(Findings::default());
    });
    let mut follower = RulesFollower::of(fake.clone(), SLOW);
    // The first looks are over.
    tokio::time::sleep(Duration::from_secs(5)).await;
    follower.reading();
    (fake, follower)
}

#[tokio::test(start_paused = true)]
async fn the_first_look_is_at_once_and_nothing_is_known_before() {
    let fake = Fake::default();
    fake.with(|state| {
        state.answer = Some(Findings::default());
        state.takes = 20 * MILLISECOND;
    });
    let mut follower = RulesFollower::of(fake.clone(), SLOW);
    assert_eq!(follower.reading(), Reading::default());
    let began = Instant::now();
    follower.changed().await.unwrap();
    assert_eq!(began.elapsed(), 20 * MILLISECOND);
    assert_eq!(follower.reading().findings.as_deref(), Some(&Findings::default()));
}

#[tokio::test(start_paused = true)]
async fn a_burst_is_one_look_at_once_and_a_last_one() {
    let (fake, mut follower) = started(Duration::ZERO).await;
    let before = fake.looks();
    let began = Instant::now();
    follower.notice();
    tokio::time::sleep(MILLISECOND).await;
    assert_eq!(fake.looks(), before + 1, "at once");
    for _ in 0..300 {
        follower.notice();
        tokio::time::sleep(MILLISECOND).await;
    }
    fake.with(|state| state.answer = Some(notrack()));
    follower.changed().await.unwrap();
    assert!(began.elapsed() >= PAUSE && began.elapsed() < PAUSE + 10 * MILLISECOND);
    assert_eq!(fake.looks(), before + 2);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(fake.looks(), before + 2, "no more without a notice");
    assert!(follower.reading().findings.unwrap().notrack);
}

#[tokio::test(start_paused = true)]
async fn slow_looks_are_rare() {
    let (fake, follower) = started(Duration::from_millis(200)).await;
    let before = fake.looks();
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(42) {
        follower.notice();
        tokio::time::sleep(10 * MILLISECOND).await;
    }
    // 200 ms each, and 20 times that between.
    assert_eq!(fake.looks() - before, 10);
}

#[tokio::test(start_paused = true)]
async fn without_a_notice_it_looks_thoroughly_now_and_then() {
    let (fake, follower) = started(Duration::ZERO).await;
    let before = fake.looks();
    tokio::time::sleep(3 * SLOW).await;
    assert_eq!(fake.looks(), before + 3);
    assert!(fake.with(|state| state.looks[before..].iter().all(|(_, thoroughly)| *thoroughly)));
    // No other old table, and then another one.
    follower.glance();
    tokio::time::sleep(PAUSE).await;
    assert_eq!(fake.looks(), before + 3);
    fake.with(|state| state.hint = true);
    follower.glance();
    tokio::time::sleep(PAUSE).await;
    assert_eq!(fake.looks(), before + 4);
}

#[tokio::test(start_paused = true)]
async fn what_was_known_stays_when_a_look_fails() {
    let (fake, mut follower) = started(Duration::ZERO).await;
    fake.with(|state| state.fails = Some("no nft".to_owned()));
    follower.notice();
    follower.changed().await.unwrap();
    let reading = follower.reading();
    assert_eq!(reading.failed.as_deref(), Some("no nft"));
    assert_eq!(reading.findings.as_deref(), Some(&Findings::default()));
    // It is tried again, less and less often.
    let before = fake.looks();
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert!((3..=8).contains(&(fake.looks() - before)), "{}", fake.looks() - before);
    fake.with(|state| state.fails = None);
    follower.changed().await.unwrap();
    assert_eq!(follower.reading().failed, None);
}

#[tokio::test(start_paused = true)]
async fn a_look_that_hangs_has_failed() {
    let fake = Fake::default();
    fake.with(|state| state.takes = Duration::from_secs(3600));
    let mut follower = RulesFollower::of(fake.clone(), SLOW);
    let began = Instant::now();
    follower.changed().await.unwrap();
    assert_eq!(began.elapsed(), LIMIT);
    let reading = follower.reading();
    assert!(reading.failed.unwrap().contains("not read within 60 s"));
    assert_eq!(reading.findings, None);
    // The next look follows soon, and is heard of.
    fake.with(|state| {
        state.takes = Duration::ZERO;
        state.answer = Some(notrack());
    });
    follower.changed().await.unwrap();
    assert!(began.elapsed() <= LIMIT + 2 * FIRST, "{:?}", began.elapsed());
    assert!(follower.reading().failed.is_none());
}

#[tokio::test(start_paused = true)]
async fn after_a_look_that_took_long_new_rules_wait_a_minute_at_most() {
    let (fake, mut follower) = started(LIMIT / 2).await;
    follower.changed().await.unwrap();
    fake.with(|state| {
        state.takes = Duration::ZERO;
        state.answer = Some(notrack());
    });
    let began = Instant::now();
    follower.notice();
    follower.changed().await.unwrap();
    assert!(began.elapsed() <= LAST, "{:?}", began.elapsed());
    assert!(follower.reading().findings.unwrap().notrack);
}

#[tokio::test(start_paused = true)]
async fn the_task_ends_with_its_handle() {
    let (fake, follower) = started(Duration::ZERO).await;
    drop(follower);
    let before = fake.looks();
    tokio::time::sleep(5 * SLOW).await;
    assert_eq!(fake.looks(), before);
    assert_eq!(Arc::strong_count(&fake.0), 1);
}
