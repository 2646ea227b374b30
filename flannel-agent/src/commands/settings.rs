//! The flags that a daemon was started with, or would be.

mod unit;

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::Path;

use crate::cli::{self, Options};

/// Flags that a unit or its environment file gives the daemon.
pub(super) struct UnitSettings {
    /// The flags.
    pub(super) flags: Options,
    /// Where they are from, for people.
    pub(super) from: String,
}

/// The daemon's flags, from its command line and environment; `None` if they cannot be
/// read, or it is no daemon of ours.
pub(super) fn of(pid: i32) -> Option<Options> {
    let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
    parse(&line, &environment)
}

/// The flags that the node's unit would start a daemon with; `None` if nothing says how,
/// or it would refuse them.
pub(super) fn of_unit() -> Option<UnitSettings> {
    unit::settings(Path::new("/"))
}

fn parse(line: &[u8], environment: &[u8]) -> Option<Options> {
    let words = |bytes: &[u8]| -> Vec<OsString> {
        let bytes = bytes.strip_suffix(b"\0").unwrap_or(bytes);
        bytes.split(|byte| *byte == 0).map(|word| OsString::from_vec(word.to_vec())).collect()
    };
    let environment: HashMap<OsString, OsString> = words(environment)
        .into_iter()
        .filter_map(|pair| {
            let pair = pair.as_bytes();
            let at = pair.iter().position(|byte| *byte == b'=')?;
            let text = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
            Some((text(&pair[..at]), text(&pair[at + 1..])))
        })
        .collect();
    read(words(line), |name| environment.get(&OsString::from(name)).cloned())
}

/// The daemon's flags of a command line and an environment.
fn read(words: Vec<OsString>, variable: impl Fn(&str) -> Option<OsString>) -> Option<Options> {
    let (cli, _) = cli::parse(words, variable).ok()?;
    cli.command.is_none().then_some(cli.daemon)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_come_from_command_line_and_environment() {
        let line = b"/usr/bin/flannel-agent\0--etcd-prefix=/a\0";
        let environment = b"PATH=/bin\0FLANNELD_ETCD_ENDPOINTS=http://192.0.2.1:2379\0";
        let options = parse(line, environment).unwrap();
        assert_eq!(options.etcd.prefix, "/a");
        assert_eq!(options.etcd.endpoints, ["http://192.0.2.1:2379"]);
        assert!(parse(b"/usr/bin/flannel-agent\0status\0", b"").is_none(), "no daemon");
        assert!(parse(b"/bin/sh\0--no-such-flag\0", b"").is_none());
    }
}
