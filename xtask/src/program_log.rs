//! `cargo xtask program-log`: builds programs that log why packets are the kernel's, and
//! tries them. They are never shipped: each message costs time, and a map of their own
//! keeps them from being pinned.

use anyhow::{Result, bail};

use crate::{build_ebpf, test};

pub(crate) fn run() -> Result<()> {
    let object = build_ebpf::logging()?;
    if !test::logged(&object)? {
        bail!("the case of the programs that log failed: its output stands above");
    }
    println!("program-log: an agent loads them with FLANNEL_EBPF_OBJECT={}", object.display());
    Ok(())
}
