//! The packages: what is in them, and that Debian's comes and goes cleanly.

mod installation;

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
    command.args(["xtask", "dist", "--container", "--agent"]).arg(agent::program());
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
    ("usr/lib/systemd/system/flannel-rules.service", false),
    ("usr/lib/systemd/system/flanneld.service", false),
    ("usr/libexec/flannel/mk-docker-opts.sh", true),
    ("usr/share/bash-completion/completions/flannel-agent", false),
    ("usr/share/doc/flannel-ebpf/CHANGELOG.md", false),
    ("usr/share/doc/flannel-ebpf/LICENSE", false),
    ("usr/share/doc/flannel-ebpf/flannel-ebpf/LICENSE-GPL-2.0", false),
    ("usr/share/doc/flannel-ebpf/flannel-ebpf/LICENSE-MIT", false),
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
    for unit in ["flannel-agent.service", "flannel-rules.service", "flanneld.service"] {
        let text = fs::read_to_string(dir.path().join("usr/lib/systemd/system").join(unit));
        let text = text.expect("the unit");
        let programs = text.lines().filter_map(|line| line.strip_prefix("ExecStart"));
        for program in programs {
            let path = program.split_once('=').expect("a program").1;
            let path = path.split(' ').next().expect("a path").trim_start_matches(['-', '/']);
            assert!(dir.path().join(path).exists(), "{unit}: {path}");
        }
    }
    the_binary_is_stripped(&dir.path().join("usr/bin/flannel-agent"));
    the_pages_links_lead_somewhere(&dir.path().join("usr/share/doc/flannel-ebpf"));
}

/// tar gives directories that are there the mode and time of the archive's.
#[test]
fn the_tarball_leaves_the_nodes_directories_alone() {
    let root = tempfile::tempdir().expect("a temporary directory");
    let bin = root.path().join("usr/bin");
    fs::create_dir_all(&bin).expect("directories of the node");
    // As Fedora has them.
    for dir in [root.path(), &bin] {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o555)).expect("a mode");
    }
    run(Command::new("tar").arg("-xzf").arg(the_one(".tar.gz")).arg("-C").arg(root.path()));
    for dir in [root.path(), &bin] {
        let mode = fs::metadata(dir).expect("it is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o555, "{}", dir.display());
    }
    let doc = root.path().join("usr/share/doc/flannel-ebpf/docs");
    assert_eq!(fs::metadata(doc).expect("ours").permissions().mode() & 0o777, 0o755);
}

fn the_pages_links_lead_somewhere(doc: &Path) {
    let pages = run(Command::new("find").arg(doc).args(["-name", "*.md"]));
    assert!(pages.lines().count() > 20, "{pages}");
    for page in pages.lines().map(Path::new) {
        let text = fs::read_to_string(page).expect("a page");
        let targets = text.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next());
        for target in targets.filter(|target| !target.is_empty() && !target.contains("://")) {
            let there = page.parent().expect("a folder").join(target).exists();
            assert!(there, "{}: {target}", page.display());
        }
    }
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
    let documents = query("--docfiles");
    for path in ["/usr/share/man/man8/flannel-agent.8.gz", "/usr/share/doc/flannel-ebpf/README.md"]
    {
        assert!(documents.lines().any(|line| line == path), "{path} is not in {documents}");
    }
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
    let stops = "systemctl --no-reload disable --now flannel-agent.service flanneld.service\n\
                 systemctl stop flannel-rules.service\n";
    let restarts = "systemctl --no-block try-restart flannel-agent.service flanneld.service \
                    flannel-rules.service\n";
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
