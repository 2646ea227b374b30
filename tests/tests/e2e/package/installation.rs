//! dpkg and rpm install and remove the packages, in a copy of this machine's files.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use flannel_tests::process::run;
use tempfile::TempDir;

use super::{FILES, in_rpm, the_one};

/// Makes a copy of this machine's files, which lasts as long as the namespace, and
/// what the scripts below use. `$1` is the package, `$2` an empty directory, `$3` where
/// to put lists.
///
/// systemctl is one that writes down how it is called; the rest is real.
const PREPARE: &str = r#"set -e
work=$2 lists=$3 package=/run/package
mount -t tmpfs tmpfs "$work"
mkdir "$work/upper" "$work/work" "$work/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$work/upper,workdir=$work/work" "$work/root"
mount -t proc proc "$work/root/proc"
mount --rbind /dev "$work/root/dev"
mount -t tmpfs tmpfs "$work/root/run"
mkdir -p "$work/root/run/systemd/system"
cat > "$work/root/run/systemctl" <<'SYSTEMCTL'
#!/bin/sh
echo "$*" >> /run/calls
SYSTEMCTL
chmod 755 "$work/root/run/systemctl"
mount --bind "$work/root/run/systemctl" "$work/root/usr/bin/systemctl"
cp "$1" "$work/root$package"
export DEBIAN_FRONTEND=noninteractive
# `set -e` takes no notice of what follows a `!`.
fails() {
    if "$@"; then echo "$*: it should fail" >&2; exit 1; fi
}
# All but the package managers' own notes, and man's index.
list() {
    (cd "$work/upper" && find . \( -path ./var/lib/dpkg -o -path ./var/lib/rpm -o -path ./var/cache \
        -o -path ./var/log \) -prune -o ! -type d -print | sort)
}
did() {
    list > "$lists/$1.files"
    mv "$work/root/run/calls" "$lists/$1.calls"
}
# As an agent leaves it that ran.
leave_a_device() {
    ip link set lo up
    ip link add flannel.1 address 02:00:00:00:00:01 type vxlan id 1 dstport 8472 local 127.0.0.1 nolearning
    mkdir -p "$work/root/var/lib/flannel-ebpf"
    echo '{"version":1,"public_ip":"192.0.2.1","subnet":"10.5.1.0/24","vtep_mac":"02:00:00:00:00:01",
    "device":"flannel.1","vni":1,"network":"10.5.0.0/16"}' > "$work/root/var/lib/flannel-ebpf/state.json"
}
list > "$lists/before.files"
"#;

const DPKG: &str = r#"chroot "$work/root" dpkg -i $package
chroot "$work/root" /usr/bin/flanneld --version
did install
echo '# mine' >> "$work/root/etc/sysconfig/flanneld"
chroot "$work/root" dpkg -i $package
did upgrade
grep -q '# mine' "$work/root/etc/sysconfig/flanneld"
leave_a_device
chroot "$work/root" dpkg -r flannel-ebpf
did remove
fails ip link show flannel.1
mkdir -p "$work/root/var/lib/flannel-ebpf"; touch "$work/root/var/lib/flannel-ebpf/left"
chroot "$work/root" dpkg --purge flannel-ebpf
did purge
! test -e "$work/root/etc/sysconfig" || test -e /etc/sysconfig
fails test -e "$work/root/var/lib/flannel-ebpf"
"#;

/// rpm enters the copy for scripts only. What it needs are Fedora's packages.
const RPM: &str = r#"rpm="rpm --root $work/root --dbpath /var/lib/rpm"
$rpm --install --nodeps "$work/root$package"
chroot "$work/root" /usr/bin/flanneld --version
did install
$rpm --verify --nodeps flannel-ebpf
find "$work/upper" -path '*flannel*' ! -user root -print > "$lists/owners"
leave_a_device
$rpm --erase flannel-ebpf
did remove
fails ip link show flannel.1
fails test -e "$work/root/var/lib/flannel-ebpf"
fails test -e "$work/root/usr/libexec/flannel"
fails test -e "$work/root/usr/share/doc/flannel-ebpf"
fails $rpm --query flannel-ebpf
"#;

/// What a script did to the copy.
struct Did {
    said: String,
    lists: TempDir,
}

impl Did {
    fn to(package: &str, script: &str) -> Self {
        let work = tempfile::tempdir().expect("a temporary directory");
        let lists = tempfile::tempdir().expect("a temporary directory");
        let mut command = Command::new("unshare");
        let script = format!("{PREPARE}{script}");
        command.args(["--mount", "--net", "sh", "-c", &script, "sh"]);
        let said = run(command.arg(the_one(package)).arg(work.path()).arg(lists.path()));
        Self { said, lists }
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.lists.path().join(name)).expect("a list")
    }

    fn lines(&self, name: &str) -> BTreeSet<String> {
        self.read(name).lines().map(str::to_owned).collect()
    }

    /// It is all there, and nothing is started: the node's owner says which unit, and
    /// where etcd is.
    #[track_caller]
    fn is_installed(&self, place: fn(&str) -> String) {
        let installed = self.lines("install.files");
        for (name, _) in FILES.iter().filter(|(name, _)| !name.starts_with("usr/share/doc")) {
            // Images of containers leave out manual pages.
            let left_out = name.starts_with("usr/share/man");
            let name = format!("./{}", place(name));
            assert!(left_out || installed.contains(&name), "{name}: {}", self.said);
        }
        assert_eq!(self.lines("install.calls"), ["daemon-reload".to_owned()].into());
    }

    /// What ran is stopped, and what it left in the kernel is gone.
    #[track_caller]
    fn is_removed(&self) {
        let calls = self.read("remove.calls");
        let place = |wanted: &str| calls.lines().position(|call| call == wanted);
        let stops = "--no-reload disable --now flannel-agent.service flanneld.service";
        assert_eq!(place(stops), Some(0), "{calls}");
        // The others' end has started it.
        assert_eq!(place("stop flannel-rules.service"), Some(1), "{calls}");
        assert!(self.said.contains("deleted flannel.1"), "{}", self.said);
    }
}

#[test]
fn the_deb_comes_and_goes_cleanly() {
    let did = Did::to(".deb", DPKG);
    did.is_installed(str::to_owned);
    let upgrade = did.read("upgrade.calls");
    assert_eq!(upgrade.lines().filter(|call| call.contains("restart")).count(), 1, "{upgrade}");
    assert!(!upgrade.contains("stop") && !upgrade.contains("disable"), "{upgrade}");
    did.is_removed();
    let before = did.lines("before.files");
    let mut kept = did.lines("remove.files");
    kept.retain(|file| !before.contains(file));
    assert_eq!(kept, ["./etc/sysconfig/flanneld".to_owned()].into(), "what is configured stays");
    assert_eq!(did.lines("purge.files"), before, "purge leaves nothing");
}

#[test]
fn the_rpm_comes_and_goes_cleanly() {
    let did = Did::to(".rpm", RPM);
    did.is_installed(in_rpm);
    assert_eq!(did.read("owners"), "", "files of somebody");
    did.is_removed();
    assert_eq!(did.lines("remove.files"), did.lines("before.files"), "removal leaves nothing");
}
