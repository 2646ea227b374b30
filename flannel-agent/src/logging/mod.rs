//! Where the daemon's messages go, in which form, and how many of a kind.

mod bound;
mod journal;
mod panics;

use std::io::{self, IsTerminal as _};
use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum;
use tracing::Subscriber;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer, fmt, registry};

use self::bound::Bound;
use self::journal::Journal;

/// The crates whose messages are the agent's own.
pub const CRATES: [&str; 2] = ["flannel_agent", "flannel_core"];
/// How often is told what was left out.
const SUMMARY: Duration = Duration::from_secs(60);

/// `--log-format`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// `journald` where standard error is the journal, else `text`
    #[default]
    Auto,
    /// A line for each message, with colours on a terminal
    Text,
    /// A JSON object for each message
    Json,
    /// The journal's own fields
    Journald,
}

/// Begins to log, as the environment says (`FLANNELD_LOG`, `RUST_LOG`), else as
/// `from_flags` does, else at level `info`.
///
/// It has to be called within the runtime, and once.
pub fn start(format: Format, from_flags: Option<&str>) {
    let (filter, wrong) = filter(from_flags.unwrap_or("info"));
    let bound = Arc::new(Bound::default());
    let (output, lost) = output(format);
    registry().with(filter).with(bound::Limit(Arc::clone(&bound))).with(output).init();
    panics::log();
    for complaint in wrong.into_iter().chain(lost) {
        tracing::warn!(reason = %complaint, "log setting ignored");
    }
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(SUMMARY).await;
            for (message, times) in bound.left_out() {
                tracing::warn!(
                    repeated = message,
                    times,
                    "message repeated too often; left out of the log"
                );
            }
        }
    });
}

/// Which messages are wanted, and what is wrong with the wish.
fn filter(fallback: &str) -> (EnvFilter, Option<String>) {
    let mut wrong = None;
    for name in ["FLANNELD_LOG", "RUST_LOG"] {
        match std::env::var(name) {
            Ok(text) if text.is_empty() => {}
            Ok(text) => {
                let read = EnvFilter::try_new(of_our_crates(name, &text));
                let read = read.map_err(|error| error.to_string());
                match read.and_then(|filter| no_level(&text).map_or(Ok(filter), Err)) {
                    Ok(filter) => return (filter, wrong),
                    Err(error) => wrong = Some(format!("{name}={text} is left out: {error}")),
                }
            }
            Err(_) => {}
        }
    }
    (EnvFilter::new(fallback), wrong)
}

/// A level alone is meant for the agent's own messages: libraries tell each frame of a
/// connection at `debug`. `RUST_LOG` has what it says.
fn of_our_crates(variable: &str, text: &str) -> String {
    let more_than_info = matches!(text.to_ascii_lowercase().as_str(), "debug" | "trace");
    if variable == "RUST_LOG" || !more_than_info {
        return text.to_owned();
    }
    let ours = CRATES.map(|name| format!("{name}={text}"));
    format!("info,{}", ours.join(","))
}

/// Why a wish would silence the log unasked: it names neither a level nor a part, as
/// `warning` and `loud`, which a filter takes for names of crates.
fn no_level(text: &str) -> Option<String> {
    let mut wishes = text.split(',').map(str::trim).filter(|wish| !wish.is_empty());
    let level = |word: &str| word.parse::<LevelFilter>().is_ok();
    let says = |wish: &str| {
        let (part, with_level) =
            wish.split_once('=').map_or((wish, false), |(part, _)| (part, true));
        let ours = CRATES.iter().any(|name| part.starts_with(name));
        level(part) || ours || wish.contains('[') || (with_level && !wish.ends_with('='))
    };
    let wrong = wishes.find(|wish| !says(wish))?;
    Some(format!(
        "{wrong} is no level; expected off, error, warn, info, debug or trace, or PART=LEVEL"
    ))
}

type Output<S> = Box<dyn Layer<S> + Send + Sync>;

/// What writes messages, and why it is not what was asked for.
fn output<S>(format: Format) -> (Output<S>, Option<String>)
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let to_journal = match format {
        Format::Auto => systemd_journal_logger::connected_to_journal(),
        Format::Journald => true,
        Format::Text | Format::Json => false,
    };
    if to_journal {
        match Journal::open() {
            Ok(journal) => return (journal.boxed(), None),
            // The journal writes down the time of a line by itself.
            Err(error) => {
                let why = format!("journald is not reached, so messages go to stderr: {error}");
                return (lines().without_time().with_ansi(false).boxed(), Some(why));
            }
        }
    }
    if format == Format::Json {
        return (lines().json().flatten_event(true).with_current_span(false).boxed(), None);
    }
    let coloured = io::stderr().is_terminal() && !no_color(std::env::var_os("NO_COLOR"));
    (lines().with_ansi(coloured).boxed(), None)
}

fn lines<S>() -> fmt::Layer<S, fmt::format::DefaultFields, fmt::format::Format, fn() -> io::Stderr>
{
    // A line that cannot be written would be told on stderr, by a macro that panics when
    // that fails, too: on a full disk, or when the reader has gone.
    fmt::layer().with_writer(io::stderr as fn() -> io::Stderr).log_internal_errors(false)
}

/// <https://no-color.org>: any value but an empty one.
fn no_color(value: Option<std::ffi::OsString>) -> bool {
    value.is_some_and(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_alone_is_for_our_own_messages() {
        let ours = "info,flannel_agent=debug,flannel_core=debug";
        assert_eq!(of_our_crates("FLANNELD_LOG", "debug"), ours);
        for text in ["warn", "info,flannel_agent::reconcile=debug"] {
            assert_eq!(of_our_crates("FLANNELD_LOG", text), text);
        }
        assert_eq!(of_our_crates("RUST_LOG", "debug"), "debug");
    }

    #[test]
    fn a_word_that_is_no_level_does_not_silence_the_log() {
        for text in ["loud", "warning", "rubbish=", "info,foo", "h2"] {
            let wrong = no_level(text).unwrap();
            assert!(wrong.contains("is no level; expected off"), "{text}: {wrong}");
        }
        for text in
            ["warn", "INFO", "off", "5", "info,", "flannel_agent", "h2=debug", "debug,h2=off", ""]
        {
            assert_eq!(no_level(text), None, "{text}");
        }
    }

    #[test]
    fn an_empty_no_color_is_none() {
        assert!(!no_color(None) && !no_color(Some("".into())));
        assert!(no_color(Some("1".into())) && no_color(Some("0".into())));
    }
}
