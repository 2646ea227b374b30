//! How far a case is, step by step: printed, and written where `cargo xtask test --faults`
//! follows it.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;
use std::time::Instant;

/// Names the file that is followed.
const PROGRESS: &str = "FLANNEL_FAULTS_PROGRESS";

/// The steps of a case.
pub(super) struct Steps {
    case: String,
    all: usize,
    done: usize,
    began: Instant,
}

impl Steps {
    pub(super) fn new(all: usize) -> Self {
        // nextest's word; the thread's name is without it that of the case, too.
        let named = std::env::var("NEXTEST_TEST_NAME").ok();
        let named = named.or_else(|| std::thread::current().name().map(str::to_owned));
        let case = named.unwrap_or_default().trim_start_matches("faults::").to_owned();
        Self { case, all, done: 0, began: Instant::now() }
    }

    /// Tells how a step ended, and how it did `before` if this was its second try.
    pub(super) fn tell(
        &mut self,
        name: &str,
        ended: &Result<String, String>,
        before: Option<&str>,
    ) {
        let seconds = self.began.elapsed().as_secs_f32();
        self.began = Instant::now();
        self.done += 1;
        let (word, said) = match (ended, before) {
            (Ok(said), None) => ("passed", said.clone()),
            (Ok(said), Some(before)) => ("unsteady", format!("{said}; at first: {before}")),
            (Err(why), _) => ("failed", why.clone()),
        };
        let (case, done, all) = (&self.case, self.done, self.all);
        // One line, whatever it says.
        let said = said.replace('\n', " ");
        let line = format!("{word} {case} {done}/{all} {name}: {said} ({seconds:.1} s)\n");
        print!("{line}");
        if let Some(path) = std::env::var_os(PROGRESS) {
            follow(Path::new(&path), &line);
        }
    }
}

/// Adds a line by one write: other cases write there, too.
fn follow(path: &Path, line: &str) {
    let mut file = OpenOptions::new().append(true).create(true).open(path).expect("the progress");
    file.write_all(line.as_bytes()).expect("write the progress");
}
