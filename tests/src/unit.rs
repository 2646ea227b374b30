//! systemd's reading of a service: environment files and command lines.

use std::collections::BTreeMap;

/// What of a unit file says how a service is started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unit {
    /// `EnvironmentFile=`: path, and whether it may be absent.
    pub environment_files: Vec<(String, bool)>,
    /// `ExecStart=`.
    pub start: String,
    /// `ExecStartPost=`.
    pub start_post: Vec<String>,
}

impl Unit {
    /// Reads a unit file; of no interest here are all other settings.
    pub fn parse(text: &str) -> Self {
        let mut unit = Self::default();
        for line in text.replace("\\\n", " ").lines() {
            let Some((key, value)) = line.trim().split_once('=') else { continue };
            match (key, value.trim()) {
                ("EnvironmentFile", value) => {
                    let path = value.strip_prefix('-').unwrap_or(value);
                    unit.environment_files.push((path.to_owned(), path != value));
                }
                ("ExecStart", value) => unit.start = value.to_owned(),
                ("ExecStartPost", value) => unit.start_post.push(value.to_owned()),
                _ => {}
            }
        }
        unit
    }
}

/// Variables of an environment file, quotes around values taken off.
pub fn variables(text: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for line in text.lines().map(str::trim) {
        if line.starts_with(['#', ';']) {
            continue;
        }
        if let Some((key, value)) = line.split_once('=') {
            let value = value.trim();
            let inner = ['"', '\''].iter().find_map(|quote| {
                value.strip_prefix(*quote).and_then(|rest| rest.strip_suffix(*quote))
            });
            found.push((key.trim().to_owned(), inner.unwrap_or(value).to_owned()));
        }
    }
    found
}

/// A command line's words. `${NAME}` is replaced within its word, a word
/// `$NAME` by the words of the value; what is not set is empty.
pub fn words(line: &str, environment: &BTreeMap<String, String>) -> Vec<String> {
    let value = |name: &str| environment.get(name).map_or("", String::as_str);
    let mut words = Vec::new();
    for word in line.split_whitespace() {
        match word.strip_prefix('$') {
            Some(name) if !name.starts_with('{') => {
                words.extend(value(name).split_whitespace().map(str::to_owned));
            }
            _ => {
                let (mut text, mut rest) = (String::new(), word);
                while let Some((before, after)) = rest.split_once("${") {
                    let (name, after) = after.split_once('}').expect("a closing brace");
                    text.push_str(before);
                    text.push_str(value(name));
                    rest = after;
                }
                words.push(text + rest);
            }
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_as_systemd_splits_them() {
        let file = "# a comment\nA=\"http://a:1,http://b:2\"\n; another\nOPTIONS='-x  -y=1'\nB=\n";
        let environment = variables(file).into_iter().collect();
        let line = "/usr/bin/flanneld -e=${A} ${A} $OPTIONS ${OPTIONS} -z=$A $B ${NONE} end";
        assert_eq!(
            words(line, &environment),
            [
                "/usr/bin/flanneld",
                "-e=http://a:1,http://b:2",
                "http://a:1,http://b:2",
                "-x",
                "-y=1",
                "-x  -y=1",
                "-z=$A",
                "",
                "end"
            ]
        );
    }

    #[test]
    fn what_starts_a_service() {
        let unit = Unit::parse(
            "[Service]\nEnvironmentFile=/a\nEnvironmentFile=-/b\nExecStart=/x \\\n  -y\n\
             ExecStartPost=one\nExecStartPost=two\n",
        );
        assert_eq!(unit.environment_files, [("/a".to_owned(), false), ("/b".to_owned(), true)]);
        assert_eq!(words(&unit.start, &BTreeMap::new()), ["/x", "-y"]);
        assert_eq!(unit.start_post, ["one", "two"]);
    }
}
