//! Links of the documents: each leads to a file, and to a heading that it has.

use std::path::Path;

use anyhow::Result;
use fs_err as fs;

/// Folders whose pages are read.
const FOLDERS: [&str; 2] = [".", "docs"];

/// What is wrong with the documents' links.
pub(super) fn complaints(root: &Path) -> Result<Vec<String>> {
    let mut complaints = Vec::new();
    for folder in FOLDERS {
        let dir = root.join(folder);
        for entry in fs::read_dir(&dir)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "md") {
                let text = fs::read_to_string(&path)?;
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                let wrong = links(&text).filter_map(|link| check(&path, &text, link));
                complaints.extend(wrong.map(|why| format!("{folder}/{name}: {why}")));
            }
        }
    }
    complaints.sort();
    Ok(complaints)
}

/// Targets of `[text](target)`, apart from other machines'.
fn links(text: &str) -> impl Iterator<Item = &str> {
    text.split("](").skip(1).filter_map(|rest| rest.split(')').next()).filter(|target| {
        !target.contains("://") && !target.contains(char::is_whitespace) && !target.is_empty()
    })
}

fn check(page: &Path, text: &str, link: &str) -> Option<String> {
    let (file, heading) = link.split_once('#').unwrap_or((link, ""));
    let target = page.parent().unwrap_or(page).join(file);
    if !file.is_empty() && !target.exists() {
        return Some(format!("{link} leads nowhere"));
    }
    if heading.is_empty() {
        return None;
    }
    let other = if file.is_empty() { text.to_owned() } else { fs::read_to_string(target).ok()? };
    let found =
        other.lines().filter(|line| line.starts_with('#')).any(|line| anchor(line) == heading);
    (!found).then(|| format!("{link}: there is no such heading"))
}

/// How a heading is named in a link.
fn anchor(heading: &str) -> String {
    let words = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = words.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_links_are_named() {
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("page.md");
        let text =
            "# A page\n[a](Cargo.toml) [b](gone.md)\n[c](#a-page) [d](#no) [e](https://a.b/c)\n";
        let wrong: Vec<_> = links(text).filter_map(|link| check(&page, text, link)).collect();
        assert_eq!(wrong, ["gone.md leads nowhere", "#no: there is no such heading"]);
        assert_eq!(anchor("## `--fast-path=eager`"), "--fast-patheager");
    }
}
