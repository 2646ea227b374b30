//! Tasks that last as long as the daemon. What one of them knew is gone with it, so its
//! end is the daemon's: a new one starts with what the kernel and the store have.

use std::thread;

use tokio::task::JoinError;

/// A task has ended that was to last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "what {task} has {}, which is a fault of the agent. It ends, so that it is started again; \
     device, routes, rules, programs and lease stay",
    if *.panicked { "panicked (the log says where)" } else { "ended" }
)]
pub struct TaskEnded {
    /// What it did.
    pub task: &'static str,
    /// It panicked.
    pub panicked: bool,
}

impl TaskEnded {
    /// One whose end shows by its channel.
    pub fn of(task: &'static str) -> Self {
        Self { task, panicked: false }
    }
}

/// Tells of the end of a task or thread that owns this, unless that was aborted: then
/// somebody wants its end.
pub struct Watched<F: FnOnce(TaskEnded)> {
    ended: TaskEnded,
    returned: bool,
    tell: Option<F>,
}

impl<F: FnOnce(TaskEnded)> Watched<F> {
    /// For one that is about to begin. `task` completes "what ...".
    pub fn new(task: &'static str, tell: F) -> Self {
        Self { ended: TaskEnded::of(task), returned: false, tell: Some(tell) }
    }

    /// Does this, which should have no end.
    pub async fn work(mut self, work: impl Future<Output = ()>) {
        work.await;
        self.returned = true;
    }
}

impl<F: FnOnce(TaskEnded)> Drop for Watched<F> {
    fn drop(&mut self) {
        self.ended.panicked = thread::panicking();
        if let Some(tell) = self.tell.take().filter(|_| self.ended.panicked || self.returned) {
            tell(self.ended);
        }
    }
}

/// A piece of work has panicked: it has failed, and is tried again as others are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it panicked, which is a fault of the agent; the log says where")]
pub struct Panicked;

/// What a piece of work gave. Never comes if the runtime ends it.
///
/// # Errors
/// It panicked.
pub async fn joined<T>(ended: Result<T, JoinError>) -> Result<T, Panicked> {
    match ended {
        Ok(result) => Ok(result),
        Err(error) if error.is_panic() => Err(Panicked),
        Err(_) => std::future::pending().await,
    }
}
