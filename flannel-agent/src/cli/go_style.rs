//! Turns a command line as Go's `flag` package takes it, and the environment,
//! into one that clap takes.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::iter::Peekable;
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

/// What the variables of all flags begin with.
pub(super) const PREFIX: &str = "FLANNELD_";

/// The names of the logging flags.
pub(super) fn logging() -> impl Iterator<Item = &'static str> {
    LOGGING.iter().map(|(name, _)| *name)
}

/// The variable that sets a flag.
pub(super) fn variable(name: &str) -> String {
    format!("{PREFIX}{}", name.to_ascii_uppercase().replace('-', "_"))
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
/// - `help` and `help <command>` ask for `--help`.
pub(super) fn normalise(
    command: &clap::Command,
    argv: impl IntoIterator<Item = OsString>,
    env: impl Fn(&str) -> Option<OsString>,
) -> Result<Line, String> {
    let mut argv = argv.into_iter();
    let program = argv.next().unwrap_or_else(|| OsString::from("flannel-agent"));
    let mut reader = Reader {
        command,
        subcommand: None,
        flags: flags(command),
        tokens: asks_for_help(argv.collect()).into_iter().peekable(),
        line: Line { argv: vec![program], ..Line::default() },
        given: BTreeSet::new(),
    };
    while reader.next()? {}
    let Reader { subcommand, mut line, given, .. } = reader;
    // What is no command is named as such, without flags that nobody has written.
    if subcommand.is_none()
        && line.argv.get(1).is_some_and(|word| !word.as_bytes().starts_with(b"-"))
    {
        return Ok(line);
    }
    add_environment(&mut line, subcommand, &flags_for_env(command, subcommand), &given, env);
    Ok(line)
}

/// `help status` as `status --help`: what people type first.
fn asks_for_help(mut argv: Vec<OsString>) -> Vec<OsString> {
    if argv.first().is_some_and(|word| word == "help") {
        argv.remove(0);
        argv.truncate(1);
        argv.push("--help".into());
    }
    argv
}

/// A command line that is being read.
struct Reader<'a, I: Iterator<Item = OsString>> {
    command: &'a clap::Command,
    /// The subcommand, once it was there.
    subcommand: Option<&'a clap::Command>,
    /// The flags that may come now, and whether they take a separate value.
    flags: BTreeMap<String, bool>,
    /// What is left to read.
    tokens: Peekable<I>,
    line: Line,
    /// Flags that were there, which the environment does not set.
    given: BTreeSet<String>,
}

impl<I: Iterator<Item = OsString>> Reader<'_, I> {
    /// Reads one token, and its value; whether the line goes on.
    fn next(&mut self) -> Result<bool, String> {
        let Some(token) = self.tokens.next() else { return Ok(false) };
        if token.is_empty() {
            return Ok(true);
        }
        if token == "--" {
            self.dashes(token);
            return Ok(false);
        }
        let Some(flag) = Flag::read(&token) else { return Ok(self.word(token)) };
        if let Some((_, takes_value)) = LOGGING.iter().find(|(name, _)| *name == flag.name) {
            self.logging(&token, *takes_value && flag.value.is_none());
            return Ok(true);
        }
        self.flag(flag)?;
        Ok(true)
    }

    /// Go's end of the flags; with a subcommand it is clap's to understand.
    fn dashes(&mut self, token: OsString) {
        if self.subcommand.is_none() {
            self.line.ends_at(self.tokens.by_ref().collect());
            return;
        }
        self.line.argv.push(token);
        self.line.argv.extend(self.tokens.by_ref());
    }

    /// Takes what is no flag; whether the line goes on.
    fn word(&mut self, token: OsString) -> bool {
        if self.subcommand.is_none() && self.line.is_word(&token, self.command) {
            self.line.ends_at(std::iter::once(token).chain(self.tokens.by_ref()).collect());
            return false;
        }
        if self.subcommand.is_none() && self.line.argv.len() == 1 {
            self.subcommand = token.to_str().and_then(|name| self.command.find_subcommand(name));
        }
        if let Some(subcommand) = self.subcommand {
            self.flags = flags(subcommand);
        }
        self.line.argv.push(token);
        true
    }

    /// Takes a flag of the logger out of the line.
    fn logging(&mut self, token: &OsStr, wants_value: bool) {
        let mut text = token.to_string_lossy().into_owned();
        if wants_value {
            // The level is missing in a line like `-v -ip-masq`; Go would
            // fail on it, and there is no use in failing.
            let value = self.tokens.next_if(|next| Flag::read(next).is_none() && next != "--");
            if let Some(value) = value {
                text = format!("{text} {}", value.to_string_lossy());
            }
        }
        self.line.logging.push(text);
    }

    fn flag(&mut self, Flag { name, value }: Flag) -> Result<(), String> {
        if self.subcommand.is_none()
            && let Some(refusal) = super::flannel::given_up(&name)
        {
            return Err(refusal);
        }
        self.given.insert(name.clone());
        let value = self.value(&name, value)?;
        match value {
            Some(value) if value.is_empty() && self.flags.get(&name) == Some(&true) => {
                let prefix = format!("--{name}=");
                self.line.argv.retain(|token| !token.as_bytes().starts_with(prefix.as_bytes()));
            }
            value => self.line.argv.push(long(&name, value.as_deref())),
        }
        Ok(())
    }

    /// A flag's value, which may be the next token.
    fn value(&mut self, name: &str, value: Option<OsString>) -> Result<Option<OsString>, String> {
        let flags = &self.flags;
        match (flags.get(name), value) {
            (Some(true), None) => Ok(self.tokens.next_if(|next| {
                // A flag where a value belongs is a value forgotten.
                Flag::read(next).is_none_or(|next| !is_known(&next.name, flags)) && next != "--"
            })),
            (Some(false), None) => {
                if let Some(text) = self.tokens.peek().and_then(|next| next.to_str())
                    && crate::flag::go_bool(text).is_ok()
                {
                    return Err(format!(
                        "--{name} takes its value with an equals sign: --{name}={text}"
                    ));
                }
                Ok(None)
            }
            (_, value) => Ok(value),
        }
    }
}

impl Line {
    /// Whether a token is no flag and no command: the first of all may be a
    /// command that was misspelt, and a single letter a flag of clap's.
    fn is_word(&self, token: &OsStr, command: &clap::Command) -> bool {
        let something_before = self.argv.len() > 1 || !self.logging.is_empty();
        let is_command = token.to_str().is_some_and(|name| command.find_subcommand(name).is_some());
        let is_flag = token.as_bytes().starts_with(b"-");
        // A dash alone is a word for Go, and no command.
        token == "-" || something_before && !is_command && !is_flag
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
    /// `None` for words, and for what clap is to see as it is: `-h`, negative numbers,
    /// names that are not text.
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
