//! Secrets that are known by their place, so that they are found anywhere.

use std::fs;
use std::path::PathBuf;

use super::super::{ask, settings};
use crate::cli::SysdumpArgs;
use crate::control::Request;
use crate::source::options::EtcdOptions;

/// How a setting of the daemon is given.
struct Setting {
    flag: &'static str,
    variable: &'static str,
}

const PASSWORD: Setting = Setting { flag: "etcd-password", variable: "FLANNELD_ETCD_PASSWORD=" };
const PASSWORD_FILE: Setting =
    Setting { flag: "etcd-password-file", variable: "FLANNELD_ETCD_PASSWORD_FILE=" };

/// The password that was given to this command, the running agent's, and its unit's.
pub(super) fn known(args: &SysdumpArgs) -> Vec<String> {
    let unit = settings::of_unit().map(|unit| unit.flags.etcd);
    let options: Vec<&EtcdOptions> = unit.iter().chain([&args.etcd]).collect();
    let own = options.iter().filter_map(|etcd| etcd.password.as_ref());
    let own: Vec<String> = own.map(|password| password.expose().to_owned()).collect();
    let status = ask(&args.reader.state.dir, Request::Status).ok().flatten();
    let status: Option<flannel_core::status::Status> =
        status.and_then(|text| serde_json::from_str(&text).ok());
    let pid = status.map(|status| status.pid);
    let words: Vec<Vec<String>> = pid
        .into_iter()
        .flat_map(|pid| {
            let read = |name| fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default();
            [words(&read("cmdline")), words(&read("environ"))]
        })
        .collect();
    let files = words.iter().flat_map(|words| PASSWORD_FILE.values(words)).map(PathBuf::from);
    let files = files.chain(options.iter().filter_map(|etcd| etcd.password_file.clone()));
    let in_files = files.filter_map(|file| {
        let text = fs::read_to_string(file).ok()?;
        text.lines().next().map(str::to_owned)
    });
    let given = words.iter().flat_map(|words| PASSWORD.values(words));
    own.into_iter().chain(given).chain(in_files).collect()
}

/// The strings of a file of /proc, which end with a zero each.
fn words(bytes: &[u8]) -> Vec<String> {
    bytes.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect()
}

impl Setting {
    /// What these words give it.
    fn values(&self, words: &[String]) -> Vec<String> {
        let next = words.iter().skip(1).map(String::as_str).chain([""]);
        let found = words.iter().zip(next).filter_map(|(word, next)| self.value(word, next));
        found.filter(|value| !value.is_empty()).map(str::to_owned).collect()
    }

    /// Its value in a word, or in the next one if the word is the flag alone.
    fn value<'a>(&self, word: &'a str, next: &'a str) -> Option<&'a str> {
        if let Some(value) = word.strip_prefix(self.variable) {
            return Some(value);
        }
        let rest = word.strip_prefix('-')?.trim_start_matches('-').strip_prefix(self.flag)?;
        if rest.is_empty() { Some(next) } else { rest.strip_prefix('=') }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_of_a_process_are_found() {
        let found = |bytes: &[u8]| PASSWORD.values(&words(bytes));
        assert_eq!(found(b"FLANNELD_ETCD_PASSWORD=a b\0"), ["a b"]);
        assert_eq!(found(b"agent\0-etcd-password=x\0--etcd-password=x=y\0"), ["x", "x=y"]);
        assert_eq!(found(b"agent\0--etcd-password\0a b\0--ip-masq\0"), ["a b"]);
        assert_eq!(found(b"--etcd-password=\0--etcd-username=x\0-etcd-password"), [""; 0]);
        let file = b"--etcd-password-file=/f\0FLANNELD_ETCD_PASSWORD_FILE=/g\0";
        assert_eq!(found(file), [""; 0]);
        assert_eq!(PASSWORD_FILE.values(&words(file)), ["/f", "/g"]);
    }
}
