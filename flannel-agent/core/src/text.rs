//! Text of others on one line of a log, a status or a message to systemd, counts and times.

use std::fmt::{Display, Write as _};
use std::time::Duration;

/// Most characters of one reason that are shown.
pub const REASON: usize = 1_000;
/// Most characters of one value of the store.
pub const VALUE: usize = 200;

/// The text as far as `most` characters, with what would end the line, move a
/// terminal's cursor, or turn the direction of writing, as an escape. Escapes count with
/// all their characters.
pub fn shown(text: &str, most: usize) -> String {
    let mut shown = String::with_capacity(text.len().min(most));
    let mut room = most;
    for letter in text.chars() {
        let escape = letter.escape_default();
        let needs = if acts(letter) { escape.len() } else { 1 };
        let Some(left) = room.checked_sub(needs) else {
            shown.push_str("...");
            break;
        };
        room = left;
        if acts(letter) {
            let _ = write!(shown, "{escape}");
        } else {
            shown.push(letter);
        }
    }
    shown
}

/// How many there are of what `one` names: `1 peer`, `2 peers`.
pub fn counted<N: Display + PartialEq + From<u8>>(number: N, one: &str) -> String {
    let plural = if number == N::from(1) { "" } else { "s" };
    format!("{number} {one}{plural}")
}

/// How long it is, in the one or two largest units that tell it: `2 h`, `1 min 30 s`,
/// `250 ms`.
pub fn lasting(time: Duration) -> String {
    const UNITS: [(u128, &str); 5] =
        [(86_400_000, "d"), (3_600_000, "h"), (60_000, "min"), (1_000, "s"), (1, "ms")];
    let millis = time.as_millis();
    let largest = UNITS.iter().position(|(unit, _)| millis >= *unit).unwrap_or(UNITS.len() - 1);
    let (unit, name) = UNITS[largest];
    let (whole, rest) = (millis / unit, millis % unit);
    let second = UNITS.get(largest + 1).map(|(unit, name)| (rest / unit, name));
    match second {
        // Nobody reads a second and some milliseconds.
        Some((more, smaller)) if more > 0 && *smaller != "ms" => {
            format!("{whole} {name} {more} {smaller}")
        }
        _ => format!("{whole} {name}"),
    }
}

/// Whether a terminal or a reader of lines does something else with it than to
/// show it.
fn acts(letter: char) -> bool {
    letter.is_control()
        || matches!(letter, '\u{2028}' | '\u{2029}')
        || matches!(letter, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_no_plural() {
        assert_eq!(
            [0, 1, 2].map(|number: u64| counted(number, "peer")),
            ["0 peers", "1 peer", "2 peers"]
        );
    }

    #[test]
    fn times_have_the_units_that_tell_them() {
        let told = |millis| lasting(Duration::from_millis(millis));
        assert_eq!(told(7_200_000), "2 h");
        assert_eq!(told(90_000), "1 min 30 s");
        assert_eq!(told(86_399_000), "23 h 59 min");
        assert_eq!(told(26 * 3_600_000), "1 d 2 h");
        assert_eq!(told(24 * 3_600_000 + 59_000), "1 d");
        assert_eq!([0, 250, 1_250, 10_000].map(told), ["0 ms", "250 ms", "1 s", "10 s"]);
    }

    #[test]
    fn usual_text_stays() {
        for text in ["", "BackendType is `host-gw`, not \"vxlan\"", "für 10.5.1.0/24 \\ é 東"] {
            assert_eq!(shown(text, REASON), text);
        }
    }

    #[test]
    fn what_acts_is_escaped_and_what_is_long_is_cut() {
        let hostile = "a\nMAINPID=1\r\x1b[2J\x07\0\u{9b}31m\u{2028}\u{202e}z";
        let text = shown(hostile, REASON);
        assert_eq!(text, "a\\nMAINPID=1\\r\\u{1b}[2J\\u{7}\\u{0}\\u{9b}31m\\u{2028}\\u{202e}z");
        assert_eq!(shown("üüü", 3), "üüü");
        assert_eq!(shown("üüüü", 3), "üüü...");
        assert_eq!(shown(&"x".repeat(1 << 20), VALUE).len(), VALUE + 3);
        assert_eq!(shown("a\nb\nc", 5), "a\\nb...", "an escape is whole or not there");
        assert!(shown(&"\u{202e}".repeat(VALUE), VALUE).len() <= VALUE + 3);
    }
}
