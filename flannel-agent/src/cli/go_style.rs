//! Turns a command line as Go's `flag` package takes it, and the environment,
//! into one that clap takes.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// Flags of klog and glog that units and manifests of flannel carry, and
/// whether they take a value.
const LOGGING: [(&str, bool); 8] = [
    ("v", true),
    ("vmodule", true),
    ("logtostderr", false),
    ("alsologtostderr", false),
    ("stderrthreshold", true),
    ("log_backtrace_at", true),
    ("log_dir", true),
    ("log-dir", true),
];

/// Flags that the environment does not set: `FLANNELD_VERSION` is more likely
/// a setting of somebody's unit file than a wish to see the version.
pub(super) const NOT_FROM_ENV: [&str; 2] = ["version", "help"];

/// A command line for clap.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Line {
    /// The arguments, the program's name first.
    pub(super) argv: Vec<OsString>,
    /// Flags of the logger, as they were written.
    pub(super) logging: Vec<String>,
    /// Flags that come from the environment, without dashes.
    pub(super) from_env: Vec<String>,
    /// What was left out, as flanneld does, and why.
    pub(super) warnings: Vec<String>,
}

/// The names of the logging flags.
#[cfg(test)]
pub(super) fn logging() -> impl Iterator<Item = &'static str> {
    LOGGING.iter().map(|(name, _)| *name)
}

/// The variable that sets a flag.
pub(super) fn variable(name: &str) -> String {
    format!("FLANNELD_{}", name.to_ascii_uppercase().replace('-', "_"))
}

/// Rewrites a command line for `command`.
///
/// - `-name` becomes `--name`; single letters stay as they are.
/// - `--name value` becomes `--name=value`, so that values may begin with a
///   dash, as in Go.
/// - An empty value unsets the flag, also against the environment.
/// - Logging flags are taken out.
/// - An empty argument, as a unit's `${FLANNEL_OPTIONS}` may be, is left out.
/// - A word where the daemon has a flag ends the line, as in Go.
/// - Flags that are not there come from the environment.
pub(super) fn normalise(
    command: &clap::Command,
    argv: impl IntoIterator<Item = OsString>,
    env: impl Fn(&str) -> Option<OsString>,
) -> Result<Line, String> {
    let mut argv = argv.into_iter().peekable();
    let program = argv.next().unwrap_or_else(|| OsString::from("flannel-agent"));
    let mut line = Line { argv: vec![program], ..Line::default() };
    let mut given = BTreeSet::new();
    let mut flags = flags(command);
    let mut subcommand = None;

    while let Some(token) = argv.next() {
        if token.is_empty() {
            continue;
        }
        if token == "--" {
            if subcommand.is_none() {
                line.ends_at(argv.collect());
                break;
            }
            line.argv.push(token);
            line.argv.extend(argv);
            break;
        }
        let Some(flag) = Flag::read(&token) else {
            if subcommand.is_none() && line.is_word(&token, command) {
                line.ends_at(std::iter::once(token).chain(argv).collect());
                break;
            }
            if subcommand.is_none() && line.argv.len() == 1 {
                subcommand = token.to_str().and_then(|name| command.find_subcommand(name));
            }
            if let Some(subcommand) = subcommand {
                flags = self::flags(subcommand);
            }
            line.argv.push(token);
            continue;
        };
        if let Some((_, takes_value)) = LOGGING.iter().find(|(name, _)| *name == flag.name) {
            let mut text = token.to_string_lossy().into_owned();
            if *takes_value && flag.value.is_none() {
                // The level is missing in a line like `-v -ip-masq`; Go would
                // fail on it, and there is no use in failing.
                let value = argv.next_if(|next| Flag::read(next).is_none() && next != "--");
                if let Some(value) = value {
                    text = format!("{text} {}", value.to_string_lossy());
                }
            }
            line.logging.push(text);
            continue;
        }
        if subcommand.is_none()
            && let Some(refusal) = super::flannel::given_up(&flag.name)
        {
            return Err(refusal);
        }
        given.insert(flag.name.clone());
        let value = match (flags.get(&flag.name), flag.value) {
            (Some(true), None) => argv.next_if(|next| {
                // A flag where a value belongs is a value forgotten.
                Flag::read(next).is_none_or(|next| !is_known(&next.name, &flags)) && next != "--"
            }),
            (Some(false), None) => {
                if let Some(text) = argv.peek().and_then(|next| next.to_str())
                    && crate::flag::go_bool(text).is_ok()
                {
                    return Err(format!(
                        "--{name} takes its value with an equals sign: --{name}={text}",
                        name = flag.name
                    ));
                }
                None
            }
            (_, value) => value,
        };
        match value {
            Some(value) if value.is_empty() && flags.get(&flag.name) == Some(&true) => {
                let prefix = format!("--{}=", flag.name);
                line.argv.retain(|token| !token.as_bytes().starts_with(prefix.as_bytes()));
            }
            value => line.argv.push(long(&flag.name, value.as_deref())),
        }
    }
    add_environment(&mut line, subcommand, &flags_for_env(command, subcommand), &given, env);
    Ok(line)
}

