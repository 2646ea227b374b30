//! The Debian package, by dpkg-deb: there are few files, and no tool has to be
//! installed for it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::{Product, tree};
use crate::workspace::{output, root, run as run_command};

const SCRIPTS: [&str; 3] = ["postinst", "prerm", "postrm"];

/// Packs what is below `stage`.
pub(super) fn build(stage: &Path, out: &Path, product: &Product) -> Result<PathBuf> {
    let debian = stage.join("DEBIAN");
    let size = size_in_kilobytes(stage)?;
    let depends = depends(&stage.join("usr/bin/flannel-agent"))?;
    tree::put(&debian.join("control"), control(product, size, &depends).as_bytes(), false)?;
    let conffiles: String = tree::CONFFILES.iter().map(|file| format!("/{file}\n")).collect();
    tree::put(&debian.join("conffiles"), conffiles.as_bytes(), false)?;
    for name in SCRIPTS {
        let path = root().join("packaging/deb").join(name);
        let script = fs::read(&path).with_context(|| path.display().to_string())?;
        tree::put(&debian.join(name), &script, true)?;
    }
    set_times(stage, product)?;
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
    let Product { version, arch, .. } = product;
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
 A drop-in replacement for flanneld: the same keys in etcd, flags, subnet.env and
 packets on the wire. Programs at the pods' interfaces and at the network card
 carry the flows that the kernel was seen to deliver.
"
    )
}

/// What the agent is linked with, and the C library's oldest version that will do.
fn depends(agent: &Path) -> Result<String> {
    let headers = output(Command::new("objdump").arg("--private-headers").arg(agent))?;
    Ok(depends_of(&headers))
}

fn depends_of(headers: &str) -> String {
    let number = |word: &str| -> Option<(u32, u32)> {
        let (major, minor) = word.strip_prefix("GLIBC_")?.split_once('.')?;
        Some((major.parse().ok()?, minor.split('.').next()?.parse().ok()?))
    };
    let newest = headers.split_whitespace().filter_map(number).max();
    let mut depends =
        newest.map_or("libc6".to_owned(), |(major, minor)| format!("libc6 (>= {major}.{minor})"));
    if headers.contains("libgcc_s.so.1") {
        depends.push_str(", libgcc-s1");
    }
    depends
}

fn size_in_kilobytes(stage: &Path) -> Result<u64> {
    let said = output(Command::new("du").args(["--apparent-size", "-sk"]).arg(stage))?;
    let size = said.split_whitespace().next().unwrap_or_default();
    size.parse().with_context(|| said.clone())
}

/// dpkg-deb only lowers time stamps that are later than the commit's.
fn set_times(stage: &Path, product: &Product) -> Result<()> {
    run_command(
        Command::new("find")
            .arg(stage)
            .args(["-exec", "touch", "--no-dereference"])
            .arg(format!("--date=@{}", product.epoch))
            .args(["{}", "+"]),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_symbol_decides() {
        let headers = "
  NEEDED               libgcc_s.so.1
  NEEDED               libc.so.6
Version References:
  required from libc.so.6:
    0x069691b4 0x00 13 GLIBC_2.34
    0x09691a75 0x00 12 GLIBC_2.2.5
    0x06969188 0x00 03 GLIBC_2.28
";
        assert_eq!(depends_of(headers), "libc6 (>= 2.34), libgcc-s1");
        assert_eq!(depends_of(""), "libc6");
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
