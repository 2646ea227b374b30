//! What runners print, read.

/// Results of one or more runners.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Count {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) skipped: u64,
    /// A runner came to its end and said so.
    pub(crate) ended: bool,
}

impl Count {
    /// Reads one line of a runner's output.
    pub(crate) fn line(&mut self, line: &str) {
        // libtest: "test result: ok. 3 passed; 0 failed; 1 ignored; ..."
        if let Some(result) = line.trim_start().strip_prefix("test result: ") {
            self.ended = true;
            for part in result.split(['.', ';']) {
                let mut words = part.split_whitespace();
                let number = words.next().and_then(|word| word.parse::<u64>().ok());
                match (number, words.next()) {
                    (Some(number), Some("passed")) => self.passed += number,
                    (Some(number), Some("failed")) => self.failed += number,
                    (Some(number), Some("ignored")) => self.skipped += number,
                    _ => {}
                }
            }
        } else if line.starts_with("SKIP ") {
            // The harness's way of not running a case: libtest sees it pass.
            self.skipped += 1;
            self.passed = self.passed.saturating_sub(1);
        }
    }

    pub(crate) fn add(&mut self, other: &Count) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
        self.ended |= other.ended;
    }
}

/// Cases of a program that failed, by name.
#[derive(Debug, Default)]
pub(crate) struct Failures {
    pub(crate) names: Vec<String>,
    /// Those that passed when they ran again.
    pub(crate) passed: Vec<String>,
}

impl Failures {
    /// Reads one line of libtest's output.
    pub(crate) fn line(&mut self, line: &str) {
        let name = line.strip_prefix("test ").and_then(|line| line.strip_suffix(" ... FAILED"));
        self.names.extend(name.map(str::to_owned));
    }

    /// The same, when they run again.
    pub(crate) fn again(&mut self, line: &str) {
        let name = line.strip_prefix("test ").and_then(|line| line.strip_suffix(" ... ok"));
        self.passed.extend(name.map(str::to_owned));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.names.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::{Count, Failures};

    fn count(lines: &[&str]) -> Count {
        let mut count = Count::default();
        lines.iter().for_each(|line| count.line(line));
        count
    }

    #[test]
    fn results_of_all_runners_add_up() {
        let text = [
            "running 3 tests",
            "test a ... ok",
            "test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s",
            "test result: FAILED. 4 passed; 2 failed; 1 ignored; 0 measured; 7 filtered out; finished in 1.50s",
        ];
        assert_eq!(count(&text), Count { passed: 7, failed: 2, skipped: 1, ended: true });
    }

    #[test]
    fn what_failed_is_found_again() {
        let mut failures = Failures::default();
        for line in [
            "test a_good_one ... ok",
            "test module::a_bad_one ... FAILED",
            "test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out",
        ] {
            failures.line(line);
        }
        assert_eq!(failures.names, ["module::a_bad_one"]);
        failures.again("test module::a_bad_one ... ok");
        assert_eq!(failures.passed, ["module::a_bad_one"]);
    }

    #[test]
    fn a_skip_is_not_a_pass() {
        let text = [
            "test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s",
            "SKIP tcx: the kernel has none",
        ];
        assert_eq!(count(&text), Count { passed: 1, failed: 0, skipped: 1, ended: true });
    }
}
