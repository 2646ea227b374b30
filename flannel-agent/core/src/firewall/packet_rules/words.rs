//! The words of a line of `iptables-save`. Pure.

/// A word; quoted ones are never options.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Word {
    /// Without quotes and backslashes.
    pub(super) text: String,
    /// It was in quotes.
    pub(super) quoted: bool,
}

impl Word {
    /// Whether it is this option.
    pub(super) fn is(&self, option: &str) -> bool {
        !self.quoted && self.text == option
    }
}

/// Splits a line at blanks outside of quotes.
pub(super) fn split(line: &str) -> Vec<Word> {
    let mut words = Vec::new();
    let mut current: Option<Word> = None;
    let (mut inside, mut escaped) = (false, false);
    for character in line.chars() {
        if character.is_whitespace() && !inside {
            words.extend(current.take());
            continue;
        }
        let word = current.get_or_insert_with(|| Word { text: String::new(), quoted: false });
        if escaped {
            word.text.push(character);
            escaped = false;
        } else if character == '\\' && inside {
            escaped = true;
        } else if character == '"' {
            inside = !inside;
            word.quoted = true;
        } else {
            word.text.push(character);
        }
    }
    words.extend(current);
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_and_backslashes() {
        let words = split(r#"-A X -m comment --comment "a \"quoted\" one -j" -j  DROP"#);
        let texts: Vec<&str> = words.iter().map(|word| word.text.as_str()).collect();
        assert_eq!(
            texts,
            ["-A", "X", "-m", "comment", "--comment", r#"a "quoted" one -j"#, "-j", "DROP"]
        );
        assert!(words[5].quoted && !words[6].quoted);
        assert_eq!(split("\"\"").len(), 1);
        assert_eq!(split("\"open end").len(), 1);
        assert_eq!(split(" \t "), []);
    }
}
