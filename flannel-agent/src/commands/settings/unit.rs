//! The settings of the node's unit, read as systemd reads them.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use flannel_core::unit::specifiers::Specifiers;
use flannel_core::unit::{EnvironmentFile, Start, Variables, environment, glob};

use super::UnitSettings;

/// The units that start a daemon.
const UNITS: [&str; 2] = ["flannel-agent.service", "flanneld.service"];
/// Where unit files are; the first one of a name wins.
const FOLDERS: [&str; 5] = [
    "etc/systemd/system",
    "run/systemd/system",
    "usr/local/lib/systemd/system",
    "usr/lib/systemd/system",
    "lib/systemd/system",
];
/// What other service managers give the daemon; the first one that is there.
const FILES: [&str; 2] = ["/etc/sysconfig/flanneld", "/etc/default/flanneld"];
/// The kernel tells the node's name there.
const HOST: &str = "/proc/sys/kernel/hostname";
/// How it is started then.
const COMMAND: &str = "/usr/bin/flannel-agent $FLANNEL_OPTIONS";

/// The settings of the unit that is enabled below this root, else of the first that is
/// there, else of [`FILES`].
pub(super) fn settings(root: &Path) -> Option<UnitSettings> {
    let units: Vec<(&str, Start)> =
        UNITS.iter().filter_map(|unit| Some((*unit, start(root, unit)?))).collect();
    let chosen = units.iter().find(|(unit, _)| is_enabled(root, unit)).or(units.first());
    match chosen {
        Some((unit, start)) => told(root, Some(unit), start.clone()),
        None => {
            let path = FILES.iter().find(|path| at(root, path).is_file())?;
            let file = EnvironmentFile { path: (*path).to_owned(), optional: false };
            let command = Some(COMMAND.to_owned());
            told(root, None, Start { files: vec![file], command, ..Start::default() })
        }
    }
}

fn told(root: &Path, unit: Option<&str>, start: Start) -> Option<UnitSettings> {
    let mut variables: Variables = start.variables.clone();
    let mut from: Vec<String> = unit.map(str::to_owned).into_iter().collect();
    for path in start.files.iter().flat_map(|file| paths(root, &file.path)) {
        if let Ok(text) = fs::read_to_string(at(root, &path)) {
            variables.extend(environment::variables(&text));
            from.push(path);
        }
    }
    let words = start.words(&variables).into_iter().map(OsString::from).collect();
    let flags = super::read(words, |name| variables.get(name).map(OsString::from))?;
    Some(UnitSettings { flags, from: from.join(" with ") })
}

/// How a unit starts its service, by its file and drop-ins; `None` if there is none.
fn start(root: &Path, unit: &str) -> Option<Start> {
    let host = fs::read_to_string(at(root, HOST)).ok();
    let host = host.as_deref().map(str::trim);
    let mut start = Start::of(Specifiers::new(unit, host));
    let file = FOLDERS.iter().map(|folder| root.join(folder).join(unit));
    start.add(&fs::read_to_string(file.into_iter().find(|path| path.exists())?).ok()?);
    for path in drop_ins(root, unit).values() {
        start.add(&fs::read_to_string(path).unwrap_or_default());
    }
    start.command.is_some().then_some(start)
}

/// The paths below the root that a pattern names, in order; one that is no pattern is its own.
fn paths(root: &Path, pattern: &str) -> Vec<String> {
    let mut found = vec![String::new()];
    for part in pattern.split('/').filter(|part| !part.is_empty()) {
        if !glob::is_pattern(part) {
            found.iter_mut().for_each(|path| *path += &format!("/{part}"));
            continue;
        }
        let within = |folder: String| {
            let entries = fs::read_dir(at(root, &folder)).into_iter().flatten().flatten();
            let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
            names.filter(|name| glob::fits(part, name)).map(move |name| format!("{folder}/{name}"))
        };
        found = found.into_iter().flat_map(within).collect();
        found.sort_unstable();
    }
    found
}

/// The drop-ins of a unit by their names, which order them. Those of its own go before those of
/// all whose names begin like it up to a dash, and these before those of all services.
fn drop_ins(root: &Path, unit: &str) -> BTreeMap<OsString, PathBuf> {
    let dashes = unit.rmatch_indices('-').map(|(at, _)| format!("{}.service", &unit[..=at]));
    let names: Vec<String> = [unit.to_owned()].into_iter().chain(dashes).collect();
    let of = |folder| names.iter().map(move |name| (folder, name.as_str()));
    let own = FOLDERS.into_iter().flat_map(of);
    let mut found = BTreeMap::new();
    for (folder, name) in own.chain(FOLDERS.map(|folder| (folder, "service"))) {
        let folder = root.join(folder).join(format!("{name}.d"));
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.path().extension().is_some_and(|extension| extension == "conf") {
                found.entry(entry.file_name()).or_insert(entry.path());
            }
        }
    }
    found
}

