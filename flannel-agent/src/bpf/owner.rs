//! Whose a pin directory is: one agent's at a time, and one network namespace's.
//!
//! bpffs has no regular files. But its directories can be locked, and that lock
//! holds across network and mount namespaces, because it hangs on the directory
//! itself. And it has symbolic links: the target of one is a place for a word.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::BpfError;
use super::pinned::{self, LinkPin};
use super::sys::{self, TcxHook};

/// Name of the symbolic link in a version's directory. It is no directory and
/// can be unlinked, so agents of other versions remove it with the pins.
const RECORD: &str = "netns";

/// The only agent on a pin directory; until it is dropped, or the process ends
/// however.
#[derive(Debug)]
pub struct Ownership(Flock<File>);

impl Ownership {
    /// Whether the directory that it holds is still the one at this path.
    pub(super) fn is_of(&self, root: &Path) -> bool {
        let place = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
        let held = self.0.metadata().map(place).ok();
        held.is_some() && held == fs::metadata(root).map(place).ok()
    }
}

/// Takes the directory for this process.
pub(super) fn claim(root: &Path) -> Result<Ownership, BpfError> {
    let failed = |error: &io::Error| BpfError::new("lock", root.display().to_string(), error);
    loop {
        let folder = File::open(root).map_err(|error| failed(&error))?;
        let inode = folder.metadata().map_err(|error| failed(&error))?.ino();
        let lock = match Flock::lock(folder, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            Err((_, Errno::EWOULDBLOCK)) => {
                return Err(refusal(root, "another agent uses it").with_hint(OWN_DIRECTORY));
            }
            Err((_, errno)) => return Err(failed(&errno.into())),
        };
        match fs::metadata(root) {
            Ok(now) if now.ino() == inode => return Ok(Ownership(lock)),
            // Removed and made anew between the two calls.
            Ok(_) => {}
            Err(error) => return Err(failed(&error)),
        }
    }
}

const OWN_DIRECTORY: &str = "give each agent a --pin-dir and a --state-dir of its own";

fn refusal(root: &Path, why: impl Into<String>) -> BpfError {
    let refused = BpfError::plain("use pin directory", root.display().to_string(), why);
    BpfError { foreign: true, ..refused }
}

/// This network namespace, in a word that no other has.
pub(super) fn here() -> io::Result<String> {
    let socket = UnixDatagram::unbound()?;
    match sys::netns_cookie(socket.as_fd()) {
        Ok(cookie) => Ok(format!("cookie:{cookie}")),
        // Before Linux 5.14. Another namespace may get the number later.
        Err(_) => {
            let file = fs::metadata("/proc/thread-self/ns/net")?;
            Ok(format!("inode:{}:{}", file.dev(), file.ino()))
        }
    }
}

/// Writes down in a version's directory that it is this namespace's.
pub(super) fn record(version: &Path) -> Result<(), BpfError> {
    let path = version.join(RECORD);
    let failed =
        |error: io::Error| BpfError::new("record the owner in", path.display().to_string(), &error);
    let here = here().map_err(failed)?;
    if recorded(version).as_ref() == Some(&here) {
        return Ok(());
    }
    pinned::remove(&path)?;
    symlink(here, &path).map_err(failed)
}

fn recorded(version: &Path) -> Option<String> {
    fs::read_link(version.join(RECORD)).ok()?.into_os_string().into_string().ok()
}

/// Whose the pins of one version are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// This namespace's, or nobody's.
    Ours,
    /// A namespace's that has gone.
    Gone,
    /// Another namespace's, whose programs are attached there.
    Other(String),
}

/// Where the device of a pinned link is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Device {
    Here,
    Elsewhere,
    /// Somewhere: the kernel does not tell.
    There,
    Gone,
}

/// Looks whose a version's directory is.
pub(super) fn of(version: &Path) -> Result<Owner, BpfError> {
    let here = here().map_err(|error| BpfError::new("find", "our network namespace", &error))?;
    let recorded = recorded(version);
    if recorded.as_ref() == Some(&here) {
        return Ok(Owner::Ours);
    }
    let links =
        pinned::links_in(&version.join("links")).into_iter().map(|LinkPin { path, .. }| path);
    let devices: Vec<Device> =
        links.chain(pinned::entries(&version.join("xdp"))).map(|path| device_of(&path)).collect();
    Ok(judge(recorded.as_deref(), &here, &devices))
}

fn device_of(path: &Path) -> Device {
    let Ok(link) = sys::pinned_link(path) else { return Device::Gone };
    if link.ifindex == 0 {
        return Device::Gone;
    }
    let Some(hook) = TcxHook::of(&link) else { return Device::There };
    // Interface indexes are each namespace's own, link ids are not.
    match sys::tcx_programs(link.ifindex, hook) {
        Ok(running) if running.iter().any(|program| program.link == link.id) => Device::Here,
        Ok(_) => Device::Elsewhere,
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Device::Elsewhere,
        Err(_) => Device::There,
    }
}

/// The first edition recorded nothing; its links tell, unless they are XDP's.
fn judge(recorded: Option<&str>, here: &str, devices: &[Device]) -> Owner {
    let has = |device| devices.contains(&device);
    match recorded {
        Some(owner) if owner == here => Owner::Ours,
        Some(owner) if devices.iter().any(|device| *device != Device::Gone) => {
            Owner::Other(owner.to_owned())
        }
        Some(_) => Owner::Gone,
        // One device here proves more than one that was moved away.
        None if has(Device::Elsewhere) && !has(Device::Here) => Owner::Other("unknown".to_owned()),
        None => Owner::Ours,
    }
}

/// What is said of a directory that is another namespace's.
pub(super) fn foreign(root: &Path, owner: &str) -> BpfError {
    let why = format!(
        "programs of another network namespace ({owner}) are attached by its pins; this one is {}",
        here().unwrap_or_else(|_| "unknown".to_owned())
    );
    refusal(root, why).with_hint(OWN_DIRECTORY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_record_decides() {
        let live = [Device::Elsewhere];
        assert_eq!(judge(Some("a"), "a", &live), Owner::Ours, "a device was moved away");
        assert_eq!(judge(Some("b"), "a", &live), Owner::Other("b".to_owned()));
        assert_eq!(judge(Some("b"), "a", &[Device::There]), Owner::Other("b".to_owned()));
        assert_eq!(judge(Some("b"), "a", &[Device::Gone]), Owner::Gone);
        assert_eq!(judge(Some("b"), "a", &[]), Owner::Gone);
    }

    #[test]
    fn without_a_record_the_links_decide() {
        let elsewhere = [Device::Gone, Device::Elsewhere];
        assert_eq!(judge(None, "a", &elsewhere), Owner::Other("unknown".to_owned()));
        assert_eq!(judge(None, "a", &[Device::Here, Device::Elsewhere]), Owner::Ours);
        for unclear in [&[][..], &[Device::Gone], &[Device::There]] {
            assert_eq!(judge(None, "a", unclear), Owner::Ours);
        }
    }

    #[test]
    fn one_claim_at_a_time_and_across_threads() {
        let folder = tempfile::tempdir().unwrap();
        let first = claim(folder.path()).unwrap();
        let refused = claim(folder.path()).unwrap_err().to_string();
        assert!(refused.contains("another agent uses it"), "{refused}");
        drop(first);
        claim(folder.path()).unwrap();
    }

    #[test]
    fn a_namespace_has_one_name() {
        assert_eq!(here().unwrap(), here().unwrap());
    }
}
