//! A task that was to last ends: so does the loop, and says which it was.

use super::*;

impl Bench {
    /// The task whose end has ended the loop.
    async fn ended_with(self) -> &'static str {
        match self.task.await.unwrap() {
            Err(StartError::Task(ended)) => ended.task,
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn updates_that_end_are_no_silence() {
    let bench = Bench::start(&[2]).await;
    bench.source.end_watches();
    bench.settle().await;
    assert_eq!(bench.subnets(), [lease(2).subnet], "peers stay");
    assert_eq!(bench.ended_with().await, "follows the leases");
}

#[tokio::test(start_paused = true)]
async fn updates_that_end_before_the_first_list_remove_nobody() {
    let bench = Bench::begin(CONFIG, &[2], &[], None, Traces::default()).await;
    bench.source.end_watches();
    bench.settle().await;
    assert_eq!(bench.take_applied(), []);
    assert_eq!(bench.ended_with().await, "follows the leases");
}

#[tokio::test(start_paused = true)]
async fn events_that_end_are_no_silence() {
    let Bench { events, task, .. } = Bench::start(&[2]).await;
    drop(events);
    let ended = task.await.unwrap().unwrap_err().to_string();
    assert!(ended.contains("what follows the kernel's events has ended"), "{ended}");
}
