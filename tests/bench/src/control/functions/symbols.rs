//! Functions of a program, by their addresses.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

/// What the hash at the end of a legacy mangled name begins with.
const HASH: &str = "17h";
/// What a crate's hash begins with in any other mangled name; it ends with `_`.
const CRATE: &str = "Cs";

/// Names of functions, each by its address in the file.
pub(super) struct Symbols(BTreeMap<u64, String>);

impl Symbols {
    /// Of a program that was not stripped.
    ///
    /// # Errors
    /// It cannot be read, or it was stripped.
    pub(super) fn of(program: &Path) -> Result<Self> {
        let output = Command::new("nm").args(["--defined-only", "-S"]).arg(program).output();
        let output = output.context("start nm")?;
        let found: BTreeMap<_, _> =
            String::from_utf8_lossy(&output.stdout).lines().filter_map(function).collect();
        if found.is_empty() {
            bail!("{} has no symbols", program.display());
        }
        Ok(Self(found))
    }

    /// The first address, and the last.
    pub(super) fn range(&self) -> Option<(u64, u64)> {
        Some((*self.0.first_key_value()?.0, *self.0.last_key_value()?.0))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, &str)> {
        self.0.iter().map(|(address, name)| (*address, name.as_str()))
    }
}

/// Of `0000000000356cc0 00000000000000d5 t _ZN3std2io5error17h0123456789abcdefE`.
fn function(line: &str) -> Option<(u64, String)> {
    let mut words = line.split_whitespace();
    let address = u64::from_str_radix(words.next()?, 16).ok()?;
    let _size = words.next()?;
    let kind = words.next()?;
    let name = words.next()?;
    kind.eq_ignore_ascii_case("t").then(|| (address, without_hashes(name)))
}

/// What stays the same when something else changes, or the compiler. As packaging/ordered-gcc
/// has it.
fn without_hashes(name: &str) -> String {
    let name = name.split(".llvm.").next().unwrap_or(name);
    if let Some((before, hash)) = name.rsplit_once(HASH)
        && name.starts_with("_ZN")
        && hash.strip_suffix('E').is_some_and(is_hexadecimal)
    {
        return before.to_owned();
    }
    let mut parts = name.split(CRATE);
    let mut kept = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let hash = part.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(0);
        let is_hash = hash > 0 && part[hash..].starts_with('_');
        kept.push_str(CRATE);
        kept.push_str(&part[if is_hash { hash } else { 0 }..]);
    }
    kept
}

fn is_hexadecimal(text: &str) -> bool {
    text.chars().all(|c| c.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_known_without_hashes() {
        let line = "0000000000356cc0 00d5 t _ZN3std2io5error17h0123456789abcdefE.llvm.7";
        assert_eq!(function(line), Some((0x356cc0, "_ZN3std2io5error".into())));
        let line = "0000000000356cc0 00d5 t _RNvNtCsjrHSEGnQ3l9_3std2io4read";
        assert_eq!(function(line), Some((0x356cc0, "_RNvNtCs_3std2io4read".into())));
        let line = "0000000000356cc0 00d5 t _ZN3h23hpack17huffman_and_more";
        assert_eq!(function(line), Some((0x356cc0, "_ZN3h23hpack17huffman_and_more".into())));
        let line = "0000000000356cc0 00d5 T memcpy";
        assert_eq!(function(line), Some((0x356cc0, "memcpy".into())));
        assert_eq!(function("0000000000356cc0 00d5 d _ZN3std5table17h0123456789abcdefE"), None);
        assert_eq!(function("0000000000356cc0 t without_a_size"), None);
    }
}
