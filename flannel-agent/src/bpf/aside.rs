//! The process that loads and pins the programs for an agent.

use std::io::{self, BufRead as _, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, retry_on_intr};

use super::{BpfError, Needs, ProgramOptions};

/// The verifier takes a second; on an emulated machine, a minute.
const LOADING: Duration = Duration::from_secs(180);

/// So long after the first programs the agent has done what is urgent at a start.
const URGENT: Duration = Duration::from_millis(500);

/// A process that was started ahead waits so long for what is to be loaded. A start that waits
/// for the store does not hold its memory all the time.
const WANTED: Duration = Duration::from_secs(5);

/// What is to be loaded, and where it is pinned.
#[derive(Clone, Debug)]
pub(super) struct Order {
    pin_dir: PathBuf,
    flow_table: u32,
    needs: Needs,
}

impl Order {
    /// With the programs that a node needs to begin.
    pub(super) fn new(options: &ProgramOptions, needs: Needs) -> Self {
        let (pin_dir, flow_table) = (options.pin_dir.clone(), options.flow_table_size);
        Self { pin_dir, flow_table, needs }
    }

    fn command(&self) -> Command {
        command(&self.pin_dir, self.flow_table)
    }
}

fn command(pin_dir: &Path, flow_table: u32) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command
        .arg("load-programs")
        .arg(format!("--pin-dir={}", pin_dir.display()))
        .arg(format!("--flow-table-size={flow_table}"));
    command
}

/// Such a process, started before it is known which programs the node needs. It makes its maps
/// meanwhile, and pins nothing.
#[derive(Debug)]
pub struct Ahead(Loading);

impl Ahead {
    /// Starts it.
    ///
    /// # Errors
    /// No process can be started.
    pub fn start(options: &ProgramOptions) -> io::Result<Self> {
        let mut command = command(&options.pin_dir, options.flow_table_size);
        command.arg("--ahead");
        Loading::of(command, LOADING).map(Self)
    }

    /// Waits until the first programs are pinned; `None` if they could not be.
    ///
    /// # Errors
    /// It has ended before it could be told what is needed.
    fn go_on(self, needs: Needs) -> io::Result<Option<Loading>> {
        let Self(loading) = self;
        loading.first(needs)
    }
}

/// A process of its own that loads and pins programs: first those that a node needs to
/// begin, then, when it is told to, the others. It can do without the kernel's types
/// ([`super::untyped`]), and an agent keeps none of its memory. One that is given up is
/// ended.
#[derive(Debug)]
pub(super) struct Loading {
    child: Option<Child>,
    /// Until it is told to go on.
    orders: Option<ChildStdin>,
    /// It ends with the program.
    answers: ChildStdout,
    began: Instant,
    limit: Duration,
    /// When it told of the first programs.
    told: Option<Instant>,
    /// Why it failed, as far as it has said.
    words: Vec<u8>,
}

/// What such a process tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// Nothing yet.
    Nothing,
    /// The first programs are pinned.
    First,
    /// All programs are pinned.
    All,
    /// It has ended before that, and perhaps said why.
    Failed(Option<BpfError>),
}

impl Loading {
    /// Begins to load programs, and waits until the first ones are pinned. `None` if they
    /// could not be. What was started `ahead` does that sooner.
    pub(super) fn begin(order: &Order, ahead: Option<Ahead>) -> Option<Self> {
        match ahead.map(|ahead| ahead.go_on(order.needs)) {
            Some(Ok(first)) => return first,
            Some(Err(error)) => {
                tracing::debug!(%error, "program loader that was started ahead has gone");
            }
            None => {}
        }
        let loading = Self::of(order.command(), LOADING);
        loading.and_then(|loading| loading.first(order.needs)).unwrap_or_else(|error| {
            tracing::debug!(%error, "program loader failed; the agent loads the programs itself");
            None
        })
    }

    /// Tells it what the node needs, and waits until these programs are pinned.
    fn first(mut self, needs: Needs) -> io::Result<Option<Self>> {
        self.tell(needs)?;
        // aya asks what the kernel can do when it is used first: meanwhile.
        let _asked = aya::features();
        Ok((self.next(LOADING)? == Told::First).then_some(self))
    }

    fn tell(&mut self, needs: Needs) -> io::Result<()> {
        let Some(orders) = &mut self.orders else { return Ok(()) };
        let mut line = serde_json::to_vec(&needs)?;
        line.push(b'\n');
        orders.write_all(&line)
    }

