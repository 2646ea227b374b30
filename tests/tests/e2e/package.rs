//! The packages: what is in them, and that Debian's comes and goes cleanly.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use flannel_tests::agent;
use flannel_tests::process::{output, run};

/// The directory with the packages of the agent under test: made once for all cases of
/// a run, which are processes of their own.
pub(crate) fn dist() -> PathBuf {
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("package");
    let own = format!("{} {}", std::process::id(), agent::program().display());
    let run_id = std::env::var("NEXTEST_RUN_ID").unwrap_or(own);
    let path = out.with_extension("run");
    let mut made = File::options().read(true).write(true).create(true).truncate(false).open(&path);
    let made = made.as_mut().expect("a file to lock");
    made.lock().expect("a lock");
    let mut made_by = String::new();
    made.read_to_string(&mut made_by).expect("who made the packages");
    if made_by == run_id {
        return out;
    }
    let _ = fs::remove_dir_all(&out);
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    command.args(["xtask", "dist", "--agent"]).arg(agent::program());
    run(command.arg("--out").arg(&out));
    fs::write(&path, run_id).expect("a note of who made the packages");
    out
}

/// The file among them with this ending.
#[track_caller]
pub(crate) fn the_one(ending: &str) -> PathBuf {
    let entries = fs::read_dir(dist()).expect("the packages").map(|entry| entry.expect("a file"));
    let mut found = entries.map(|entry| entry.path());
    let found = found.find(|path| path.to_string_lossy().ends_with(ending));
    found.unwrap_or_else(|| panic!("no {ending} in {}", dist().display()))
}

/// Every file of the package, and whether it can be run.
const FILES: &[(&str, bool)] = &[
    ("etc/sysconfig/flanneld", false),
    ("usr/bin/flannel-agent", true),
    ("usr/bin/flanneld-start", true),
    ("usr/lib/NetworkManager/conf.d/flannel.conf", false),
    ("usr/lib/systemd/network/10-flannel.link", false),
    ("usr/lib/systemd/network/10-flannel.network", false),
    ("usr/lib/systemd/networkd.conf.d/10-flannel.conf", false),
    ("usr/lib/systemd/system/flannel-agent.service", false),
    ("usr/lib/systemd/system/flanneld.service", false),
    ("usr/libexec/flannel/mk-docker-opts.sh", true),
    ("usr/share/bash-completion/completions/flannel-agent", false),
    ("usr/share/doc/flannel-ebpf/CHANGELOG.md", false),
    ("usr/share/doc/flannel-ebpf/LICENSE", false),
    ("usr/share/doc/flannel-ebpf/LICENSE-GPL-2.0", false),
    ("usr/share/doc/flannel-ebpf/LICENSE-MIT", false),
    ("usr/share/doc/flannel-ebpf/README.md", false),
    ("usr/share/doc/flannel-ebpf/SECURITY.md", false),
    ("usr/share/doc/flannel-ebpf/copyright", false),
    ("usr/share/doc/flannel-ebpf/examples/flannel.rules.yml", false),
    ("usr/share/doc/flannel-ebpf/examples/grafana.json", false),
    ("usr/share/doc/flannel-ebpf/sbom.cdx.json", false),
    ("usr/share/doc/flannel-ebpf/third-party.txt.gz", false),
    ("usr/share/fish/vendor_completions.d/flannel-agent.fish", false),
    ("usr/share/man/man8/flannel-agent.8.gz", false),
    ("usr/share/man/man8/flannel-agent-cleanup.8.gz", false),
    ("usr/share/zsh/vendor-completions/_flannel-agent", false),
];

