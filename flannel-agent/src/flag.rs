//! The values of flags: Go's spellings and ours.

use std::convert::Infallible;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// Text that does not appear in debug output.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// This text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl FromStr for Secret {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self::new(text))
    }
}

/// A boolean in one of the spellings of Go's `strconv.ParseBool`.
pub fn go_bool(text: &str) -> Result<bool, &'static str> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("expected true or false"),
    }
}

/// An integer in one of the spellings of Go's `strconv.ParseInt` with base 0:
/// `0x`, `0o` or `0`, and `0b` say the base; `_` may stand between digits.
pub fn go_int(text: &str) -> Result<i64, String> {
    let bad = || "expected a whole number".to_owned();
    let (negative, rest) = match text.as_bytes() {
        [b'-', ..] => (true, &text[1..]),
        [b'+', ..] => (false, &text[1..]),
        _ => (false, text),
    };
    let lower = rest.to_ascii_lowercase();
    let (radix, digits) = match lower.as_bytes() {
        [b'0', b'x', ..] => (16, &lower[2..]),
        [b'0', b'o', ..] => (8, &lower[2..]),
        [b'0', b'b', ..] => (2, &lower[2..]),
        // An underscore may follow a base, and nothing else.
        [b'0', _, ..] => (8, &lower[1..]),
        [b'_', ..] => return Err(bad()),
        _ => (10, lower.as_str()),
    };
    if digits.ends_with('_') || digits.contains("__") {
        return Err(bad());
    }
    let digits = digits.replace('_', "");
    // A sign stands before all, and not behind a base.
    if digits.starts_with(['+', '-']) {
        return Err(bad());
    }
    let sign = if negative { "-" } else { "" };
    i64::from_str_radix(&format!("{sign}{digits}"), radix).map_err(|_| bad())
}

/// `--healthz-port`.
pub fn port(text: &str) -> Result<i32, String> {
    let port = go_int(text)?;
    i32::try_from(port)
        .ok()
        .filter(|port| *port <= 65_535)
        .ok_or_else(|| format!("{port} is no port: expected at most 65535"))
}

/// `--fast-path-window`.
pub fn fast_path_window(text: &str) -> Result<Duration, String> {
    let window = duration(text)?;
    if (Duration::from_millis(100)..=Duration::from_secs(20)).contains(&window) {
        Ok(window)
    } else {
        Err("expected 100ms to 20s: it must stay below conntrack's UDP timeout of 30 s, \
             or the kernel forgets flows that are still in use"
            .to_owned())
    }
}

/// `connectivity --patience` and `trace --live`.
pub fn patience(text: &str) -> Result<Duration, String> {
    let patience = duration(text)?;
    if (Duration::from_millis(10)..=Duration::from_secs(30)).contains(&patience) {
        Ok(patience)
    } else {
        Err("expected 10ms to 30s".to_owned())
    }
}

/// `events --since` and `monitor --time`.
pub fn time(text: &str) -> Result<Duration, String> {
    let read = humantime::parse_duration(text);
    read.map_err(|error| format!("{error}; expected a time such as 30s, 10m or 2h"))
}

/// `monitor --outcome`: bits by outcome.
pub fn outcomes(text: &str) -> Result<u64, String> {
    flannel_core::monitor::outcomes(text)
        .ok_or_else(|| "expected an outcome as status tells it, or how some begin".to_owned())
}

/// `--resync-interval`.
pub fn resync_interval(text: &str) -> Result<Duration, String> {
    let interval = duration(text)?;
    if (Duration::from_secs(1)..=Duration::from_secs(86_400)).contains(&interval) {
        Ok(interval)
    } else {
        Err("expected 1 to 86400 seconds".to_owned())
    }
}

/// Whole seconds, or a whole number with `s` or `ms` behind it.
fn duration(text: &str) -> Result<Duration, String> {
    let (digits, unit): (&str, fn(u64) -> Duration) = if let Some(digits) = text.strip_suffix("ms")
    {
        (digits, Duration::from_millis)
    } else {
        (text.strip_suffix('s').unwrap_or(text), Duration::from_secs)
    };
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err("expected whole seconds, or a number with its unit such as 5s or 500ms".into());
    }
    digits.parse().map(unit).map_err(|_| "too long".to_owned())
}
