//! Secrets that are known by their place, so that they are found anywhere.

use std::fs;

use super::super::ask;
use crate::cli::SysdumpArgs;
use crate::control::Request;

/// The daemon's flag, and its variable.
const FLAG: &str = "etcd-password=";
const VARIABLE: &str = "FLANNELD_ETCD_PASSWORD=";

/// The password that was given to this command, and the running agent's.
pub(super) fn known(args: &SysdumpArgs) -> Vec<String> {
    let own = args.etcd.password.as_ref().map(|password| password.expose().to_owned());
    let status = ask(&args.state_dir, Request::Status).ok().flatten();
    let status: Option<flannel_core::status::Status> =
        status.and_then(|text| serde_json::from_str(&text).ok());
    let pid = status.map(|status| status.pid);
    let words = pid.into_iter().flat_map(|pid| {
        let read = |name| fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default();
        let both = [read("cmdline"), read("environ")];
        both.into_iter().flat_map(|bytes| words(&bytes)).collect::<Vec<_>>()
    });
    own.into_iter().chain(words.filter_map(|word| password(&word))).collect()
}

/// The strings of a file of /proc, which end with a zero each.
fn words(bytes: &[u8]) -> Vec<String> {
    bytes.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect()
}

fn password(word: &str) -> Option<String> {
    let value = word.strip_prefix(VARIABLE);
    let value = value.or_else(|| word.trim_start_matches('-').strip_prefix(FLAG))?;
    (!value.is_empty()).then(|| value.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_of_a_process_are_found() {
        let found = |word| password(word);
        assert_eq!(found("FLANNELD_ETCD_PASSWORD=a b").as_deref(), Some("a b"));
        assert_eq!(found("-etcd-password=x").as_deref(), Some("x"));
        assert_eq!(found("--etcd-password=x=y").as_deref(), Some("x=y"));
        assert_eq!(found("--etcd-password="), None);
        assert_eq!(found("--etcd-username=x"), None);
        assert_eq!(words(b"a\0b=c\0"), ["a", "b=c", ""]);
    }
}
