//! The words of a line of a unit, as systemd splits them.

use super::Variables;

/// The words of a line, without quotes and escapes.
pub(super) fn split(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut letters = line.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '\\' => word.get_or_insert_default().extend(letters.next()),
            _ if quote == Some(letter) => quote = None,
            '"' | '\'' if quote.is_none() => {
                quote = Some(letter);
                word.get_or_insert_default();
            }
            _ if letter.is_whitespace() && quote.is_none() => words.extend(word.take()),
            _ => word.get_or_insert_default().push(letter),
        }
    }
    words.extend(word);
    words
}

/// The words of a command, first `expanded`. A word `$NAME` becomes the words of its value,
/// `${NAME}` the value within its word, and `$$` a dollar. What is not set is empty.
pub(super) fn replaced(
    command: &str,
    expanded: impl Fn(&str) -> String,
    variables: &Variables,
) -> Vec<String> {
    let mut words = Vec::new();
    for word in split(command) {
        let word = expanded(&word);
        match word.strip_prefix('$').filter(|name| is_name(name)) {
            Some(name) => words.extend(variables.get(name).iter().flat_map(|value| split(value))),
            None => words.push(within(&word, variables)),
        }
    }
    words
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

fn within(word: &str, variables: &Variables) -> String {
    let (mut text, mut rest) = (String::new(), word);
    while let Some((before, after)) = rest.split_once('$') {
        text.push_str(before);
        let name = after.strip_prefix('{').and_then(|name| name.split_once('}'));
        rest = if let Some((name, after)) = name {
            text.push_str(variables.get(name).map_or("", String::as_str));
            after
        } else {
            text.push('$');
            after.strip_prefix('$').unwrap_or(after)
        };
    }
    text + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_split_and_variables_put_in() {
        assert_eq!(split(r#"a  "b c" d'e f'g "" h\ i"#), ["a", "b c", "de fg", "", "h i"]);
        let pairs = [("A", "http://a:1,http://b:2"), ("OPTIONS", "-x  '-y=1 2'"), ("B", "")];
        let variables = pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let line = "/bin/x -e=${A} ${A} $OPTIONS ${OPTIONS} -z=$A $B ${NONE} $NONE $$A end";
        assert_eq!(
            replaced(line, str::to_owned, &variables),
            [
                "/bin/x",
                "-e=http://a:1,http://b:2",
                "http://a:1,http://b:2",
                "-x",
                "-y=1 2",
                "-x  '-y=1 2'",
                "-z=$A",
                "",
                "$A",
                "end"
            ]
        );
    }
}
