//! The Debian package, by dpkg-deb: there are few files, and no tool has to be
//! installed for it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use fs_err as fs;

use super::needs::Needs;
use super::{DESCRIPTION, Product, tree};
use crate::workspace::{output, root, run as run_command};

const SCRIPTS: [&str; 3] = ["postinst", "prerm", "postrm"];

/// Packs what is below `stage`.
pub(super) fn build(stage: &Path, out: &Path, product: &Product, needs: &Needs) -> Result<PathBuf> {
    let debian = stage.join("DEBIAN");
    let size = size_in_kilobytes(stage)?;
    let control = control(product, size, &depends(needs));
    tree::put(&debian.join("control"), control.as_bytes(), false)?;
    let conffiles: String = tree::CONFFILES.iter().map(|file| format!("/{file}\n")).collect();
    tree::put(&debian.join("conffiles"), conffiles.as_bytes(), false)?;
    for name in SCRIPTS {
        let path = root().join("packaging/deb").join(name);
        let script = fs::read(&path)?;
        tree::put(&debian.join(name), &script, true)?;
    }
    tree::set_times(stage, product)?;
    let file = out.join(format!("{}.deb", product.name()));
    run_command(
        Command::new("dpkg-deb")
            .env("SOURCE_DATE_EPOCH", &product.epoch)
            .args(["--root-owner-group", "-Zxz", "-z3", "--build"])
            .arg(stage)
            .arg(&file),
    )?;
    fs::remove_dir_all(&debian)?;
    Ok(file)
}

fn control(product: &Product, size: u64, depends: &str) -> String {
    let (version, arch) = (&product.version, product.target.debian());
    let description: String = DESCRIPTION.lines().map(|line| format!(" {line}\n")).collect();
    format!(
        "Package: flannel-ebpf
Version: {version}
Architecture: {arch}
Maintainer: the flannel-ebpf authors <maintainers@flannel-ebpf.invalid>
Installed-Size: {size}
Depends: {depends}
Recommends: nftables | iptables
Suggests: etcd-server, docker.io, prometheus
Conflicts: flannel
Provides: flannel
Section: net
Priority: optional
Description: flannel's daemon for etcd clusters, with an eBPF VXLAN data plane
{description}"
    )
}

fn depends(needs: &Needs) -> String {
    let mut depends = match needs.glibc {
        Some((major, minor)) => format!("libc6 (>= {major}.{minor})"),
        None => "libc6".to_owned(),
    };
    if needs.libgcc {
        depends.push_str(", libgcc-s1");
    }
    depends
}

fn size_in_kilobytes(stage: &Path) -> Result<u64> {
    let said = output(Command::new("du").args(["--apparent-size", "-sk"]).arg(stage))?;
    let size = said.split_whitespace().next().unwrap_or_default();
    size.parse().with_context(|| format!("read a size from du's answer {said:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_debians_packages() {
        let needs = |glibc, libgcc| depends(&Needs { glibc, libgcc });
        assert_eq!(needs(Some((2, 34)), true), "libc6 (>= 2.34), libgcc-s1");
        assert_eq!(needs(None, false), "libc6");
    }

    #[test]
    fn scripts_are_sound() {
        for name in SCRIPTS {
            let path = root().join("packaging/deb").join(name);
            let text = fs::read_to_string(&path).unwrap();
            assert!(text.starts_with("#!/bin/sh\n") && text.contains("\nset -e\n"), "{name}");
            assert!(Command::new("sh").arg("-n").arg(&path).status().unwrap().success(), "{name}");
        }
    }
}