/// Whether a boot starts it: another unit wants it.
fn is_enabled(root: &Path, unit: &str) -> bool {
    let folder = fs::read_dir(root.join(FOLDERS[0]));
    folder.into_iter().flatten().flatten().any(|entry| {
        let wants = entry.path();
        let kind = wants.extension().is_some_and(|kind| kind == "wants" || kind == "requires");
        kind && wants.join(unit).symlink_metadata().is_ok()
    })
}

fn at(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    const AGENT: &str = include_str!("../../../../packaging/flannel-agent.service");
    const FLANNELD: &str = include_str!("../../../../packaging/flanneld.service");
    const SYSCONFIG: &str = include_str!("../../../../packaging/sysconfig/flanneld");

    fn put(root: &Path, path: &str, text: &str) {
        let path = at(root, path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// Endpoints, prefix, and where they are from.
    fn etcd(root: &Path) -> (String, String, String) {
        let UnitSettings { flags, from } = settings(root).expect("there are settings");
        (flags.etcd.endpoints.join(","), flags.etcd.prefix, from)
    }

    #[test]
    fn each_unit_reads_the_packages_file_in_its_own_way() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        assert!(settings(root).is_none());
        put(root, "/usr/lib/systemd/system/flanneld.service", FLANNELD);
        put(root, "/etc/sysconfig/flanneld", SYSCONFIG);
        let (endpoints, prefix, from) = etcd(root);
        assert_eq!(
            (endpoints.as_str(), prefix.as_str()),
            ("http://127.0.0.1:2379", "/atomic.io/network")
        );
        assert_eq!(from, "flanneld.service with /etc/sysconfig/flanneld");
        let more = "FLANNELD_ETCD_ENDPOINTS=http://192.0.2.1:2379\nFLANNEL_OPTIONS=\"-ip-masq \\\n-etcd-prefix=/x\"\n";
        put(root, "/etc/sysconfig/flanneld", &format!("{SYSCONFIG}{more}"));
        assert_eq!(etcd(root).1, "/x");
        // The other one does not know the names of Fedora's package.
        put(root, "/usr/lib/systemd/system/flannel-agent.service", AGENT);
        assert_eq!(etcd(root).0, "http://192.0.2.1:2379");
        fs::create_dir_all(at(root, "/etc/systemd/system/multi-user.target.wants")).unwrap();
        let link = at(root, "/etc/systemd/system/multi-user.target.wants/flanneld.service");
        symlink("/usr/lib/systemd/system/flanneld.service", link).unwrap();
        assert_eq!(etcd(root).0, "http://127.0.0.1:2379", "it is the one that is enabled");
    }

    #[test]
    fn drop_ins_and_other_files_count() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        put(root, "/etc/default/flanneld", "FLANNELD_ETCD_PREFIX='/default'\n");
        assert_eq!(etcd(root).1, "/default");
        assert_eq!(etcd(root).2, "/etc/default/flanneld");
        put(root, "/lib/systemd/system/flannel-agent.service", AGENT);
        let drop_in = "[Service]\nEnvironment=FLANNELD_ETCD_PREFIX=/mine\n\
                       EnvironmentFile=\nEnvironmentFile=-/etc/mine\n";
        put(root, "/etc/systemd/system/flannel-agent.service.d/10-mine.conf", drop_in);
        assert_eq!(etcd(root).1, "/mine");
        put(root, "/etc/mine", "FLANNELD_ETCD_PREFIX=/file\n");
        assert_eq!(etcd(root).1, "/file", "files go before the unit's own variables");
        // Of one name the nearest counts; later names win.
        put(root, "/etc/systemd/system/service.d/10-mine.conf", "[Service]\nEnvironmentFile=\n");
        let all = |file: &str| format!("[Service]\nEnvironmentFile={file}\n");
        put(root, "/usr/lib/systemd/system/service.d/20-all.conf", &all("/etc/all/%H-*.env"));
        put(root, "/run/systemd/system/flannel-.service.d/20-all.conf", &all("/etc/%p.d/[a-y]*"));
        put(root, "/etc/flannel-agent.d/b", "FLANNELD_ETCD_PREFIX=/b\n");
        put(root, "/etc/flannel-agent.d/a", "FLANNELD_ETCD_PREFIX=/a\n");
        put(root, "/etc/flannel-agent.d/z", "FLANNELD_ETCD_PREFIX=/z\n");
        let from = "flannel-agent.service with /etc/mine with /etc/flannel-agent.d/a with \
                    /etc/flannel-agent.d/b";
        assert_eq!((etcd(root).1.as_str(), etcd(root).2.as_str()), ("/b", from));
        put(root, HOST, "node1\n");
        put(root, "/etc/all/node1-x.env", "FLANNELD_ETCD_PREFIX=/all\n");
        fs::remove_dir_all(at(root, "/run/systemd/system")).unwrap();
        assert_eq!(etcd(root).1, "/all");
        fs::remove_dir_all(at(root, "/usr/lib/systemd/system")).unwrap();
        put(root, "/etc/mine", "FLANNELD_ETCD_PREFIX=/file\nFLANNEL_OPTIONS=--no-such-flag\n");
        assert!(settings(root).is_none(), "no daemon would start by these");
    }
}
