//! The Debian package in a system that is booted, with systemd as its first process
//! and etcd beside the agent.

mod container;
mod docker;
mod firewall;
mod life;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use flannel_tests::agent::Options;
use flannel_tests::debian::Debian;
use flannel_tests::lab::{Lab, NETWORK};
use flannel_tests::node::Node;
use flannel_tests::process::run;

use super::package;

/// cargo's directory for files of tests; machines see it as `/mnt`.
const SHARE: &str = env!("CARGO_TARGET_TMPDIR");

/// Boots the node, and starts an etcd in it that has a network config.
#[track_caller]
fn boot(node: &mut Node) -> Debian {
    let system = Path::new(SHARE).with_file_name("debian").join("root");
    let machine = node.boot_debian(&system, Path::new(SHARE));
    machine.write(
        "/etc/default/etcd",
        &format!(
            "ETCD_LISTEN_CLIENT_URLS=http://0.0.0.0:2379\n\
             ETCD_ADVERTISE_CLIENT_URLS=http://{}:2379\n",
            node.address
        ),
    );
    machine.sh("systemctl start etcd");
    let config = format!(r#"{{"Network":"{NETWORK}","Backend":{{"Type":"vxlan"}}}}"#);
    machine.sh(&format!("ETCDCTL_API=3 etcdctl put /coreos.com/network/config '{config}'"));
    machine
}

/// Starts an agent on a node of the lab that is not booted. It takes the other's etcd.
#[track_caller]
fn start_peer(lab: &Lab, node: &mut Node, of: &Node) {
    let endpoints = Some(format!("http://{}:2379", of.address));
    node.start(&lab.stopped_etcd(), &Options { endpoints, ..Options::ebpf() });
    node.wait_routes(&[of]);
    of.wait_routes(&[node]);
}

/// Where machines see a file below [`SHARE`].
fn inside(path: &Path) -> String {
    let path = path.strip_prefix(SHARE).expect("a shared file");
    Path::new("/mnt").join(path).display().to_string()
}

/// The package as the machines see it.
fn present() -> String {
    inside(&package::the_one(".deb"))
}

/// The same files as an earlier version, as the machines see it.
fn earlier() -> String {
    static EARLIER: OnceLock<PathBuf> = OnceLock::new();
    let file = EARLIER.get_or_init(|| {
        let dir = Path::new(SHARE).join("earlier");
        let _ = fs::remove_dir_all(&dir);
        let tree = dir.join("tree");
        fs::create_dir_all(&dir).expect("a directory");
        run(Command::new("dpkg-deb").arg("-R").arg(package::the_one(".deb")).arg(&tree));
        let control = tree.join("DEBIAN/control");
        let text = fs::read_to_string(&control).expect("control");
        let version = format!("\nVersion: {}\n", env!("CARGO_PKG_VERSION"));
        assert!(text.contains(&version), "{text}");
        let text = text.replace(&version, &format!("\nVersion: {EARLIER_VERSION}\n"));
        fs::write(&control, text).expect("control");
        let file = dir.join("flannel-ebpf.deb");
        run(Command::new("dpkg-deb").args(["-Zgzip", "-z1", "-b"]).arg(&tree).arg(&file));
        file
    });
    inside(file)
}

const EARLIER_VERSION: &str = "0.0.9";
