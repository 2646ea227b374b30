//! The thread that answers others: status, health, metrics, other nodes' pings. The loop
//! has a thread for itself, and a runtime of one thread: what it waits for wakes it without
//! a detour. None who asks has to wait while it is busy with thousands of peers.

use std::io;
use std::thread;

use tokio::runtime::{Builder, EnterGuard, Handle};
use tokio::sync::oneshot;

use crate::status::Shared;

/// A runtime on a thread of its own, until it is dropped.
pub(super) struct Answering {
    runtime: Handle,
    _stop: oneshot::Sender<()>,
}

impl Answering {
    /// # Errors
    /// No thread, or no runtime, can be had.
    pub(super) fn start(shared: &Shared) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let watched = shared.watched("answers others");
        let (stop, stopped) = oneshot::channel::<()>();
        thread::Builder::new().name("answering".to_owned()).spawn(move || {
            let _watched = watched;
            // An error says that the sender was dropped, which is the sign.
            let _ = runtime.block_on(stopped);
            runtime.shutdown_background();
        })?;
        Ok(Self { runtime: handle, _stop: stop })
    }

    /// What is spawned while this is held runs there.
    pub(super) fn enter(&self) -> EnterGuard<'_> {
        self.runtime.enter()
    }

    /// Runs this there, and waits for its end.
    pub(super) async fn run<F>(&self, task: F) -> F::Output
    where
        F: Future<Output: Send> + Send + 'static,
    {
        let ended = self.runtime.spawn(task).await;
        ended.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn what_runs_there_goes_on_while_we_are_busy_and_ends_with_it() {
        let answering = Answering::start(&Shared::default()).unwrap();
        let here = thread::current().id();
        assert_ne!(answering.run(async { thread::current().id() }).await, here);
        let (tell, told) = std::sync::mpsc::channel();
        {
            let _there = answering.enter();
            tokio::spawn(async move {
                loop {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    if tell.send(()).is_err() {
                        return;
                    }
                }
            });
        }
        // Nobody awaits anything: this thread is busy.
        for _ in 0..3 {
            told.recv_timeout(Duration::from_secs(10)).unwrap();
        }
        drop(answering);
        while told.recv_timeout(Duration::from_secs(10)).is_ok() {}
        assert_eq!(told.recv(), Err(std::sync::mpsc::RecvError), "its tasks are gone");
    }
}
