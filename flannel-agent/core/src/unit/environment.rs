//! Environment files, as systemd reads them.

/// What systemd takes for blanks.
const BLANK: [char; 4] = [' ', '\t', '\n', '\r'];
/// What a backslash may stand before in double quotes (shell rules).
const ESCAPABLE: [char; 4] = ['"', '\\', '`', '$'];

/// Where in the file the reader is.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum At {
    Comment,
    #[default]
    BeforeName,
    Name,
    BeforeValue,
    Value,
    Escape,
    Single,
    Double,
    DoubleEscape,
}

/// The variables of an environment file, in its order; a later one of a name wins.
///
/// Quotes may stand at the value's beginning, and its parts in quotes may follow each
/// other. A backslash at a line's end takes in the next line. Lines without a `=`, or whose
/// name is none, are left out.
pub fn variables(text: &str) -> Vec<(String, String)> {
    let mut reader = Reader::default();
    for letter in text.chars() {
        reader.take(letter);
    }
    reader.end();
    reader.found
}

#[derive(Default)]
struct Reader {
    at: At,
    name: String,
    value: String,
    /// Length of the value without the blanks at its end.
    whole: usize,
    found: Vec<(String, String)>,
}

impl Reader {
    fn take(&mut self, letter: char) {
        let ends = matches!(letter, '\n' | '\r');
        match self.at {
            At::Comment if ends => self.at = At::BeforeName,
            At::Comment => {}
            At::BeforeName if matches!(letter, '#' | ';') => self.at = At::Comment,
            At::BeforeName if BLANK.contains(&letter) => {}
            At::BeforeName => {
                self.name.push(letter);
                self.at = At::Name;
            }
            At::Name if ends => self.forget(),
            At::Name if letter == '=' => self.at = At::BeforeValue,
            At::Name => self.name.push(letter),
            At::BeforeValue | At::Value if ends => self.end(),
            At::BeforeValue | At::Value if letter == '\\' => self.at = At::Escape,
            At::BeforeValue if letter == '\'' => self.at = At::Single,
            At::BeforeValue if letter == '"' => self.at = At::Double,
            At::BeforeValue if BLANK.contains(&letter) => {}
            At::BeforeValue | At::Value => {
                self.at = At::Value;
                self.value.push(letter);
                if !BLANK.contains(&letter) {
                    self.whole = self.value.len();
                }
            }
            At::Escape => {
                self.at = At::Value;
                if !ends {
                    self.keep(letter);
                }
            }
            At::Single if letter == '\'' => self.at = At::BeforeValue,
            At::Double if letter == '"' => self.at = At::BeforeValue,
            At::Double if letter == '\\' => self.at = At::DoubleEscape,
            At::Single | At::Double => self.keep(letter),
            At::DoubleEscape => {
                self.at = At::Double;
                if !ends && !ESCAPABLE.contains(&letter) {
                    self.keep('\\');
                }
                if !ends {
                    self.keep(letter);
                }
            }
        }
    }

    /// Takes a letter of the value that stays, also if it is a blank at its end.
    fn keep(&mut self, letter: char) {
        self.value.push(letter);
        self.whole = self.value.len();
    }

    /// The end of a variable.
    fn end(&mut self) {
        let has_value = !matches!(self.at, At::Comment | At::BeforeName | At::Name);
        let name = self.name.trim_end();
        if has_value && is_name(name) {
            let value = self.value[..self.whole].to_owned();
            self.found.push((name.to_owned(), value));
        }
        self.forget();
    }

    fn forget(&mut self) {
        self.name.clear();
        self.value.clear();
        self.whole = 0;
        self.at = At::BeforeName;
    }
}

fn is_name(name: &str) -> bool {
    let good = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    !name.is_empty() && !name.starts_with(|c: char| c.is_ascii_digit()) && name.chars().all(good)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(text: &str) -> Vec<String> {
        variables(text).into_iter().map(|(name, value)| format!("{name}={value}")).collect()
    }

    #[test]
    fn names_and_values_have_blanks_around() {
        assert_eq!(told("A=b\n  C = d e \t\n\nF=\nG=h"), ["A=b", "C=d e", "F=", "G=h"]);
        assert_eq!(told("A=b\r\nC=d\r\n"), ["A=b", "C=d"]);
    }

    #[test]
    fn what_is_no_variable_is_left_out() {
        let text = "# A=b\n ; C=d\nexport E=f\n1=g\nH\n=i\nJ=k # no comment\n";
        assert_eq!(told(text), ["J=k # no comment"]);
        assert_eq!(told("# on \\\nA=b\n"), ["A=b"], "a comment ends with its line");
    }

    #[test]
    fn quotes_are_taken_off_and_keep_what_is_in_them() {
        assert_eq!(told("A=\"b  c \" \nD='e \\ \"f'\n"), ["A=b  c ", "D=e \\ \"f"]);
        assert_eq!(told("A='b'\"c\"d\n"), ["A=bcd"]);
        assert_eq!(told("A=b\"c\"\n"), ["A=b\"c\""], "they begin a value, or are none");
        assert_eq!(told("A=\"b\nc\"\nD=e"), ["A=b\nc", "D=e"]);
        assert_eq!(told("A=\"\\\"\\$b\\\\ \\n\"\n"), ["A=\"$b\\ \\n"]);
    }

    #[test]
    fn a_backslash_goes_on_with_the_next_line() {
        assert_eq!(told("A=b \\\n  c\nD=\"e \\\nf\"\n"), ["A=b   c", "D=e f"]);
        assert_eq!(told("A=b\\ \n"), ["A=b "]);
        assert_eq!(told("A=b\\"), ["A=b"]);
    }
}
