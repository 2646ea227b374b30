//! What a terminal gets and a pipe does not.

use std::io::{self, IsTerminal as _};

/// A colour of text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Colour {
    Red = 31,
    Green = 32,
    Yellow = 33,
    Cyan = 36,
}

/// Whether standard output gets colours: it is a terminal, and `NO_COLOR` is empty.
pub(super) fn colours() -> bool {
    io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// A line with its first word in the colour that `words` gives it, if `colours`.
pub(super) fn painted(line: &str, words: &[(&str, Colour)], colours: bool) -> String {
    let text = line.trim_start();
    let word = text.split(' ').next().unwrap_or_default();
    match words.iter().find(|(known, _)| colours && *known == word) {
        Some((_, colour)) => {
            let before = &line[..line.len() - text.len()];
            let rest = &text[word.len()..];
            format!("{before}\x1b[{}m{word}\x1b[0m{rest}", *colour as u8)
        }
        None => line.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_word_is_painted_where_colours_are_wanted() {
        let words = [("well", Colour::Green)];
        assert_eq!(painted(" well  x", &words, true), " \x1b[32mwell\x1b[0m  x");
        assert_eq!(painted(" well  x", &words, false), " well  x");
        assert_eq!(painted("wells x", &words, true), "wells x");
    }
}
