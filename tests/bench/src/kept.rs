//! A demo that is left running: what it has, how to get in, and its end.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use flannel_tests::wait;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// Where a kept demo is written down.
pub const STATE: &str = "/run/flannel-demo.json";

/// How long the namespaces may take to go.
const END: Duration = Duration::from_secs(30);

/// A demo that runs.
#[derive(Debug, Serialize, Deserialize)]
pub struct Kept {
    /// The process that everything in it ends with.
    pid: i32,
    /// Its nodes and pods, by the names that people call them.
    rooms: BTreeMap<String, Room>,
}

/// A network namespace of the demo.
#[derive(Debug, Serialize, Deserialize)]
pub struct Room {
    /// The file that stands for it.
    pub netns: PathBuf,
    /// What a shell in it finds in its environment.
    pub environment: BTreeMap<String, String>,
}

impl Kept {
    /// Writes down that this process keeps `rooms`.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(rooms: BTreeMap<String, Room>, state: &Path) -> Result<()> {
        let kept = Self { pid: Pid::this().as_raw(), rooms };
        let text = serde_json::to_string_pretty(&kept)?;
        fs::write(state, text).with_context(|| state.display().to_string())
    }

    /// The demo that runs, if there is one.
    ///
    /// # Errors
    /// The file cannot be understood.
    pub fn read(state: &Path) -> Result<Option<Self>> {
        let Ok(text) = fs::read_to_string(state) else { return Ok(None) };
        let kept: Self = serde_json::from_str(&text).context(state.display().to_string())?;
        Ok(kept.runs().then_some(kept))
    }

    /// Whether its process is there, and no other has got its number.
    fn runs(&self) -> bool {
        let name = fs::read_to_string(format!("/proc/{}/comm", self.pid));
        name.is_ok_and(|name| name.trim() == "flannel-demo")
    }

    /// The room of this name.
    pub fn room(&self, name: &str) -> Option<&Room> {
        self.rooms.get(name)
    }

    /// Names of its rooms.
    pub fn names(&self) -> Vec<&str> {
        self.rooms.keys().map(String::as_str).collect()
    }
}

/// Lets a process of its own hold the demo: the program at `program` with these
/// arguments. What it prints until the demo stands is passed on.
///
/// # Errors
/// One is kept already, or it does not come to stand.
pub fn start(program: &Path, arguments: &[&str], state: &Path) -> Result<Kept> {
    if Kept::read(state)?.is_some() {
        bail!("a demo is kept already: cargo xtask demo --remove");
    }
    let mut command = Command::new(program);
    // A group of its own: Ctrl-C is for whoever comes after.
    command.args(arguments).arg("--state").arg(state).process_group(0).stdin(Stdio::null());
    let mut child = command.stdout(Stdio::piped()).spawn().context("start the demo")?;
    let mut output = child.stdout.take().context("the demo's output")?;
    std::io::copy(&mut output, &mut std::io::stdout())?;
    match Kept::read(state)? {
        Some(kept) => Ok(kept),
        None => bail!("the demo has failed: {}", child.wait()?),
    }
}

/// Ends the demo, and waits until nothing of it is left.
///
/// # Errors
/// None is kept, or it does not end.
pub fn remove(state: &Path) -> Result<()> {
    let kept = Kept::read(state)?.context("no demo is kept")?;
    kill(Pid::from_raw(kept.pid), Signal::SIGTERM).context("end the demo")?;
    wait::holds("the end of the demo", END, || !kept.runs());
    fs::remove_file(state).with_context(|| state.display().to_string())
}

/// Becomes a shell, or the command `words`, in a room of the kept demo.
///
/// # Errors
/// None is kept, or it has no such room.
pub fn enter(name: &str, words: &[String], state: &Path) -> Result<std::convert::Infallible> {
    let kept = Kept::read(state)?.context("no demo is kept: cargo xtask demo --keep")?;
    let Some(room) = kept.room(name) else {
        bail!("the demo has no {name:?}, but {}", kept.names().join(", "));
    };
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", room.netns.display())).envs(&room.environment);
    if words.is_empty() {
        // bash shows where it is.
        command.args(["bash", "--norc", "-i"]).env("PS1", format!("{name} \\w # "));
    } else {
        command.args(words);
    }
    Err(command.exec()).context("nsenter")
}
