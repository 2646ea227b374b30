//! The control socket: one request line, one JSON answer.

use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, Semaphore};

use crate::files::make_directory;
use crate::status::{self, Shared, SharedDatapath};

/// Clients that are served at a time.
const CLIENTS: usize = 16;
/// A client that says nothing for this long is sent away.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a socket that somebody removed may be away.
const LOOK: Duration = Duration::from_secs(1);
/// Longest request.
const REQUEST: usize = 64;

/// What can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// A [`flannel_core::status::Status`].
    Status,
    /// A list of [`flannel_core::status::PeerStatus`].
    Peers,
    /// [`flannel_core::status::Events`] with greater numbers than this.
    Events(u64),
}

impl Request {
    /// All names.
    const NAMES: [&str; 3] = ["status", "peers", "events"];

    fn text(self) -> String {
        let name = self.name();
        match self {
            Self::Status | Self::Peers => name.to_owned(),
            Self::Events(after) => format!("{name} {after}"),
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Status => Self::NAMES[0],
            Self::Peers => Self::NAMES[1],
            Self::Events(_) => Self::NAMES[2],
        }
    }

    fn read(text: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok()?;
        let (name, value) = text.split_once(' ').unwrap_or((text, ""));
        let named = [Self::Status, Self::Peers, Self::Events(value.parse().unwrap_or(0))];
        named.into_iter().find(|request| request.name() == name && request.text() == text)
    }
}

/// Why there is no other answer.
#[derive(Debug, Serialize, Deserialize)]
struct Refusal {
    error: String,
}

impl Refusal {
    fn unknown() -> Self {
        let known = Request::NAMES.join(", ");
        Self { error: format!("unknown request; there are: {known}") }
    }
}

/// Path of the socket.
pub fn path(state_dir: &Path) -> PathBuf {
    state_dir.join("agent.sock")
}

/// Whether an agent listens on the socket.
pub fn is_served(state_dir: &Path) -> bool {
    std::os::unix::net::UnixStream::connect(path(state_dir)).is_ok()
}

/// The socket as we made it. Somebody may remove it, maybe with its directory, or put
/// another thing in its place.
#[derive(Debug)]
pub struct ControlSocket {
    path: PathBuf,
    /// Device and inode.
    place: Mutex<Option<(u64, u64)>>,
    /// Somebody else looks after it.
    looked_after: AtomicBool,
    lost: Notify,
}

impl ControlSocket {
    fn listen(path: PathBuf) -> io::Result<(Self, UnixListener)> {
        let listener = listen(&path)?;
        let place = Mutex::new(place_of(&path));
        let (looked_after, lost) = (AtomicBool::new(false), Notify::new());
        Ok((Self { path, place, looked_after, lost }, listener))
    }

    /// Looks whether it is there; one that is not is made again. Who serves it looks by
    /// itself until the first call, and not any more then. Whether it is there. One system
    /// call.
    pub fn look(&self) -> bool {
        self.looked_after.store(true, Ordering::Relaxed);
        let lost = self.is_lost();
        if lost {
            self.lost.notify_one();
        }
        !lost
    }

    /// Returns when it is lost.
    async fn lost(&self) {
        loop {
            tokio::select! {
                () = self.lost.notified() => {}
                () = tokio::time::sleep(LOOK), if !self.looked_after.load(Ordering::Relaxed) => {}
            }
            if self.is_lost() {
                return;
            }
        }
    }

    fn is_lost(&self) -> bool {
        place_of(&self.path) != *self.place()
    }

    /// Makes it again, if that is possible now.
    fn renew(&self) -> Option<UnixListener> {
        let path = &self.path;
        let listener = listen(path).ok()?;
        tracing::warn!(path = %path.display(), "control socket removed by somebody; it is made again");
        *self.place() = place_of(path);
        Some(listener)
    }

    fn place(&self) -> MutexGuard<'_, Option<(u64, u64)>> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Listens on the socket, for root alone, and serves it in the background.
///
/// # Errors
/// The socket cannot be made. (One that an earlier run left is replaced: the
/// caller holds the lock of the state directory.)
pub fn serve(
    state_dir: &Path,
    shared: Shared,
    datapath: SharedDatapath,
) -> io::Result<Arc<ControlSocket>> {
    let (socket, mut listener) = ControlSocket::listen(path(state_dir))?;
    let socket = Arc::new(socket);
    let served = Arc::clone(&socket);
    let places = Arc::new(Semaphore::new(CLIENTS));
    shared.clone().spawn("serves the control socket", async move {
        loop {
            let Ok(client) = Arc::clone(&places).acquire_owned().await else { return };
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = served.lost() => {
                    listener = served.renew().unwrap_or(listener);
                    continue;
                }
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of descriptors, say: no reason to spin.
                    tracing::warn!(%error, "control socket unavailable");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    continue;
                }
            };
            let (shared, datapath) = (shared.clone(), Arc::clone(&datapath));
            tokio::spawn(async move {
                let _client = client;
                let _ = tokio::time::timeout(PATIENCE, answer(stream, &shared, &datapath)).await;
            });
        }
    });
    Ok(socket)
}