#[test]
fn the_package_has_what_a_node_needs() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    run(Command::new("dpkg-deb").arg("-x").arg(the_one(".deb")).arg(dir.path()));
    let tar = tempfile::tempdir().expect("a temporary directory");
    run(Command::new("tar").arg("-xzf").arg(the_one(".tar.gz")).arg("-C").arg(tar.path()));
    let rpm = tempfile::tempdir().expect("a temporary directory");
    let unpack = "rpm2cpio \"$1\" | cpio --quiet -idm --no-absolute-filenames";
    let mut command = Command::new("sh");
    run(command.current_dir(rpm.path()).args(["-ec", unpack, "sh"]).arg(the_one(".rpm")));
    for root in [dir.path(), tar.path(), rpm.path()] {
        for (name, executable) in FILES {
            let name = if root == rpm.path() { in_rpm(name) } else { (*name).to_owned() };
            let path = root.join(&name);
            let metadata = fs::metadata(&path).unwrap_or_else(|error| panic!("{name}: {error}"));
            let expected = if *executable { 0o755 } else { 0o644 };
            assert_eq!(metadata.permissions().mode() & 0o777, expected, "{name}");
            assert!(metadata.len() > 0, "{name} is empty");
        }
        let link = fs::read_link(root.join("usr/bin/flanneld")).expect("the alias");
        assert_eq!(link, Path::new("flannel-agent"));
    }
    // Every program that the units start is there.
    for unit in ["flannel-agent.service", "flanneld.service"] {
        let text = fs::read_to_string(dir.path().join("usr/lib/systemd/system").join(unit));
        let text = text.expect("the unit");
        let programs = text.lines().filter_map(|line| line.strip_prefix("ExecStart"));
        for program in programs {
            let path = program.split_once('=').expect("a program").1;
            let path = path.split(' ').next().expect("a path").trim_start_matches('/');
            assert!(dir.path().join(path).exists(), "{unit}: {path}");
        }
    }
    the_binary_is_stripped(&dir.path().join("usr/bin/flannel-agent"));
}

fn the_binary_is_stripped(agent: &Path) {
    let sections = |path: &Path| run(Command::new("objdump").arg("-h").arg(path));
    let (lean, debug) = (sections(agent), sections(&the_one(".debug")));
    assert!(lean.contains(".gnu_debuglink") && !lean.contains(".debug_line"), "{lean}");
    assert!(debug.contains(".debug_line"), "{debug}");
    let version = output(Command::new(agent).arg("--version"));
    assert!(version.status.success() && version.stderr.starts_with(b"v"), "{version:?}");
}

/// zsh looks elsewhere than on Debian.
fn in_rpm(name: &str) -> String {
    name.replace("vendor-completions/_", "site-functions/_")
}

/// rpm itself reads the package as we meant it.
#[test]
fn the_rpm_says_what_is_needed() {
    let query = |option: &str| {
        let mut command = Command::new("rpm");
        run(command.args(["--query", "--package", option]).arg(the_one(".rpm")))
    };
    let listed: BTreeSet<String> = query("--list").lines().map(str::to_owned).collect();
    for (name, _) in FILES {
        let name = format!("/{}", in_rpm(name));
        assert!(listed.contains(&name), "{name} is not in {listed:?}");
    }
    assert!(listed.contains("/usr/bin/flanneld"), "the alias");
    assert_eq!(query("--configfiles"), "/etc/sysconfig/flanneld\n");
    let requires = query("--requires");
    assert!(requires.contains("libc.so.6(GLIBC_2."), "{requires}");
    assert!(query("--conflicts").contains("flannel"), "two daemons of one name");
    let digests =
        run(Command::new("rpm").args(["--checksig", "--nosignature"]).arg(the_one(".rpm")));
    assert!(digests.contains("digests OK"), "{digests}");
    let info = query("--info");
    for line in ["Name        : flannel-ebpf", "Build Host  : localhost", "Architecture: "] {
        assert!(info.contains(line), "{line} is not in {info}");
    }
    let scripts = query("--scripts");
    for kind in ["postinstall", "preuninstall", "postuninstall"] {
        let title = format!("{kind} scriptlet (using /bin/sh):\n");
        let script = scripts.split_once(&title).unwrap_or_else(|| panic!("no {kind}: {scripts}")).1;
        let script = script.split(" scriptlet (").next().expect("a script");
        // The next title's first word, or nothing.
        let end = script.rfind("fi\n").expect("the last line") + "fi\n".len();
        sound(kind, &script[..end]);
    }
}

/// A script of packages is read by the smallest shell.
#[track_caller]
fn sound(name: &str, script: &str) {
    let output = output(Command::new("dash").args(["-n", "-c", script]));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{name}: {said}\n{script}");
}

