//! What the daemon's process is given by who starts it.

use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

/// A daemon that waits for an etcd which is not there.
struct Waiting(Child, #[expect(dead_code, reason = "it goes with the daemon")] tempfile::TempDir);

impl Waiting {
    fn start(limits: &str, notify: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).display().to_string();
        let child = Command::new("sh")
            .args(["-c", &format!("{limits} exec \"$0\" \"$@\"")])
            .arg(env!("CARGO_BIN_EXE_flannel-agent"))
            .args(["--etcd-endpoints=http://127.0.0.1:1", "--datapath=kernel"])
            .arg(format!("--state-dir={}", at("state")))
            .arg(format!("--subnet-file={}", at("subnet.env")))
            .arg(format!("--pin-dir={}", at("pins")))
            .env("NOTIFY_SOCKET", notify)
            .spawn()
            .unwrap();
        Self(child, dir)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn systemd_is_told_by_sockets_of_both_kinds() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let name = format!("flannel-test-{}", std::process::id());
    for (address, variable) in [
        (SocketAddr::from_pathname(&path).unwrap(), path.display().to_string()),
        (SocketAddr::from_abstract_name(&name).unwrap(), format!("@{name}")),
    ] {
        let socket = UnixDatagram::bind_addr(&address).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let _daemon = Waiting::start("", &variable);
        let mut said = [0; 500];
        let length = socket.recv(&mut said).unwrap_or_else(|error| panic!("{variable}: {error}"));
        let said = String::from_utf8_lossy(&said[..length]);
        assert!(said.starts_with("STATUS=") && said.ends_with('\n'), "{variable}: {said}");
    }
}

#[test]
fn few_open_files_are_made_as_many_as_may_be() {
    let daemon = Waiting::start("ulimit -Sn 64; ulimit -Hn 4096;", "");
    let path = format!("/proc/{}/limits", daemon.0.id());
    let limits = || {
        let text = std::fs::read_to_string(&path).unwrap();
        let line = text.lines().find(|line| line.starts_with("Max open files")).unwrap();
        line.split_whitespace().skip(3).take(2).collect::<Vec<_>>().join(" ")
    };
    let began = Instant::now();
    while limits() != "4096 4096" {
        assert!(began.elapsed() < Duration::from_secs(10), "{}", limits());
        std::thread::sleep(Duration::from_millis(10));
    }
}