/// Device and inode of the socket at the path, if there is one.
fn place_of(path: &Path) -> Option<(u64, u64)> {
    let found = std::fs::symlink_metadata(path).ok()?;
    found.file_type().is_socket().then(|| (found.dev(), found.ino()))
}

fn listen(path: &Path) -> io::Result<UnixListener> {
    if let Some(folder) = path.parent() {
        make_directory(folder)?;
    }
    // A directory that is not empty stays.
    let _ = std::fs::remove_dir(path);
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

async fn answer(
    mut stream: UnixStream,
    shared: &Shared,
    datapath: &SharedDatapath,
) -> io::Result<()> {
    let mut request = Vec::new();
    let mut byte = [0];
    while request.len() < REQUEST && stream.read(&mut byte).await? == 1 && byte[0] != b'\n' {
        request.push(byte[0]);
    }
    let json = match Request::read(&request) {
        Some(Request::Status) => serde_json::to_vec(&status::status(shared, datapath)),
        Some(Request::Peers) => serde_json::to_vec(&status::peers(shared, datapath)),
        Some(Request::Events(after)) => {
            let events = shared.lock().events.after(after);
            serde_json::to_vec(&events)
        }
        None => serde_json::to_vec(&Refusal::unknown()),
    };
    stream.write_all(&json.map_err(io::Error::other)?).await?;
    stream.shutdown().await
}

/// Asks a running agent. `NotFound` and `ConnectionRefused` mean that none runs.
///
/// # Errors
/// The socket cannot be reached, the answer does not come, or the agent does not know
/// the request, as one of an earlier version may.
pub fn ask(state_dir: &Path, request: Request) -> io::Result<String> {
    let answer = say(state_dir, &request.text())?;
    match serde_json::from_str::<Refusal>(&answer) {
        Ok(Refusal { error }) => Err(io::Error::other(error)),
        Err(_) => Ok(answer),
    }
}

fn say(state_dir: &Path, request: &str) -> io::Result<String> {
    let mut stream = std::os::unix::net::UnixStream::connect(path(state_dir))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    writeln!(stream, "{request}")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use flannel_core::health::{Found, Subject};
    use flannel_core::status::{Events, Status};

    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn answers_and_survives_bad_requests() {
        let folder = tempfile::tempdir().unwrap();
        let shared = Shared::default();
        shared.report(Subject::Store, Found::not_well("connection refused"));
        serve(folder.path(), shared, SharedDatapath::default()).unwrap();
        let path = folder.path().to_owned();
        tokio::task::spawn_blocking(move || {
            let status: Status =
                serde_json::from_str(&ask(&path, Request::Status).unwrap()).unwrap();
            assert_eq!(status.health[0].what, "store");
            assert!(!status.store.connected);
            assert_eq!(ask(&path, Request::Peers).unwrap(), "[]");
            let events = |after| -> Events {
                serde_json::from_str(&ask(&path, Request::Events(after)).unwrap()).unwrap()
            };
            assert_eq!(events(0).events[0].what.to_string(), "not well: store: connection refused");
            assert_eq!(events(1), Events { last: 1, events: Vec::new() });
            let refused: Refusal = serde_json::from_str(&say(&path, "nonsense").unwrap()).unwrap();
            assert_eq!(refused.error, "unknown request; there are: status, peers, events");
            let mode = std::fs::metadata(super::path(&path)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
            let socket = super::path(&path);
            let harm: [&dyn Fn(); 4] = [
                &|| std::fs::remove_dir_all(&path).unwrap(),
                &|| {
                    std::fs::remove_file(&socket).unwrap();
                    std::fs::write(&socket, "").unwrap();
                },
                &|| {
                    std::fs::remove_file(&socket).unwrap();
                    std::fs::create_dir(&socket).unwrap();
                },
                &|| {
                    std::fs::remove_file(&socket).unwrap();
                    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
                },
            ];
            for (number, harm) in harm.into_iter().enumerate() {
                harm();
                let again = || {
                    std::thread::sleep(Duration::from_millis(50));
                    ask(&path, Request::Peers).is_ok()
                };
                assert!((0..100).any(|_| again()), "{number}: it did not come back");
            }
        })
        .await
        .unwrap();
    }

    #[tokio::test]
    async fn who_wakes_up_anyway_looks_after_it() {
        let folder = tempfile::tempdir().unwrap();
        let socket = serve(folder.path(), Shared::default(), SharedDatapath::default()).unwrap();
        let path = path(folder.path());
        let soon = async |limit: Duration| {
            let back = async {
                while !path.exists() {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            };
            tokio::time::timeout(limit, back).await.is_ok()
        };
        socket.look();
        // The last look of its own is over.
        tokio::time::sleep(LOOK + LOOK / 2).await;
        std::fs::remove_file(&path).unwrap();
        assert!(!soon(LOOK + LOOK / 2).await, "nobody looks");
        socket.look();
        assert!(soon(10 * LOOK).await && is_served(folder.path()));
    }
}