/// At a removal, and only then, the agent's work goes. systemctl and the agent write down
/// how they are called.
#[test]
fn the_rpms_scripts_tell_an_upgrade_from_a_removal() {
    let called = |name: &str, left: &str| {
        let text = flannel_tests::root::packaged(&format!("rpm/{name}"));
        let text = text
            .replace("systemctl ", "echo systemctl ")
            .replace("/usr/bin/flannel-agent ", "echo flannel-agent ")
            .replace("[ -d /run/systemd/system ]", "true")
            .replace("[ -e /var/lib/flannel-ebpf/state.json ]", "true");
        run(Command::new("dash").args(["-c", &text, "script", left]))
    };
    let stops = "systemctl --no-reload disable --now flannel-agent.service flanneld.service\n";
    let restarts = "systemctl --no-block try-restart flannel-agent.service flanneld.service\n";
    let reloads = "systemctl daemon-reload\n";
    assert_eq!(called("post", "1"), reloads);
    assert_eq!(called("post", "2"), format!("{reloads}{restarts}"));
    assert_eq!(called("preun", "1"), "");
    assert_eq!(called("preun", "0"), format!("{stops}flannel-agent cleanup\n"));
    assert_eq!(called("postun", "1"), reloads);
}

#[test]
fn the_bill_of_materials_names_the_agent_and_its_libraries() {
    let mut command = Command::new("dpkg-deb");
    let deb = tempfile::tempdir().expect("a temporary directory");
    run(command.arg("-x").arg(the_one(".deb")).arg(deb.path()));
    let path = deb.path().join("usr/share/doc/flannel-ebpf/sbom.cdx.json");
    let bill = fs::read_to_string(path).expect("the bill of materials");
    let bill: serde_json::Value = serde_json::from_str(&bill).expect("JSON");
    assert_eq!((&bill["bomFormat"], &bill["specVersion"]), (&"CycloneDX".into(), &"1.5".into()));
    assert_eq!(bill["metadata"]["component"]["name"], "flannel-agent");
    assert_eq!(bill["metadata"]["component"]["version"], env!("CARGO_PKG_VERSION"));
    let components = bill["components"].as_array().expect("components");
    let aya = components.iter().find(|component| component["name"] == "aya").expect("aya");
    assert_eq!(
        aya["purl"],
        format!("pkg:cargo/aya@{}", aya["version"].as_str().expect("a version"))
    );
    assert!(aya["licenses"][0]["expression"].as_str().is_some_and(|text| text.contains("MIT")));
}

#[test]
fn control_says_what_is_needed() {
    let control = run(Command::new("dpkg-deb").arg("-f").arg(the_one(".deb")));
    let field = |name: &str| {
        let line = control.lines().find_map(|line| line.strip_prefix(&format!("{name}: ")));
        line.unwrap_or_else(|| panic!("no {name} in {control}")).to_owned()
    };
    assert_eq!(field("Package"), "flannel-ebpf");
    assert_eq!(field("Version"), env!("CARGO_PKG_VERSION"));
    assert!(field("Depends").starts_with("libc6 (>= 2."), "{control}");
    assert!(field("Installed-Size").parse::<u64>().is_ok_and(|size| size > 5000), "{control}");
    let mut unpack = Command::new("dpkg-deb");
    let dir = tempfile::tempdir().expect("a temporary directory");
    run(unpack.arg("-e").arg(the_one(".deb")).arg(dir.path()));
    let conffiles = fs::read_to_string(dir.path().join("conffiles")).expect("conffiles");
    assert_eq!(conffiles, "/etc/sysconfig/flanneld\n");
}

