//! What libtest prints in a machine that has no nextest, read.

/// Beginning of the harness's word for a case that cannot run: libtest sees it pass.
pub(crate) const SKIP: &str = "SKIP ";

/// What a run of libtest said so far.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    /// What libtest counted, once it came to its end: passed, failed.
    pub(crate) counted: Option<(usize, usize)>,
    /// Names of cases that failed.
    pub(crate) failed: Vec<String>,
    /// Names of cases that were skipped, with the reason.
    pub(crate) skipped: Vec<String>,
}

impl Seen {
    /// Reads one line.
    pub(crate) fn line(&mut self, line: &str) {
        if let Some(result) = line.trim_start().strip_prefix("test result: ") {
            // "ok. 3 passed; 1 failed; 0 ignored; ..."
            let number = |name| {
                let mut parts = result.split(['.', ';']);
                parts.find_map(|part| part.trim().strip_suffix(name)?.trim().parse().ok())
            };
            self.counted = number("passed").zip(number("failed"));
        } else if let Some(skipped) = line.strip_prefix(SKIP) {
            self.skipped.push(skipped.to_owned());
        } else {
            let name = line.strip_prefix("test ").and_then(|line| line.strip_suffix(" ... FAILED"));
            self.failed.extend(name.map(str::to_owned));
        }
    }

    /// Whether it came to its end and named all that failed.
    pub(crate) fn whole(&self) -> bool {
        self.counted.is_some_and(|(_, failed)| failed == self.failed.len())
    }
}

#[cfg(test)]
mod tests {
    use super::Seen;

    fn seen(lines: &[&str]) -> Seen {
        let mut seen = Seen::default();
        lines.iter().for_each(|line| seen.line(line));
        seen
    }

    #[test]
    fn failures_and_skips_are_named_and_the_result_is_counted() {
        let text = [
            "running 3 tests",
            "test a_good_one ... ok",
            "test module::a_bad_one ... FAILED",
            "test tcx ... ",
            "SKIP tcx: the kernel has none",
            "ok",
            "test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.50s",
        ];
        let seen = seen(&text);
        assert_eq!(seen.counted, Some((2, 1)));
        assert_eq!(seen.failed, ["module::a_bad_one"]);
        assert_eq!(seen.skipped, ["tcx: the kernel has none"]);
        assert!(seen.whole());
    }

    #[test]
    fn a_run_without_a_result_or_with_an_unnamed_failure_is_not_whole() {
        assert!(!seen(&["test a ... ok"]).whole());
        assert!(!seen(&["test result: FAILED. 2 passed; 1 failed; 0 ignored"]).whole());
    }
}
