//! Programs that the harness runs.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::wait;

/// Runs a command to its end and returns its standard output.
///
/// # Panics
/// It cannot be started or fails; its output is in the message.
#[track_caller]
pub fn run(command: &mut Command) -> String {
    let output = output(command);
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs a command to its end, whatever it returns.
///
/// # Panics
/// It cannot be started.
#[track_caller]
pub fn output(command: &mut Command) -> Output {
    command
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("start {command:?}: {error}"))
}

/// A program of this workspace: beside the running one.
///
/// # Panics
/// It has not been built.
pub fn own_program(name: &str) -> PathBuf {
    let current = std::env::current_exe().expect("path of the running program");
    let found = current.ancestors().skip(1).take(2).map(|dir| dir.join(name)).find(|p| p.exists());
    found.unwrap_or_else(|| panic!("{name} is not beside {}; build it", current.display()))
}

/// Kills every process that this one started: for an exit without `Drop`.
pub fn end_children() {
    let own = std::process::id().to_string();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
        // "pid (name) state parent ...", and the name may hold anything.
        let parent = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1));
        let pid = entry.file_name().to_string_lossy().parse();
        if let (true, Ok(pid)) = (parent == Some(own.as_str()), pid) {
            // It may have ended just now.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

/// A process in the background, ended by `Drop`.
///
/// It has to be started by a thread that outlives it: the kernel ends it
/// together with that thread (PR_SET_PDEATHSIG), so that nothing survives a
/// killed run.
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    /// Bytes that others had written into the log.
    before: u64,
}

impl Process {
    /// Starts a command (of [`crate::netns::Netns::command`], so that it dies
    /// with us) with all its output in the file `log`.
    ///
    /// # Panics
    /// It cannot be started.
    pub fn start(name: &str, command: &mut Command, log: &Path) -> Self {
        let file = File::options().create(true).append(true).open(log);
        let file = file.unwrap_or_else(|error| panic!("{}: {error}", log.display()));
        let before = file.metadata().expect("a file's length").len();
        let clone = file.try_clone().expect("duplicate a file");
        let child = command
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(clone)
            .spawn()
            .unwrap_or_else(|error| panic!("start {command:?}: {error}"));
        Self { name: name.to_owned(), child, log: log.to_path_buf(), before }
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal.
    ///
    /// # Panics
    /// The process has gone.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).expect("a process id"));
        kill(pid, signal).unwrap_or_else(|error| panic!("{signal} to {}: {error}", self.name));
    }

    /// Its exit status, if it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("wait for a child")
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// It does not end within `limit`.
    #[track_caller]
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        let what = format!("end of {}", self.name);
        wait::until(&what, limit, || self.child.try_wait().expect("wait for a child")).0
    }

    /// SIGKILL, and waits for the end.
    pub fn kill(&mut self) {
        // Both fail only if it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// What it wrote so far; not what one before it wrote into the same file.
    pub fn log(&self) -> String {
        let mut bytes = Vec::new();
        let read = File::open(&self.log).and_then(|mut file| {
            file.seek(SeekFrom::Start(self.before))?;
            file.read_to_end(&mut bytes)
        });
        read.map_or(String::new(), |_| String::from_utf8_lossy(&bytes).into_owned())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<_> = log.lines().collect();
            // etcd talks a lot, and is seldom at fault.
            let shown = if self.name == "etcd" { 4 } else { 60 };
            let tail = &lines[lines.len().saturating_sub(shown)..];
            eprintln!("---- end of the log of {}:\n{}\n----", self.name, tail.join("\n"));
        }
    }
}
