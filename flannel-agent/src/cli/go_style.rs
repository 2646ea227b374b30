//! Go's way of writing flags, and flanneld's leftovers, for clap.

use std::ffi::OsString;

/// Flags of flanneld's logger (klog): accepted, without effect. The second
/// member says whether a value may follow as an argument of its own.
const KLOG: [(&str, bool); 11] = [
    ("v", true),
    ("vmodule", true),
    ("log_backtrace_at", true),
    ("log_dir", true),
    ("log_file", true),
    ("log_file_max_size", true),
    ("stderrthreshold", true),
    ("logtostderr", false),
    ("alsologtostderr", false),
    ("skip_headers", false),
    ("add_dir_header", false),
];

/// Arguments for clap, and the logger's flags that were left out.
///
/// `-name` becomes `--name` (flanneld knows no short flags but `-h`), up to
/// `--` or the first argument that is no flag and no flag's value.
pub(super) fn rewrite(
    arguments: impl IntoIterator<Item = OsString>,
) -> (Vec<OsString>, Vec<String>) {
    let mut arguments = arguments.into_iter();
    let mut kept: Vec<OsString> = arguments.next().into_iter().collect();
    let mut ignored = Vec::new();
    let mut verbatim = false;
    while let Some(argument) = arguments.next() {
        let Some(flag) = argument.to_str().filter(|_| !verbatim).and_then(flag) else {
            verbatim |= argument == "--";
            kept.push(argument);
            continue;
        };
        let (name, value) = match flag.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (flag, None),
        };
        match KLOG.iter().find(|(known, _)| *known == name) {
            Some((_, takes_value)) => {
                if *takes_value && value.is_none() {
                    arguments.next();
                }
                ignored.push(format!("-{name}"));
            }
            None => kept.push(format!("--{flag}").into()),
        }
    }
    (kept, ignored)
}

/// The flag without its dashes: `-name`, `--name`, with or without a value.
/// `-h` alone stays short.
fn flag(argument: &str) -> Option<&str> {
    let name = argument.strip_prefix("--").or_else(|| argument.strip_prefix('-'))?;
    let first = name.chars().next()?;
    (first.is_ascii_alphabetic() && argument != "-h").then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rewritten(arguments: &[&str]) -> (Vec<String>, Vec<String>) {
        let (kept, ignored) = rewrite(arguments.iter().map(OsString::from));
        (kept.into_iter().map(|kept| kept.into_string().unwrap()).collect(), ignored)
    }

    #[test]
    fn one_dash_becomes_two() {
        let (kept, ignored) =
            rewritten(&["a", "-iface=eth1", "--iface", "eth2", "-ip-masq", "-h", "--", "-x"]);
        assert_eq!(kept, ["a", "--iface=eth1", "--iface", "eth2", "--ip-masq", "-h", "--", "-x"]);
        assert_eq!(ignored, [""; 0]);
    }

    #[test]
    fn the_loggers_flags_are_left_out_with_their_values() {
        let (kept, ignored) =
            rewritten(&["a", "-v=10", "--v", "5", "-logtostderr", "-vmodule=x=2", "-ip-masq"]);
        assert_eq!(kept, ["a", "--ip-masq"]);
        assert_eq!(ignored, ["-v", "-v", "-logtostderr", "-vmodule"]);
    }

    #[test]
    fn negative_numbers_are_no_flags() {
        assert_eq!(rewritten(&["a", "--x", "-5"]).0, ["a", "--x", "-5"]);
    }
}
