//! Which file goes where.

use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use fs_err as fs;

use super::{Product, libraries, licences, sbom};
use crate::workspace::{output, root, run as run_command};

/// Where documents go.
pub(super) const DOC: &str = "usr/share/doc/flannel-ebpf";
/// Directories of ours alone.
pub(super) const OWN: [&str; 2] = [DOC, "usr/libexec/flannel"];
/// Files that a user may change.
pub(super) const CONFFILES: &[&str] = &["etc/sysconfig/flanneld"];

/// Files of the sources, where they go, and whether they can be run.
const FILES: &[(&str, &str, bool)] = &[
    ("packaging/flanneld-start", "usr/bin/flanneld-start", true),
    ("packaging/mk-docker-opts.sh", "usr/libexec/flannel/mk-docker-opts.sh", true),
    ("packaging/flannel-agent.service", "usr/lib/systemd/system/flannel-agent.service", false),
    ("packaging/flanneld.service", "usr/lib/systemd/system/flanneld.service", false),
    ("packaging/flannel-rules.service", "usr/lib/systemd/system/flannel-rules.service", false),
    ("packaging/sysconfig/flanneld", "etc/sysconfig/flanneld", false),
    ("packaging/network/10-flannel.network", "usr/lib/systemd/network/10-flannel.network", false),
    ("packaging/network/10-flannel.link", "usr/lib/systemd/network/10-flannel.link", false),
    ("packaging/network/networkd.conf", "usr/lib/systemd/networkd.conf.d/10-flannel.conf", false),
    ("packaging/NetworkManager/flannel.conf", "usr/lib/NetworkManager/conf.d/flannel.conf", false),
    (
        "packaging/docker.service.d/flannel.conf",
        "usr/share/doc/flannel-ebpf/examples/docker.service.d/flannel.conf",
        false,
    ),
    (
        "packaging/cni/10-flannel.conflist",
        "usr/share/doc/flannel-ebpf/examples/10-flannel.conflist",
        false,
    ),
    (
        "packaging/prometheus/flannel.rules.yml",
        "usr/share/doc/flannel-ebpf/examples/flannel.rules.yml",
        false,
    ),
    ("packaging/grafana/flannel.json", "usr/share/doc/flannel-ebpf/examples/grafana.json", false),
    ("packaging/deb/copyright", "usr/share/doc/flannel-ebpf/copyright", false),
];

/// Pages, and what they link to. They lie to each other as in the sources.
const PAGES: &[&str] = &[
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "README.md",
    "SECURITY.md",
    "flannel-ebpf/LICENSE-GPL-2.0",
    "flannel-ebpf/LICENSE-MIT",
];
/// A folder of them.
const FOLDER: &str = "docs";

/// Shells with the file in which each looks for completions.
const SHELLS: &[(&str, &str)] = &[
    ("bash", "usr/share/bash-completion/completions/flannel-agent"),
    ("zsh", "usr/share/zsh/vendor-completions/_flannel-agent"),
    ("fish", "usr/share/fish/vendor_completions.d/flannel-agent.fish"),
];

/// Lays everything out below `stage`.
pub(super) fn lay(stage: &Path, agent: &Path, product: &Product) -> Result<()> {
    for (from, to, executable) in FILES {
        put(&stage.join(to), &read(&root().join(from))?, *executable)?;
    }
    put(&stage.join("usr/bin/flannel-agent"), &read(agent)?, true)?;
    symlink("flannel-agent", stage.join("usr/bin/flanneld"))?;
    documents(stage)?;
    generated(stage, agent, product)?;
    let libraries = libraries::linked(product.target.triple())?;
    let third = stage.join(DOC).join("third-party.txt");
    put(&third, licences::third_party(&libraries)?.as_bytes(), false)?;
    compress(&third)?;
    let bill = sbom::json(&libraries, &date(&product.epoch)?)?;
    put(&stage.join(DOC).join("sbom.cdx.json"), &bill, false)?;
    set_times(stage, product)
}

/// A time stamp as RFC 3339 has it.
fn date(epoch: &str) -> Result<String> {
    output(Command::new("date").args(["--utc", "+%FT%TZ"]).arg(format!("--date=@{epoch}")))
}

/// Gives every file the same time.
pub(super) fn set_times(stage: &Path, product: &Product) -> Result<()> {
    run_command(
        Command::new("find")
            .arg(stage)
            .args(["-exec", "touch", "--no-dereference"])
            .arg(format!("--date=@{}", product.epoch))
            .args(["{}", "+"]),
    )
}

/// Names of all files and links below a folder, sorted.
pub(super) fn files(folder: &Path) -> Result<Vec<String>> {
    let mut command = Command::new("find");
    let found = output(command.current_dir(folder).args([".", "!", "-type", "d"]))?;
    let names = found.lines().filter_map(|line| line.strip_prefix("./"));
    let mut names: Vec<_> = names.map(str::to_owned).collect();
    names.sort();
    Ok(names)
}

/// [`OWN`] and all directories below, sorted.
pub(super) fn own_directories(stage: &Path) -> Result<Vec<String>> {
    let mut command = Command::new("find");
    let found = output(command.current_dir(stage).args(OWN).args(["-type", "d"]))?;
    let mut names: Vec<_> = found.lines().map(str::to_owned).collect();
    names.sort();
    Ok(names)
}

fn documents(stage: &Path) -> Result<()> {
    let below = files(&root().join(FOLDER))?;
    let below = below.into_iter().map(|name| format!("{FOLDER}/{name}"));
    for name in PAGES.iter().map(|name| (*name).to_owned()).chain(below) {
        put(&stage.join(DOC).join(&name), &read(&root().join(&name))?, false)?;
    }
    Ok(())
}

/// What the agent writes itself.
fn generated(stage: &Path, agent: &Path, product: &Product) -> Result<()> {
    let agent = || product.target.run(agent);
    for (shell, to) in SHELLS {
        let script = agent().args(["completions", shell]).output()?;
        put(&stage.join(to), &script.stdout, false)?;
    }
    let pages = stage.join("usr/share/man/man8");
    run_command(agent().arg("man").arg("--dir").arg(&pages))?;
    for entry in fs::read_dir(&pages)? {
        let path = entry?.path();
        set_mode(&path, 0o644)?;
        compress(&path)?;
    }
    Ok(())
}

fn compress(path: &Path) -> Result<()> {
    run_command(Command::new("gzip").args(["--no-name", "--best", "--force"]).arg(path))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    Ok(fs::read(path)?)
}

pub(super) fn put(path: &Path, contents: &[u8], executable: bool) -> Result<()> {
    let text = || path.display().to_string();
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).with_context(text)?;
    }
    fs::write(path, contents).with_context(text)?;
    set_mode(path, if executable { 0o755 } else { 0o644 })
}

pub(super) fn set_mode(path: &Path, mode: u32) -> Result<()> {
    let mode = std::fs::Permissions::from_mode(mode);
    Ok(fs::set_permissions(path, mode)?)
}
