//! Packages bring services, tests bring their own: a docker or etcd that the
//! installation starts would change the machine's network and firewall.

use std::path::Path;

use anyhow::Result;

use crate::workspace::{as_root, run, which};

/// Asked by Debian's packages whether a service may be started; 101 forbids it.
const POLICY: &str = "/usr/sbin/policy-rc.d";

/// Services of the packages that `setup` installs.
const SERVICES: &[&str] =
    &["containerd.service", "docker.service", "docker.socket", "etcd.service"];

/// Places of unit files, the administrator's own first.
const UNITS: &[&str] = &["/etc/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"];

/// Runs an installation that starts no service, now or at the next boot.
/// Services that were installed before are left as they are.
pub(crate) fn without_services(install: impl FnOnce() -> Result<()>) -> Result<()> {
    let new: Vec<_> = SERVICES.iter().filter(|name| !has_unit(name)).collect();
    let policy = Policy::forbid()?;
    let result = install();
    drop(policy);
    // Packages enable what they bring.
    let brought: Vec<_> = new.into_iter().filter(|name| has_unit(name)).collect();
    if !brought.is_empty() && which("systemctl").is_some() {
        run(as_root("systemctl").args(["--quiet", "disable"]).args(brought))?;
    }
    result
}

fn has_unit(name: &str) -> bool {
    UNITS.iter().any(|dir| Path::new(dir).join(name).exists())
}

/// Our policy, removed by `Drop`. Nothing if the machine has its own: that is
/// the administrator's word.
struct Policy {
    own: bool,
}

impl Policy {
    fn forbid() -> Result<Self> {
        if Path::new(POLICY).exists() {
            return Ok(Self { own: false });
        }
        // Made before the file is, so that half a file goes as well.
        let policy = Self { own: true };
        let script = format!("printf '#!/bin/sh\\nexit 101\\n' >{POLICY} && chmod 755 {POLICY}");
        run(as_root("sh").args(["-c", &script]))?;
        Ok(policy)
    }
}

impl Drop for Policy {
    fn drop(&mut self) {
        if self.own && run(as_root("rm").args(["-f", POLICY])).is_err() {
            eprintln!("setup: remove {POLICY} by hand: it keeps services from being started");
        }
    }
}
