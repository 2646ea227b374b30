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

/// Where `cargo xtask setup` has put the first edition, if the history was there.
fn first_edition() -> Option<PathBuf> {
    let made = Path::new(SHARE).with_file_name("first-edition");
    made.exists().then_some(made)
}

/// An earlier version, as the machines see it: the first edition in the first package. If
/// there is none, the present files under an earlier number.
fn earlier() -> String {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    let file = MADE.get_or_init(|| {
        let dir = Path::new(SHARE).join("earlier");
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).expect("a directory");
        let (tree, file) = (dir.join("tree"), dir.join("flannel-ebpf.deb"));
        let Some(made) = first_edition() else {
            let present = package::the_one(".deb");
            run(Command::new("sh")
                .args(["-ec", RENUMBER, "sh"])
                .arg(present)
                .arg(&tree)
                .arg(&file));
            return file;
        };
        let control = format!(
            "Package: flannel-ebpf\nVersion: {EARLIER_VERSION}\nArchitecture: amd64\n\
             Maintainer: the flannel-ebpf authors <maintainers@flannel-ebpf.invalid>\n\
             Description: the first edition\n"
        );
        let mut command = Command::new("sh");
        command.args(["-ec", PACK, "sh"]).arg(&made).arg(&tree).arg(&file).arg(control);
        run(&mut command);
        file
    });
    inside(file)
}

const EARLIER_VERSION: &str = "0.0.9";

/// Gives the package `$1` that number, by way of the directory `$2`, as `$3`.
const RENUMBER: &str = r#"dpkg-deb -R "$1" "$2"
sed -i 's/^Version: .*/Version: 0.0.9/' "$2/DEBIAN/control"
dpkg-deb --root-owner-group -Zgzip -z1 --build "$2" "$3""#;

/// Packs what is below `$1` by way of the directory `$2` as `$3`, with the control file
/// `$4`.
const PACK: &str = r#"from=$1/packaging tree=$2
mkdir -p "$tree/DEBIAN" "$tree/usr/bin" "$tree/usr/lib/systemd/system" "$tree/etc/sysconfig"
printf %s "$4" > "$tree/DEBIAN/control"
echo /etc/sysconfig/flanneld > "$tree/DEBIAN/conffiles"
for script in postinst prerm postrm; do
    install -m 755 "$from/deb/$script" "$tree/DEBIAN/$script"
done
install -m 755 "$1/flannel-agent" "$from/flanneld-start" "$tree/usr/bin"
ln -s flannel-agent "$tree/usr/bin/flanneld"
install -m 644 "$from/flannel-agent.service" "$from/flanneld.service" "$tree/usr/lib/systemd/system"
install -m 644 "$from/sysconfig/flanneld" "$tree/etc/sysconfig"
dpkg-deb --root-owner-group -Zgzip -z1 --build "$tree" "$3""#;
