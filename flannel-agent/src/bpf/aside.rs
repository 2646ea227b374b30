//! The process that loads and pins the programs for an agent.

use std::io;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::ProgramOptions;

/// The verifier takes a second; on an emulated machine, a minute.
const LOADING: Duration = Duration::from_secs(180);

/// Lets a process of its own load and pin the programs; whether it says that it did. It
/// can do without the kernel's types ([`super::untyped`]), and an agent keeps none of its memory.
pub(super) fn ask_another(options: &ProgramOptions, card: bool) -> bool {
    let mut command = Command::new("/proc/self/exe");
    command
        .arg("load-programs")
        .arg(format!("--pin-dir={}", options.pin_dir.display()))
        .arg(format!("--flow-table-size={}", options.flow_table_size))
        .args(card.then_some("--card"));
    ran(command, LOADING).unwrap_or_else(|error| {
        tracing::debug!(%error, "program loader failed; the agent loads the programs itself");
        false
    })
}

/// Whether a program says that it worked. One that does not end by `limit` is ended.
fn ran(mut command: Command, limit: Duration) -> io::Result<bool> {
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let began = Instant::now();
    // The pipe ends with the program.
    let pipe = child.stdout.take();
    let mut ends: Vec<PollFd<'_>> =
        pipe.iter().map(|pipe| PollFd::new(pipe, PollFlags::IN)).collect();
    loop {
        let left =
            Timespec::try_from(limit.saturating_sub(began.elapsed())).map_err(io::Error::other)?;
        match poll(&mut ends, Some(&left)) {
            Ok(0) => break,
            Ok(_) => return Ok(child.wait()?.success()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    child.kill()?;
    // It may be in the kernel, and not end at once.
    thread::Builder::new().name("reaper".to_owned()).spawn(move || child.wait())?;
    let error = format!("it has not ended within {} s", limit.as_secs());
    Err(io::Error::new(io::ErrorKind::TimedOut, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.arg("-c").arg(script);
        command
    }

    #[test]
    fn a_process_that_hangs_is_ended_and_one_that_ends_is_waited_for() {
        assert!(ran(shell("exit 0"), LOADING).unwrap());
        assert!(!ran(shell("exit 1"), LOADING).unwrap());
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pid");
        let began = Instant::now();
        let script = format!("echo $$ > {}; exec sleep 600", file.display());
        let error = ran(shell(&script), Duration::from_secs(1)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(began.elapsed() < Duration::from_secs(60));
        let pid = std::fs::read_to_string(file).unwrap();
        let is_there = || std::path::Path::new("/proc").join(pid.trim()).exists();
        while is_there() && began.elapsed() < Duration::from_secs(60) {
            thread::sleep(Duration::from_millis(10));
        }
        assert!(!is_there(), "it was ended, and has left no zombie");
    }
}