    /// Begins to load all programs anew. Pins stay until the verifier has seen all of them.
    ///
    /// # Errors
    /// No process can be started.
    pub(super) fn anew(order: &Order) -> io::Result<Self> {
        let mut command = order.command();
        command.arg("--anew");
        let mut loading = Self::of(command, LOADING)?;
        loading.tell(order.needs)?;
        Ok(loading)
    }

    fn of(mut command: Command, limit: Duration) -> io::Result<Self> {
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let orders = child.stdin.take();
        let answers = child.stdout.take().ok_or_else(|| io::Error::other("it has no output"))?;
        let (child, began) = (Some(child), Instant::now());
        Ok(Self { child, orders, answers, began, limit, told: None, words: Vec::new() })
    }

    /// Lets it load the other programs: they are wanted `now`, or nothing else is urgent any
    /// more.
    pub(super) fn go_on(&mut self, now: bool) -> &mut Self {
        let urgent = self.told.is_some_and(|told| told.elapsed() <= URGENT);
        if (now || !urgent)
            && let Some(mut orders) = self.orders.take()
            && let Err(error) = orders.write_all(b"\n")
        {
            // What has become of it is asked for next.
            tracing::debug!(%error, "program loader gone");
        }
        self
    }

    /// What it tells next, `within` this time.
    ///
    /// # Errors
    /// It cannot be asked, or takes longer than it may.
    pub(super) fn next(&mut self, within: Duration) -> io::Result<Told> {
        let began = Instant::now();
        loop {
            let left = self.limit.saturating_sub(self.began.elapsed());
            let wait = within.saturating_sub(began.elapsed()).min(left);
            let timeout = Timespec::try_from(wait).map_err(io::Error::other)?;
            match poll(&mut [PollFd::new(&self.answers, PollFlags::IN)], Some(&timeout)) {
                Ok(0) if left > wait => return Ok(Told::Nothing),
                Ok(0) => {
                    let error = format!("it has not ended within {} s", self.limit.as_secs());
                    return Err(io::Error::new(io::ErrorKind::TimedOut, error));
                }
                Ok(_) => {
                    if let Some(told) = self.read()? {
                        return Ok(told);
                    }
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Reads once; what that tells.
    fn read(&mut self) -> io::Result<Option<Told>> {
        let mut some = [0; 4096];
        // What it says may follow the line about the first programs.
        let most = if self.words.is_empty() { 1 } else { some.len() };
        let count = self.answers.read(&mut some[..most])?;
        match &some[..count] {
            [] => self.ended().map(Some),
            [b'\n'] if self.words.is_empty() => {
                self.told = Some(Instant::now());
                Ok(Some(Told::First))
            }
            words => {
                self.words.extend(words);
                Ok(None)
            }
        }
    }

    fn ended(&mut self) -> io::Result<Told> {
        let status = self.child.take().map(|mut child| child.wait()).transpose()?;
        Ok(match status.is_some_and(|status| status.success()) {
            true => Told::All,
            false => Told::Failed(serde_json::from_slice(&self.words).ok()),
        })
    }
}

impl Drop for Loading {
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        let reap = move || {
            let _ = child.kill();
            child.wait()
        };
        // It may be in the kernel, and not end at once.
        if let Err(error) = thread::Builder::new().name("reaper".to_owned()).spawn(reap) {
            tracing::debug!(%error, "program loader not ended");
        }
    }
}

/// Waits for the agent to tell what its node needs; not for long, if this was started `ahead`.
///
/// # Errors
/// The agent has ended, or tells nothing in that time.
pub(super) fn needs(ahead: bool) -> io::Result<Needs> {
    let orders = io::stdin();
    let timeout =
        ahead.then(|| Timespec::try_from(WANTED).map_err(io::Error::other)).transpose()?;
    let asked =
        retry_on_intr(|| poll(&mut [PollFd::new(&orders, PollFlags::IN)], timeout.as_ref()));
    if asked? == 0 {
        return Err(io::Error::new(io::ErrorKind::TimedOut, "nobody wants programs"));
    }
    let mut line = String::new();
    orders.lock().read_line(&mut line)?;
    Ok(serde_json::from_str(&line)?)
}

/// Tells the agent that the first programs are pinned, and waits until it wants the others.
///
/// # Errors
/// The agent has ended.
pub(super) fn tell_first() -> io::Result<()> {
    let mut answers = io::stdout();
    answers.write_all(b"\n")?;
    answers.flush()?;
    io::stdin().read_exact(&mut [0])
}

/// Tells the agent why the programs cannot be loaded.
///
/// # Errors
/// The agent has ended.
pub(super) fn tell_failure(error: &BpfError) -> io::Result<()> {
    let mut answers = io::stdout();
    answers.write_all(&serde_json::to_vec(error)?)?;
    answers.flush()
}

/// An agent has to wait still for what this process loads: another one may be started by now,
/// and must not find programs of two loads.
///
/// # Errors
/// None does.
pub(super) fn is_still_awaited() -> Result<(), BpfError> {
    let answers = io::stdout();
    let mut ends = [PollFd::new(&answers, PollFlags::empty())];
    let asked = poll(&mut ends, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
    match asked.is_ok() && !ends[0].revents().contains(PollFlags::ERR) {
        true => Ok(()),
        false => Err(BpfError::plain("pin program", "all", "the agent has ended")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, limit: Duration) -> Loading {
        let mut command = Command::new("sh");
        command.arg("-c").arg(script);
        Loading::of(command, limit).unwrap()
    }

    #[test]
    fn a_process_tells_of_its_first_programs_and_of_its_end() {
        assert_eq!(shell("exit 0", LOADING).next(LOADING).unwrap(), Told::All);
        assert_eq!(shell("exit 1", LOADING).next(LOADING).unwrap(), Told::Failed(None));
        let mut both = shell("echo; read order; exit 1", LOADING);
        assert_eq!(both.next(LOADING).unwrap(), Told::First);
        both.go_on(false);
        assert_eq!(both.next(Duration::from_millis(20)).unwrap(), Told::Nothing);
        both.go_on(true);
        assert_eq!(both.next(LOADING).unwrap(), Told::Failed(None));
        let mut left = shell("echo; read order && exit 0; exit 1", LOADING);
        assert_eq!(left.next(LOADING).unwrap(), Told::First);
        thread::sleep(URGENT * 2);
        left.go_on(false);
        assert_eq!(left.next(LOADING).unwrap(), Told::All);
    }

    #[test]
    fn a_process_is_told_what_the_node_needs() {
        let needs = Needs { tunnel: true, ..Needs::default() };
        let line = serde_json::to_string(&needs).unwrap();
        let hears = format!("read -r needs; [ \"$needs\" = '{line}' ] || exit 1; echo; read order");
        let first = |needs| shell(&hears, LOADING).first(needs).unwrap();
        assert_eq!(first(needs).unwrap().go_on(true).next(LOADING).unwrap(), Told::All);
        assert!(first(Needs::all(false)).is_none(), "it has ended before that");
    }

    #[test]
    fn another_one_is_started_only_where_one_has_gone_before_its_order() {
        for (script, gone) in
            [("exit 1", true), ("exec 0<&- 1>&-; exit 1", true), ("read needs; exit 1", false)]
        {
            let ahead = Ahead(shell(script, LOADING));
            thread::sleep(Duration::from_millis(200));
            let told = ahead.go_on(Needs::default());
            assert_eq!(told.is_err(), gone, "{script}: {told:?}");
            assert!(told.is_ok_and(|first| first.is_none()) || gone, "{script}");
        }
    }

    #[test]
    fn a_process_says_why_it_failed() {
        let log = "R1 invalid mem access\n".repeat(1000);
        let error = BpfError {
            verifier_log: Some(log.into()),
            ..BpfError::plain("load program", "to_pod", "it is too odd")
        };
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("words");
        std::fs::write(&file, serde_json::to_vec(&error).unwrap()).unwrap();
        let cat = format!("cat {}; exit 1", file.display());
        for (script, first) in [(cat.clone(), false), (format!("echo; read order; {cat}"), true)] {
            let mut fails = shell(&script, LOADING);
            if first {
                assert_eq!(fails.next(LOADING).unwrap(), Told::First);
            }
            let told = fails.go_on(true).next(LOADING).unwrap();
            assert_eq!(told, Told::Failed(Some(error.clone())));
        }
    }

    #[test]
    fn a_process_that_hangs_is_ended() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pid");
        let began = Instant::now();
        let script = format!("echo $$ > {}; exec sleep 600", file.display());
        let mut hangs = shell(&script, Duration::from_secs(1));
        assert_eq!(hangs.next(Duration::from_millis(1)).unwrap(), Told::Nothing);
        let error = hangs.next(LOADING).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        drop(hangs);
        assert!(began.elapsed() < Duration::from_secs(60));
        let pid = std::fs::read_to_string(file).unwrap();
        let is_there = || std::path::Path::new("/proc").join(pid.trim()).exists();
        while is_there() && began.elapsed() < Duration::from_secs(60) {
            thread::sleep(Duration::from_millis(10));
        }
        assert!(!is_there(), "it was ended, and has left no zombie");
    }
}
