//! The paths that a source text names.

/// A path as it is written, with the name that it is imported by.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Named {
    /// Its names.
    pub(super) path: Vec<String>,
    /// The name that a `use` gives it.
    pub(super) import: Option<String>,
}

/// All paths from `crate`, `super` and `self` outside of tests.
pub(super) fn paths(source: &str) -> Vec<Named> {
    let code = without_tests(source);
    let mut found = Vec::new();
    let mut rest = code.as_str();
    while let Some((before, tree, after)) = next_use(rest) {
        written(before, &mut found);
        expand(&mut Vec::new(), tree, &mut found);
        rest = after;
    }
    written(rest, &mut found);
    found
}

/// Without comments, and without modules that are for tests only.
fn without_tests(source: &str) -> String {
    let mut code = String::new();
    let mut lines = source.lines();
    while let Some(line) = lines.next() {
        if line.trim() == "#[cfg(test)]" {
            // rustfmt ends a module with a brace as far to the left as it began.
            if lines.next().is_some_and(|line| line.ends_with('{')) {
                let end = format!("{}}}", &line[..line.len() - line.trim_start().len()]);
                lines.by_ref().find(|line| *line == end);
            }
            continue;
        }
        code.push_str(line.split("//").next().unwrap_or(line));
        code.push('\n');
    }
    code
}

/// What is before the next `use`, its tree, and what is behind it.
fn next_use(code: &str) -> Option<(&str, &str, &str)> {
    let mut from = 0;
    loop {
        let at = from + code[from..].find("use ")?;
        let line = code[..at].rsplit('\n').next().unwrap_or_default().trim();
        if line.is_empty() || (line.starts_with("pub") && !line.contains(' ')) {
            let (tree, after) = code[at + 4..].split_once(';')?;
            return Some((&code[..at], tree, after));
        }
        from = at + 4;
    }
}

/// The paths of a `use`: `a::{self, b as c, d::*}`.
fn expand(prefix: &mut Vec<String>, tree: &str, found: &mut Vec<Named>) {
    let (path, group) = match tree.split_once('{') {
        Some((path, group)) => (path, group.trim_end().strip_suffix('}')),
        None => (tree, None),
    };
    let (path, alias) = match path.split_once(" as ") {
        Some((path, alias)) => (path, Some(alias.trim().to_owned())),
        None => (path, None),
    };
    let length = prefix.len();
    let names = path.split("::").map(str::trim).filter(|name| !name.is_empty());
    prefix.extend(names.map(str::to_owned));
    match group {
        Some(group) => parts(group).into_iter().for_each(|part| expand(prefix, part, found)),
        None => {
            let mut path = prefix.clone();
            if path.len() > 1 && path.last().is_some_and(|last| last == "self" || last == "*") {
                path.pop();
            }
            let import = alias.or_else(|| path.last().cloned());
            found.push(Named { path, import });
        }
    }
    prefix.truncate(length);
}

/// The parts of a group, by its commas outside of inner groups.
fn parts(group: &str) -> Vec<&str> {
    let (mut depth, mut from, mut parts) = (0_i32, 0, Vec::new());
    for (at, sign) in group.char_indices() {
        match sign {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(group[from..at].trim());
                from = at + 1;
            }
            _ => {}
        }
    }
    parts.push(group[from..].trim());
    parts.retain(|part| !part.is_empty());
    parts
}

/// Paths that stand in the code itself.
fn written(code: &str, found: &mut Vec<Named>) {
    let is_part = |sign: char| sign.is_alphanumeric() || sign == '_' || sign == ':';
    for word in code.split(|sign: char| !is_part(sign)) {
        let path: Vec<String> =
            word.split("::").filter(|name| !name.is_empty()).map(str::to_owned).collect();
        if path.len() > 1 && matches!(path[0].as_str(), "crate" | "super" | "self") {
            found.push(Named { path, import: None });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(source: &str) -> Vec<String> {
        let text = |named: Named| match named.import {
            Some(name) => format!("{} = {name}", named.path.join("::")),
            None => named.path.join("::"),
        };
        paths(source).into_iter().map(text).collect()
    }

    #[test]
    fn groups_aliases_and_paths_in_code_are_read() {
        let source = "\
pub(crate) use crate::a::{self, b::{C, D as E}};
    use super::*;
fn f(x: crate::g::H) -> Option<self::i> { because::of(x) } // crate::no
use std::fmt;
";
        assert_eq!(
            texts(source),
            [
                "crate::a = a",
                "crate::a::b::C = C",
                "crate::a::b::D = E",
                "super = super",
                "crate::g::H",
                "self::i",
                "std::fmt = fmt",
            ]
        );
    }

    #[test]
    fn tests_are_left_out() {
        let source = "\
#[cfg(test)]
mod tests {
    use crate::a;
    fn f() {
    }
}
#[cfg(test)]
mod more;
use crate::b;
";
        assert_eq!(texts(source), ["crate::b = b"]);
    }
}
