//! The package for Fedora and its kin.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use fs_err as fs;
use rpm::{BuildConfig, CompressionType, Dependency, FileOptions, PackageBuilder, Scriptlet};

use super::needs::Needs;
use super::{Product, tree};
use crate::workspace::root;

/// What `rpm --excludedocs` leaves out.
const DOCUMENTS: [&str; 2] = ["usr/share/doc/", "usr/share/man/"];

/// Packs what is below `stage`.
///
/// # Errors
/// A file cannot be read or written.
pub(super) fn build(stage: &Path, out: &Path, product: &Product, needs: &Needs) -> Result<PathBuf> {
    let mut builder = PackageBuilder::new(
        "flannel-ebpf",
        &product.version,
        "Apache-2.0 AND (MIT OR GPL-2.0-only)",
        product.target.machine(),
        "flannel's daemon for etcd clusters, with an eBPF VXLAN data plane",
    );
    let date: u32 = product
        .epoch
        .parse()
        .with_context(|| format!("read the commit's time {:?}", product.epoch))?;
    builder
        .using_config(BuildConfig::v4().compression(CompressionType::Gzip).source_date(date))
        // Of this machine nothing is told.
        .build_host("localhost")
        .description(super::DESCRIPTION)
        .group("System Environment/Daemons")
        .conflicts(Dependency::any("flannel"))
        .provides(Dependency::any("flannel"))
        .recommends(Dependency::any("nftables"))
        .post_install_script(script("post")?)
        .pre_uninstall_script(script("preun")?)
        .post_uninstall_script(script("postun")?);
    if let Some((major, minor)) = needs.glibc {
        builder.requires(Dependency::any(format!("libc.so.6(GLIBC_{major}.{minor})(64bit)")));
    }
    if needs.libgcc {
        builder.requires(Dependency::any("libgcc_s.so.1()(64bit)"));
    }
    files(&mut builder, stage)?;
    let file = out.join(product.rpm());
    let package = builder.build().context("build the rpm")?;
    package.write_file(&file).with_context(|| format!("write {}", file.display()))?;
    Ok(file)
}

fn script(name: &str) -> Result<Scriptlet> {
    let path = root().join("packaging/rpm").join(name);
    let text = fs::read_to_string(&path)?;
    Ok(Scriptlet::new(text).prog(vec!["/bin/sh"]))
}

fn files(builder: &mut PackageBuilder, stage: &Path) -> Result<()> {
    for name in tree::files(stage)? {
        let from = stage.join(&name);
        let to = place(&name);
        if let Ok(link) = fs::read_link(&from) {
            let link = link.to_string_lossy().into_owned();
            builder.with_symlink(FileOptions::symlink(to, link))?;
            continue;
        }
        let mode = fs::metadata(&from)?.permissions().mode() & 0o777;
        let mut options = FileOptions::new(to).permissions(mode as u16);
        if tree::CONFFILES.contains(&name.as_str()) {
            options = options.config().noreplace();
        }
        if DOCUMENTS.iter().any(|folder| name.starts_with(folder)) {
            options = options.doc();
        }
        builder.with_file(&from, options).with_context(|| format!("pack {}", from.display()))?;
    }
    for directory in tree::own_directories(stage)? {
        builder.with_dir_entry(FileOptions::dir(format!("/{directory}")).permissions(0o755))?;
    }
    Ok(())
}

/// Where a file goes: zsh looks elsewhere than on Debian.
fn place(name: &str) -> String {
    format!("/{}", name.replace("/zsh/vendor-completions/", "/zsh/site-functions/"))
}
