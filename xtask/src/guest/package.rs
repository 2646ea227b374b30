//! Debian's kernel packages, fetched by apt and unpacked below the target
//! directory; nothing is installed.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use fs_err as fs;

use crate::workspace::{as_root, output, run as run_command, target_dir};

/// An unpacked kernel.
pub(crate) struct Kernel {
    /// Directory for all files of this kernel.
    pub(crate) dir: PathBuf,
    /// `vmlinuz`.
    pub(crate) image: PathBuf,
    /// `lib/modules/<version>` of the package.
    pub(crate) modules: PathBuf,
    /// `uname -r`.
    pub(crate) version: String,
}

/// Where all files of a release's kernel are.
pub(crate) fn dir(release: &str) -> PathBuf {
    target_dir().join("kernels").join(release)
}

/// The kernel of a release such as "6.1": the one that is unpacked already,
/// else the newest that apt has.
///
/// # Errors
/// apt has none, or cannot fetch it.
pub(crate) fn get(release: &str) -> Result<Kernel> {
    if !release.split('.').all(|part| part.parse::<u16>().is_ok()) {
        bail!("{release:?} is no kernel release such as 6.1");
    }
    let dir = dir(release);
    if let Some(kernel) = unpacked(&dir)? {
        return Ok(kernel);
    }
    let package = match newest(release)? {
        Some(package) => package,
        None => {
            run_command(as_root("apt-get").args(["update", "-qq"]))?;
            newest(release)?
                .with_context(|| format!("apt has no linux-image-{release}.*-cloud-amd64"))?
        }
    };
    eprintln!("setup: apt-get download {package}");
    fs::create_dir_all(&dir)?;
    let download = || run_command(quiet(&package).current_dir(&dir));
    if download().is_err() {
        // Old lists name versions that the mirror has no more.
        run_command(as_root("apt-get").args(["update", "-qq"]))?;
        download()?;
    }
    let archive = entries(&dir)?
        .into_iter()
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"));
    let archive = archive.with_context(|| format!("no package in {}", dir.display()))?;
    // Under its name only when it is whole: an interrupted run leaves nothing
    // that looks like a kernel.
    let part = dir.join("part");
    run_command(Command::new("dpkg-deb").arg("--extract").arg(&archive).arg(&part))?;
    uncompress(&part.join("lib/modules"))?;
    fs::rename(&part, dir.join("package"))?;
    fs::remove_file(&archive)?;
    unpacked(&dir)?.with_context(|| format!("{package} holds no kernel"))
}

/// The download as root would drop to a user who may not write here.
fn quiet(package: &str) -> Command {
    let mut command = Command::new("apt-get");
    command.args(["-o", "APT::Sandbox::User=root", "-qq", "download", package]);
    command
}

/// Newer kernels' modules are compressed, which busybox's tools do not read.
fn uncompress(modules: &Path) -> Result<()> {
    let names = ["-name", "*.ko.xz", "-exec", "busybox", "unxz", "{}", "+"];
    run_command(Command::new("find").arg(modules).args(names))
}

/// The cloud flavour: a third of the size, and all that nodes' networks are
/// made of is in it.
fn pattern(release: &str) -> String {
    // linux-image-6.1.0-56-..., linux-image-6.12.117+deb12-...
    let version = r"[0-9]+(-|\+deb)[0-9]+";
    format!(r"^linux-image-{}\.{version}-cloud-amd64-unsigned$", release.replace('.', r"\."))
}

fn newest(release: &str) -> Result<Option<String>> {
    let pattern = pattern(release);
    let found = output(Command::new("apt-cache").args(["search", "--names-only", &pattern]))?;
    let names = found.lines().filter_map(|line| line.split_whitespace().next());
    Ok(names.max_by_key(|name| numbers(name)).map(str::to_owned))
}

/// The numbers in a name, in order: versions compare by them.
fn numbers(name: &str) -> Vec<u64> {
    let parts = name.split(|letter: char| !letter.is_ascii_digit());
    parts.filter_map(|part| part.parse().ok()).collect()
}

fn unpacked(dir: &Path) -> Result<Option<Kernel>> {
    let all = dir.join("package/lib/modules");
    let Some(modules) = entries(&all)?.into_iter().next() else { return Ok(None) };
    let version = modules.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let image = dir.join("package/boot").join(format!("vmlinuz-{version}"));
    Ok(Some(Kernel { dir: dir.to_path_buf(), image, modules, version }))
}

/// Paths in a directory; none if there is no directory.
fn entries(dir: &Path) -> Result<Vec<PathBuf>> {
    if !dir.exists() {
        return Ok(Vec::new());
    }
    let read = fs::read_dir(dir)?;
    read.map(|entry| Ok(entry?.path())).collect()
}

#[cfg(test)]
mod tests {
    use super::numbers;

    #[test]
    fn versions_compare_by_number() {
        let name = |version| format!("linux-image-6.1.0-{version}-cloud-amd64-unsigned");
        assert!(numbers(&name(9)) < numbers(&name(10)));
        assert!(numbers(&name(10)) < numbers(&name(56)));
        let name = |version| format!("linux-image-6.12.{version}+deb12-cloud-amd64-unsigned");
        assert!(numbers(&name(99)) < numbers(&name(117)));
    }
}
