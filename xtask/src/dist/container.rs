//! The directory that `docker build` makes the agent's image from.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use fs_err as fs;

use super::{Product, pack_tar, tree};
use crate::debian;
use crate::target::Target;
use crate::workspace::root;

/// Lays it out: the Dockerfile, the agent, and all else that the image holds.
///
/// # Errors
/// A package cannot be had, or the agent is another machine's.
pub(super) fn lay(stage: &Path, out: &Path, product: &Product) -> Result<PathBuf> {
    if product.target != Target::host()? {
        bail!("the image's packages are this machine's; {} needs its own", product.target.triple());
    }
    let dir = out.join("container");
    if dir.exists() {
        fs::remove_dir_all(&dir)?;
    }
    for (from, name, executable) in [
        (root().join("packaging/container/Dockerfile"), "Dockerfile", false),
        (stage.join("usr/bin/flannel-agent"), "flannel-agent", true),
    ] {
        let bytes = fs::read(&from)?;
        tree::put(&dir.join(name), &bytes, executable)?;
    }
    pack_tar(&debian::container()?, &dir.join("root.tar"), product, &[".".to_owned()])?;
    tree::set_times(&dir, product)?;
    Ok(dir)
}