/// Installs, upgrades, removes and purges in a copy of this machine's files, which
/// lasts as long as the namespace. `$1` is the package, `$2` an empty directory,
/// `$3` where to put lists.
///
/// systemctl is one that writes down how it is called; the rest is real.
const COME_AND_GO: &str = r#"set -e
deb=$1 work=$2 lists=$3
mount -t tmpfs tmpfs "$work"
mkdir "$work/upper" "$work/work" "$work/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$work/upper,workdir=$work/work" "$work/root"
mount -t proc proc "$work/root/proc"
mount --rbind /dev "$work/root/dev"
mount -t tmpfs tmpfs "$work/root/run"
mkdir -p "$work/root/run/systemd/system" "$work/root/run/bin"
cat > "$work/root/run/bin/systemctl" <<'SYSTEMCTL'
#!/bin/sh
echo "$*" >> /run/calls
SYSTEMCTL
chmod 755 "$work/root/run/bin/systemctl"
cp "$deb" "$work/root/run/flannel-ebpf.deb"
export PATH="/run/bin:$PATH" DEBIAN_FRONTEND=noninteractive
# All but dpkg's own notes, and man's index.
list() {
    (cd "$work/upper" && find . \( -path ./var/lib/dpkg -o -path ./var/cache -o -path ./var/log \) \
        -prune -o ! -type d -print | sort)
}
did() {
    list > "$lists/$1.files"
    mv "$work/root/run/calls" "$lists/$1.calls"
}
list > "$lists/before.files"
chroot "$work/root" dpkg -i /run/flannel-ebpf.deb
chroot "$work/root" /usr/bin/flanneld --version
did install
echo '# mine' >> "$work/root/etc/sysconfig/flanneld"
chroot "$work/root" dpkg -i /run/flannel-ebpf.deb
did upgrade
grep -q '# mine' "$work/root/etc/sysconfig/flanneld"
ip link set lo up
ip link add flannel.1 address 02:00:00:00:00:01 type vxlan id 1 dstport 8472 local 127.0.0.1 nolearning
mkdir -p "$work/root/var/lib/flannel-ebpf"
echo '{"version":1,"public_ip":"192.0.2.1","subnet":"10.5.1.0/24","vtep_mac":"02:00:00:00:00:01",
"device":"flannel.1","vni":1,"network":"10.5.0.0/16"}' > "$work/root/var/lib/flannel-ebpf/state.json"
chroot "$work/root" dpkg -r flannel-ebpf
did remove
! ip link show flannel.1
mkdir -p "$work/root/var/lib/flannel-ebpf"; touch "$work/root/var/lib/flannel-ebpf/left"
chroot "$work/root" dpkg --purge flannel-ebpf
did purge
! test -e "$work/root/etc/sysconfig" || test -e /etc/sysconfig
! test -e "$work/root/var/lib/flannel-ebpf"
"#;

#[test]
fn it_comes_and_goes_cleanly() {
    let work = tempfile::tempdir().expect("a temporary directory");
    let lists = tempfile::tempdir().expect("a temporary directory");
    let mut command = Command::new("unshare");
    command.args(["--mount", "--net", "sh", "-c", COME_AND_GO, "sh"]);
    let said = run(command.arg(the_one(".deb")).arg(work.path()).arg(lists.path()));
    let read = |name: &str| fs::read_to_string(lists.path().join(name)).expect("a list");
    let lines =
        |name: &str| -> BTreeSet<String> { read(name).lines().map(str::to_owned).collect() };

    let before = lines("before.files");
    let installed = lines("install.files");
    for (name, _) in FILES.iter().filter(|(name, _)| !name.starts_with("usr/share/doc")) {
        // Images of containers leave out manual pages.
        let left_out = name.starts_with("usr/share/man");
        assert!(left_out || installed.contains(&format!("./{name}")), "{name}: {said}");
    }
    // Nothing is started: the node's owner says which unit, and where etcd is.
    assert_eq!(read("install.calls").lines().collect::<BTreeSet<_>>(), ["daemon-reload"].into());
    let restarts = read("upgrade.calls").lines().filter(|call| call.contains("restart")).count();
    assert_eq!(restarts, 1, "{}", read("upgrade.calls"));
    assert!(!read("upgrade.calls").contains("stop") && !read("upgrade.calls").contains("disable"));
    let stops = "--no-reload disable --now flannel-agent.service flanneld.service";
    assert_eq!(read("remove.calls").lines().filter(|call| *call == stops).count(), 1);
    assert!(said.contains("deleted flannel.1"), "{said}");
    let mut kept = lines("remove.files");
    kept.retain(|file| !before.contains(file));
    assert_eq!(kept, ["./etc/sysconfig/flanneld".to_owned()].into(), "what is configured stays");
    assert_eq!(lines("purge.files"), before, "purge leaves nothing");
}
