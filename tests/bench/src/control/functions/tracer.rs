//! Breakpoints at the beginning of all functions of a process. Each is there until it
//! is reached once, so that the process runs nearly as fast as without.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::symbols::Symbols;

/// `int3` of x86.
const BREAKPOINT: u8 = 0xcc;
/// Between two looks at what has stopped.
const PAUSE: Duration = Duration::from_micros(50);

/// A process runs another program.
const EXEC: i32 = ptrace::Event::PTRACE_EVENT_EXEC as i32;

/// A process that is followed. It ends when this goes.
pub(super) struct Tracer {
    pid: Pid,
    /// Each function's first byte and name, by its address in the process.
    functions: BTreeMap<u64, (u8, String)>,
    called: BTreeSet<u64>,
}

impl Tracer {
    /// Stops all threads, and puts a breakpoint at each function.
    ///
    /// # Errors
    /// The process may not be followed.
    pub(super) fn attach(pid: i32, symbols: &Symbols) -> Result<Self> {
        let mut tracer =
            Self { pid: Pid::from_raw(pid), functions: BTreeMap::new(), called: BTreeSet::new() };
        let threads = tracer.stop_all()?;
        tracer.plant(symbols)?;
        for thread in threads {
            ptrace::cont(thread, None).context("continue a thread")?;
        }
        Ok(tracer)
    }

    fn stop_all(&self) -> Result<BTreeSet<Pid>> {
        let options = Options::PTRACE_O_TRACECLONE
            | Options::PTRACE_O_TRACEFORK
            | Options::PTRACE_O_TRACEVFORK
            | Options::PTRACE_O_TRACEEXEC
            | Options::PTRACE_O_EXITKILL;
        let mut stopped = BTreeSet::new();
        // A thread that is not stopped yet may start another one.
        loop {
            let all = fs::read_dir(format!("/proc/{}/task", self.pid))?
                .map(|entry| Ok(Pid::from_raw(entry?.file_name().to_string_lossy().parse()?)))
                .collect::<Result<BTreeSet<_>>>()?;
            let new: Vec<Pid> = all.difference(&stopped).copied().collect();
            if new.is_empty() {
                return Ok(stopped);
            }
            for thread in new {
                // One that was started by a thread that is followed is so already.
                let _ = ptrace::seize(thread, options);
                ptrace::interrupt(thread).context("stop a thread")?;
                waitpid(thread, Some(WaitPidFlag::__WALL)).context("wait for a thread")?;
                stopped.insert(thread);
            }
        }
    }

    fn plant(&mut self, symbols: &Symbols) -> Result<()> {
        let maps = fs::read_to_string(format!("/proc/{}/maps", self.pid))?;
        let base = maps.split('-').next().context("the process's first mapping")?;
        let base = u64::from_str_radix(base, 16).context("the process's first mapping")?;
        let memory = memory(self.pid)?;
        let (first, last) = symbols.range().context("functions")?;
        let mut text = vec![0; usize::try_from(last - first + 1)?];
        memory.read_exact_at(&mut text, base + first).context("read the program")?;
        for (address, name) in symbols.iter() {
            let at = usize::try_from(address - first)?;
            let byte = std::mem::replace(&mut text[at], BREAKPOINT);
            self.functions.insert(base + address, (byte, name.to_owned()));
        }
        // At once: each write for itself would take longer than a start.
        memory.write_all_at(&text, base + first).context("write the program")
    }

    /// Tells each function's name when it is called for the first time, until the process
    /// ends.
    ///
    /// # Errors
    /// A thread cannot be continued.
    pub(super) fn follow(mut self, mut tell: impl FnMut(&str)) -> Result<()> {
        let flags = WaitPidFlag::__WALL | WaitPidFlag::WNOHANG;
        loop {
            match waitpid(None, Some(flags)).context("wait for a thread")? {
                WaitStatus::StillAlive => std::thread::sleep(PAUSE),
                WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, ..) if pid == self.pid => {
                    return Ok(());
                }
                WaitStatus::Stopped(thread, Signal::SIGTRAP) => self.reached(thread, &mut tell)?,
                WaitStatus::Stopped(thread, signal) => resume(thread, Some(signal)),
                // Another program runs there now.
                WaitStatus::PtraceEvent(thread, _, EXEC) => {
                    ptrace::detach(thread, None).context("leave a child")?;
                }
                WaitStatus::PtraceEvent(thread, ..) => resume(thread, None),
                _ => {}
            }
        }
    }

    /// A thread is behind a breakpoint: takes that away, and the step back.
    fn reached(&mut self, thread: Pid, tell: &mut impl FnMut(&str)) -> Result<()> {
        let mut registers = ptrace::getregs(thread).context("read registers")?;
        let at = registers.rip - 1;
        if let Some((byte, name)) = self.functions.get(&at) {
            // A child that was forked has breakpoints of its own.
            memory(thread)?.write_all_at(&[*byte], at).with_context(|| format!("mend {name}"))?;
            registers.rip = at;
            ptrace::setregs(thread, registers).context("write registers")?;
            if self.called.insert(at) {
                tell(name);
            }
        }
        resume(thread, None);
        Ok(())
    }
}

/// One that has gone meanwhile is none to continue.
fn resume(thread: Pid, signal: Option<Signal>) {
    let _ = ptrace::cont(thread, signal);
}

fn memory(thread: Pid) -> Result<File> {
    let path = format!("/proc/{thread}/mem");
    OpenOptions::new().read(true).write(true).open(&path).context(path)
}
