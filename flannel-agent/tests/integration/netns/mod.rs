//! Network namespaces for tests: each belongs to a thread and goes with it.

pub(crate) mod vxlan;

use std::future::Future;
use std::process::Command;
use std::sync::mpsc;
use std::thread::JoinHandle;

use nix::sched::{CloneFlags, unshare};

fn enter_new() {
    unshare(CloneFlags::CLONE_NEWNET).expect("unshare(CLONE_NEWNET): these tests need root");
    run("ip link set lo up");
}

/// Runs the future in a new network namespace, on a thread and a
/// single-threaded runtime of its own.
pub(crate) fn in_netns<F>(future: F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let thread = std::thread::spawn(|| {
        enter_new();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(future);
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

type Job = Box<dyn FnOnce() + Send>;

/// Another network namespace, kept by a thread that runs jobs in it.
pub(crate) struct Namespace {
    id: i32,
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Namespace {
    pub(crate) fn new() -> Self {
        let (jobs, queue) = mpsc::channel::<Job>();
        let (started, id) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            enter_new();
            started.send(nix::unistd::gettid().as_raw()).unwrap();
            queue.into_iter().for_each(|job| job());
        });
        Self { id: id.recv().unwrap(), jobs: Some(jobs), thread: Some(thread) }
    }

    /// What `ip link set ... netns` takes.
    pub(crate) fn id(&self) -> i32 {
        self.id
    }

    /// Runs a job in the namespace and waits for its result.
    pub(crate) fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, result) = mpsc::channel();
        let job: Job = Box::new(move || {
            let _ = done.send(job());
        });
        self.jobs.as_ref().unwrap().send(job).expect("the namespace's thread is gone");
        result.recv().expect("the job panicked")
    }

    pub(crate) fn sh(&self, line: &'static str) -> String {
        self.run(move || run(line))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Runs a command line (words between blanks) and gives its output.
pub(crate) fn run(line: &str) -> String {
    try_run(line).unwrap_or_else(|error| panic!("{line}: {error}"))
}

pub(crate) fn try_run(line: &str) -> Result<String, String> {
    let mut words = line.split_whitespace();
    let output = Command::new(words.next().unwrap())
        .args(words)
        .output()
        .map_err(|error| error.to_string())?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

pub(crate) fn json(line: &str) -> serde_json::Value {
    serde_json::from_str(&run(line)).unwrap_or_else(|error| panic!("{line}: {error}"))
}
