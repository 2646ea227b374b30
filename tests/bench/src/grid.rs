//! A table of words, as plain text and as Markdown. Pure.

use super::figures::Spread;

/// Lines of words; the first column is on the left, the others are numbers.
pub(super) struct Grid {
    pub(super) head: Vec<String>,
    pub(super) lines: Vec<Vec<String>>,
}

impl Grid {
    /// With blanks, so that columns stand below each other.
    pub(super) fn text(&self) -> String {
        let all = || std::iter::once(&self.head).chain(&self.lines);
        let width = |index: usize| {
            all().filter_map(|line| line.get(index)).map(|word| word.chars().count()).max()
        };
        let mut text = String::new();
        for line in all() {
            let mut row = String::new();
            for (index, word) in line.iter().enumerate() {
                let width = width(index).unwrap_or(0);
                row += &match index {
                    0 => format!("{word:<width$}"),
                    _ => format!("  {word:>width$}"),
                };
            }
            text += row.trim_end();
            text.push('\n');
        }
        text
    }

    /// As a table of Markdown.
    pub(super) fn markdown(&self) -> String {
        let line = |words: &[String]| format!("| {} |\n", words.join(" | "));
        let rule = format!("|---{}|\n", "|---:".repeat(self.head.len().saturating_sub(1)));
        let lines: String = self.lines.iter().map(|words| line(words)).collect();
        format!("{}{rule}{lines}", line(&self.head))
    }
}

/// A median ratio.
pub(super) fn times(spread: Option<&Spread>) -> String {
    spread.map_or("-".into(), |spread| format!("{:.2}", spread.median))
}

/// Digits that mean something.
pub(super) fn number(value: f64) -> String {
    match value {
        1000.0.. => format!("{value:.0}"),
        100.0.. => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_below_each_other() {
        let words = |line: &[&str]| line.iter().map(|word| (*word).to_owned()).collect();
        let grid = Grid {
            head: words(&["", "n"]),
            lines: vec![words(&["µ row", "1"]), words(&["b", "100"])],
        };
        assert_eq!(grid.text(), "         n\nµ row    1\nb      100\n");
        assert_eq!(grid.markdown(), "|  | n |\n|---|---:|\n| µ row | 1 |\n| b | 100 |\n");
    }

    #[test]
    fn digits_that_mean_something() {
        assert_eq!([0.5, 99.994, 123.45, 45678.9].map(number), ["0.50", "99.99", "123.5", "45679"]);
        assert_eq!(times(None), "-");
    }
}
