//! Directories that are made of Debian's (or Ubuntu's) packages, once, below the target
//! directory: the system that end-to-end cases boot, and what the agent's container holds.
//! The packages are those of this machine's release, from where its apt has them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use fs_err as fs;

use crate::workspace::{as_root, run, target_dir};

/// What is installed beside a minimal system: what nodes have.
const PACKAGES: &[&str] = &[
    "busybox-static",
    "dbus",
    "docker.io",
    "etcd-client",
    "etcd-server",
    "firewalld",
    "iproute2",
    "iptables",
    "iputils-ping",
    "nftables",
    "procps",
    "systemd",
    "systemd-sysv",
];

/// Runs in the new system: each case starts what it needs.
const SETTLE: &str = r#"chroot "$1" systemctl --quiet disable docker.service docker.socket \
    containerd.service etcd.service firewalld.service apt-daily.timer apt-daily-upgrade.timer"#;

/// What the agent's container holds beside the agent.
const CONTAINER: &[&str] = &["iptables", "libc6", "libgcc-s1", "nftables"];

/// Takes away what only a machine has, and chooses iptables' kind as Debian does.
const TRIM: &str = r#"cd "$1" && rm -rf dev etc/apt etc/dpkg etc/hostname etc/resolv.conf \
    etc/fstab usr/lib/*/gconv usr/share/lintian var/lib/apt var/lib/dpkg
for end in "" -save -restore; do ln -s "iptables-nft$end" "usr/sbin/iptables$end"; done"#;

/// A directory that is made of packages.
struct System {
    /// Its name below the target directory.
    name: &'static str,
    packages: &'static [&'static str],
    /// mmdebstrap's further words.
    options: &'static [&'static str],
    /// Runs when the packages are there; `$1` is the directory.
    finish: &'static str,
}

const BOOTED: System = System {
    name: "root",
    packages: PACKAGES,
    options: &["--variant=minbase", "--dpkgopt=force-unsafe-io"],
    finish: SETTLE,
};

const CONTAINED: System = System {
    name: "container",
    packages: CONTAINER,
    options: &[
        "--variant=extract",
        "--dpkgopt=path-exclude=/usr/share/*",
        "--dpkgopt=path-include=/usr/share/doc/*/copyright",
    ],
    finish: TRIM,
};

/// Makes the systems unless they are there.
///
/// # Errors
/// The machine is no Debian, or a package cannot be had.
pub(crate) fn prepare() -> Result<()> {
    BOOTED.make()?;
    container().map(|_| ())
}

/// The directory with all that the agent needs in a container.
///
/// # Errors
/// As for [`prepare`].
pub(crate) fn container() -> Result<PathBuf> {
    CONTAINED.make()
}

impl System {
    /// Makes it unless it is there.
    fn make(&self) -> Result<PathBuf> {
        let dir = target_dir().join("debian");
        let (root, stamp) = (dir.join(self.name), dir.join(format!("{}.made-of", self.name)));
        let wanted =
            format!("{}\n{}\n{}\n", self.packages.join(" "), self.options.join(" "), self.finish);
        if root.exists() && fs::read_to_string(&stamp).is_ok_and(|found| found == wanted) {
            return Ok(root);
        }
        let release = fs::read_to_string("/etc/os-release").context("/etc/os-release")?;
        let suite = codename(&release).context("/etc/os-release names no VERSION_CODENAME")?;
        let sources = sources(suite)?;
        if sources.is_empty() {
            bail!("no file of /etc/apt has packages of {suite}");
        }
        eprintln!("setup: mmdebstrap {suite} for {}: {}", root.display(), self.packages.join(" "));
        fs::create_dir_all(&dir)?;
        // Under its name only when it is whole.
        let part = dir.join(format!("{}.part", self.name));
        run(as_root("rm").arg("-rf").args([&part, &root]))?;
        let mut command = as_root("mmdebstrap");
        command.arg("--quiet").args(self.options);
        command.arg(format!("--include={}", self.packages.join(",")));
        run(command.arg(suite).arg(&part).args(sources))?;
        run(as_root("sh").args(["-ec", self.finish, "sh"]).arg(&part))?;
        run(as_root("mv").args([&part, &root]))?;
        fs::write(&stamp, wanted)?;
        Ok(root)
    }
}

fn codename(release: &str) -> Option<&str> {
    let mut lines = release.lines();
    Some(lines.find_map(|line| line.strip_prefix("VERSION_CODENAME="))?.trim_matches('"'))
}

/// The files that tell this machine's apt where packages of `suite` are.
fn sources(suite: &str) -> Result<Vec<PathBuf>> {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    if let Ok(more) = fs::read_dir("/etc/apt/sources.list.d") {
        files.extend(more.flatten().map(|entry| entry.path()));
    }
    files.sort();
    files.retain(|file| is_list(file) && file.exists());
    let mut found = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file)?;
        if names(&text, suite) {
            found.push(file);
        }
    }
    Ok(found)
}

fn is_list(file: &Path) -> bool {
    file.extension().is_some_and(|extension| extension == "list" || extension == "sources")
}

/// Whether a line that is no comment has this suite as a word.
fn names(text: &str, suite: &str) -> bool {
    let lines = text.lines().filter(|line| !line.trim_start().starts_with('#'));
    lines.flat_map(str::split_whitespace).any(|word| word == suite)
}

#[cfg(test)]
mod tests {
    use super::{codename, names};

    #[test]
    fn the_codename_is_the_releases() {
        assert_eq!(codename("ID=debian\nVERSION_CODENAME=bookworm\n"), Some("bookworm"));
        assert_eq!(codename("VERSION_CODENAME=\"noble\""), Some("noble"));
        assert_eq!(codename("ID=arch\n"), None);
    }

    #[test]
    fn a_suite_is_a_whole_word() {
        assert!(names("Suites: bookworm bookworm-updates\n", "bookworm"));
        assert!(names("deb http://mirror.invalid/debian bookworm main\n", "bookworm"));
        assert!(!names("deb http://mirror.invalid/apt tools-bookworm main\n", "bookworm"));
        assert!(!names("# deb http://mirror.invalid/debian bookworm main\n", "bookworm"));
    }
}
