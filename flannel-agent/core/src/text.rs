//! Text of others on one line of a log, a status or a message to systemd, and counts.

use std::fmt::{Display, Write as _};

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