impl Line {
    /// Whether a token is no flag and no command: the first of all may be a
    /// command that was misspelt, and a single letter a flag of clap's.
    fn is_word(&self, token: &OsStr, command: &clap::Command) -> bool {
        let something_before = self.argv.len() > 1 || !self.logging.is_empty();
        let is_command = token.to_str().is_some_and(|name| command.find_subcommand(name).is_some());
        something_before && !is_command && !token.as_bytes().starts_with(b"-")
    }

    /// Go's flag package stops at the first word; what follows it, flags too,
    /// has no effect.
    fn ends_at(&mut self, rest: Vec<OsString>) {
        let words: Vec<_> = rest.iter().map(|word| word.to_string_lossy()).collect();
        if !words.is_empty() {
            self.warnings.push(format!(
                "`{}` at the end of the command line is left out, as flanneld does: flags end at \
                 the first word",
                words.join(" ")
            ));
        }
    }
}

/// One token that is a flag.
struct Flag {
    name: String,
    value: Option<OsString>,
}

impl Flag {
    /// `None` for what clap is to see as it is: positional arguments, `-`,
    /// `-h`, negative numbers, names that are not text.
    fn read(token: &OsStr) -> Option<Self> {
        let bytes = token.as_bytes();
        let dashes = bytes.iter().take_while(|byte| **byte == b'-').count();
        let rest = &bytes[dashes..];
        if !(1..=2).contains(&dashes) || !rest.first()?.is_ascii_alphabetic() {
            return None;
        }
        let mut parts = rest.splitn(2, |byte| *byte == b'=');
        let name = std::str::from_utf8(parts.next()?).ok()?.to_owned();
        let value = parts.next().map(|value| OsString::from_vec(value.to_vec()));
        if dashes == 1 && name.len() == 1 && name != "v" {
            return None;
        }
        Some(Self { name, value })
    }
}

/// The long flags of a command, and whether they take a separate value.
fn flags(command: &clap::Command) -> BTreeMap<String, bool> {
    command
        .get_arguments()
        .filter_map(|arg| {
            let separate = arg.get_action().takes_values() && !arg.is_require_equals_set();
            Some((arg.get_long()?.to_owned(), separate))
        })
        .collect()
}

fn is_known(name: &str, flags: &BTreeMap<String, bool>) -> bool {
    flags.contains_key(name) || LOGGING.iter().any(|(logging, _)| *logging == name)
}

/// The daemon's flags, or those that a subcommand has in common with it.
fn flags_for_env(command: &clap::Command, subcommand: Option<&clap::Command>) -> Vec<String> {
    let wanted = subcommand.map(flags);
    flags(command)
        .into_keys()
        .filter(|name| !NOT_FROM_ENV.contains(&name.as_str()))
        .filter(|name| wanted.as_ref().is_none_or(|wanted| wanted.contains_key(name)))
        .collect()
}

fn add_environment(
    line: &mut Line,
    subcommand: Option<&clap::Command>,
    names: &[String],
    given: &BTreeSet<String>,
    env: impl Fn(&str) -> Option<OsString>,
) {
    let place = if subcommand.is_some() { 2 } else { 1 };
    for name in names.iter().filter(|name| !given.contains(*name)) {
        if let Some(value) = env(&variable(name)).filter(|value| !value.is_empty()) {
            if let Some(wrong) = super::flannel::wrong_value(name, &value) {
                line.warnings.push(format!(
                    "{}={} is left out, as flanneld does: {wrong}",
                    variable(name),
                    value.to_string_lossy()
                ));
                continue;
            }
            line.argv.insert(place, long(name, Some(&value)));
            line.from_env.push(name.clone());
        }
    }
}

fn long(name: &str, value: Option<&OsStr>) -> OsString {
    let mut token = OsString::from(format!("--{name}"));
    if let Some(value) = value {
        token.push("=");
        token.push(value);
    }
    token
}
