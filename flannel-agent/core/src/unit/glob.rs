//! Patterns of files' names, as glob(7) has them and systemd takes them. The crate `glob` has
//! no backslash and no `[^...]`, and calls a `[` without an end an error.

/// Whether a part of a path is a pattern.
pub fn is_pattern(part: &str) -> bool {
    part.contains(['*', '?', '['])
}

/// Whether a name without slashes fits a pattern. A dot at its beginning has to be there in
/// the pattern, too.
pub fn fits(pattern: &str, name: &str) -> bool {
    let pattern: Vec<char> = pattern.chars().collect();
    let name: Vec<char> = name.chars().collect();
    let hidden = name.first() == Some(&'.') && pattern.first() != Some(&'.');
    !hidden && rest_fits(&pattern, &name)
}

fn rest_fits(pattern: &[char], name: &[char]) -> bool {
    let Some((first, after)) = pattern.split_first() else { return name.is_empty() };
    let one = |fits: bool, after: &[char]| match name {
        [_, rest @ ..] if fits => rest_fits(after, rest),
        _ => false,
    };
    match (first, name.first()) {
        ('*', _) => (0..=name.len()).any(|skipped| rest_fits(after, &name[skipped..])),
        (_, None) => false,
        ('?', Some(_)) => one(true, after),
        ('[', Some(letter)) => match class(after, *letter) {
            Some((fits, after)) => one(fits, after),
            None => one(*letter == '[', after),
        },
        ('\\', Some(letter)) if !after.is_empty() => one(after[0] == *letter, &after[1..]),
        (same, Some(letter)) => one(same == letter, after),
    }
}

/// Whether a letter is among those in brackets, and what follows these; `None` if they have
/// no end.
fn class(pattern: &[char], letter: char) -> Option<(bool, &[char])> {
    let negated = matches!(pattern, ['!' | '^', ..]);
    let pattern = if negated { &pattern[1..] } else { pattern };
    // A bracket that comes first is one of them.
    let end = pattern.iter().skip(1).position(|letter| *letter == ']')? + 1;
    let (mut among, mut rest) = (false, &pattern[..end]);
    while let [first, after @ ..] = rest {
        (among, rest) = match after {
            ['-', last, after @ ..] => (among || (*first..=*last).contains(&letter), after),
            _ => (among || *first == letter, after),
        };
    }
    Some((among != negated, &pattern[end + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_patterns() {
        for (pattern, name) in [
            ("*", "a"),
            ("*.conf", "a.b.conf"),
            ("a*b*c", "abbc"),
            ("?b", "\u{e4}b"),
            ("[a-c]x[!0-9]", "bxy"),
            ("[]-]", "]"),
            ("[", "["),
            (".*", ".a"),
            ("\\*", "*"),
            ("a", "a"),
        ] {
            assert!(fits(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [
            ("*", ".a"),
            ("?a", ".a"),
            ("*.conf", "a.confx"),
            ("a*b*c", "abb"),
            ("?", ""),
            ("[a-c]", "d"),
            ("[!a]", "a"),
            ("\\*", "a"),
            ("a", "ab"),
        ] {
            assert!(!fits(pattern, name), "{pattern} {name}");
        }
        assert!(is_pattern("a?") && !is_pattern("a.b"));
    }
}
