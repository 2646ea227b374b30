//! Fenced blocks of the documents, and what is said of running them. Pure.

/// A fenced block.
#[derive(Debug, PartialEq, Eq)]
pub struct Block {
    /// Number of the line with the opening fence, from 1.
    pub line: usize,
    /// The word after the fence; may be empty.
    pub language: String,
    /// What stands between the fences, without their indentation.
    pub text: String,
    /// The comment on the line before.
    pub marker: Option<Marker>,
}

/// What a comment before a block says.
#[derive(Debug, PartialEq, Eq)]
pub enum Marker {
    /// `<!-- not run: REASON -->`
    NotRun(String),
    /// `<!-- run [on node N | on each node | beside etcd] [in the background until COMMAND] -->`
    Run(Run),
    /// A comment that begins like these and cannot be read.
    Unknown(String),
}

/// How a block is run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Run {
    /// Where.
    pub place: Place,
    /// It does not end; the next block comes when this command succeeds.
    pub until: Option<String>,
}

/// Where a block is run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Place {
    /// On the first node.
    #[default]
    First,
    /// On the second node.
    Second,
    /// On both, one after the other.
    Each,
}

/// The blocks of a document.
///
/// # Panics
/// A block has no end.
pub fn blocks(text: &str) -> Vec<Block> {
    let mut found = Vec::new();
    let mut marker = None;
    let mut lines = text.lines().enumerate();
    while let Some((index, line)) = lines.next() {
        let Some(language) = line.trim_start().strip_prefix("```") else {
            if !line.trim().is_empty() {
                marker = Marker::read(line.trim());
            }
            continue;
        };
        let indent = line.len() - line.trim_start().len();
        let mut body = String::new();
        loop {
            let (_, line) = lines.next().unwrap_or_else(|| panic!("line {}: no end", index + 1));
            if line.trim() == "```" {
                break;
            }
            body += line.get(indent..).unwrap_or_default();
            body.push('\n');
        }
        let language = language.trim().to_owned();
        found.push(Block { line: index + 1, language, text: body, marker: marker.take() });
    }
    found
}

impl Marker {
    fn read(line: &str) -> Option<Self> {
        let text = line.strip_prefix("<!--")?.strip_suffix("-->")?.trim();
        if let Some(reason) = text.strip_prefix("not run:") {
            return Some(Self::NotRun(reason.trim().to_owned()));
        }
        let rest =
            text.strip_prefix("run").filter(|rest| rest.is_empty() || rest.starts_with(' '))?;
        let (place, until) = match rest.split_once("in the background until ") {
            Some((place, command)) => (place, Some(command.trim().to_owned())),
            None => (rest, None),
        };
        let place = match place.trim() {
            "" => Place::First,
            "on node 2" => Place::Second,
            "on each node" => Place::Each,
            _ => return Some(Self::Unknown(text.to_owned())),
        };
        Some(Self::Run(Run { place, until }))
    }
}

impl Block {
    /// How it is run; `None`: it is not.
    ///
    /// # Errors
    /// It must say, and does not.
    pub fn how(&self) -> Result<Option<Run>, String> {
        match (&self.marker, self.language.as_str()) {
            (_, "") => Err("has no language: sh for commands, text for what is shown".to_owned()),
            (Some(Marker::Unknown(text)), _) => Err(format!("cannot read <!-- {text} -->")),
            (Some(Marker::NotRun(reason)), _) if reason.split_whitespace().count() < 3 => {
                Err("is not run, and does not say why".to_owned())
            }
            (Some(Marker::NotRun(_)), "sh") => Ok(None),
            (Some(Marker::Run(run)), "sh") => Ok(Some(run.clone())),
            (None, "sh") => Ok(Some(Run::default())),
            (None, "bash" | "shell" | "console") => Err("is commands: say sh".to_owned()),
            (None, _) => Ok(None),
            (Some(_), _) => Err("is no commands, and has a marker of those".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_have_their_markers() {
        let text = "# T\n\n<!-- not run: it takes an hour -->\n```sh\na\n```\n\ntext\n\n   \
                    <!-- run on each node -->\n\n   ```sh\n   b\n     c\n   ```\n```text\nd\n```\n";
        let found = blocks(text);
        assert_eq!(found.len(), 3, "{found:?}");
        assert_eq!(found[0].how(), Ok(None));
        assert_eq!(found[0].line, 4);
        let run = Run { place: Place::Each, until: None };
        assert_eq!(found[1].how(), Ok(Some(run)));
        assert_eq!(found[1].text, "b\n  c\n");
        assert_eq!((found[2].how(), &found[2].marker), (Ok(None), &None));
    }

    #[test]
    fn a_marker_is_for_the_next_block_alone() {
        let found = blocks("<!-- not run: it takes an hour -->\ntext\n```sh\na\n```\n");
        assert_eq!(found[0].how(), Ok(Some(Run::default())));
    }

    #[test]
    fn what_does_not_say_enough_is_refused() {
        for text in [
            "```\na\n```",
            "```bash\na\n```",
            "<!-- not run: -->\n```sh\na\n```",
            "<!-- not run: slow -->\n```sh\na\n```",
            "<!-- run somewhere -->\n```sh\na\n```",
            "<!-- run -->\n```text\na\n```",
        ] {
            assert!(blocks(text)[0].how().is_err(), "{text}");
        }
    }

    #[test]
    fn the_background_has_a_condition() {
        let text = "<!-- run on node 2 in the background until test -e /x -->\n```sh\na\n```";
        let run = Run { place: Place::Second, until: Some("test -e /x".to_owned()) };
        assert_eq!(blocks(text)[0].how(), Ok(Some(run)));
    }
}
