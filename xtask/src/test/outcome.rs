//! What all runners found, and the last lines about it.

/// Results of one or more runners.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// Cases that passed, at their second try too.
    pub(crate) passed: usize,
    /// Cases that failed at each try, and runners that did not run to their end.
    pub(crate) failed: Vec<String>,
    /// Cases that said that they cannot run here, with their reason.
    pub(crate) skipped: Vec<String>,
    /// Cases that passed at their second try.
    pub(crate) unsteady: Vec<String>,
}

impl Outcome {
    pub(crate) fn add(&mut self, mut other: Outcome) {
        self.passed += other.passed;
        self.failed.append(&mut other.failed);
        self.skipped.append(&mut other.skipped);
        self.unsteady.append(&mut other.unsteady);
    }

    /// What a reader has to know, a line each; the last one is the count.
    pub(crate) fn lines(&self, ci: bool) -> Vec<String> {
        let told = [
            ("failed", &self.failed),
            ("skipped", &self.skipped),
            ("unsteady, passed at a later try", &self.unsteady),
        ];
        let told = told
            .iter()
            .flat_map(|(what, names)| names.iter().map(move |name| format!("{what}: {name}")));
        let mut lines: Vec<_> = told.collect();
        if ci && !self.skipped.is_empty() {
            lines.push("tests were skipped; in CI everything has to run".to_owned());
        }
        let Self { passed, failed, skipped, .. } = self;
        lines.push(format!("{passed} passed, {} failed, {} skipped", failed.len(), skipped.len()));
        lines
    }

    /// Whether all is well.
    pub(crate) fn good(&self, ci: bool) -> bool {
        self.failed.is_empty() && (!ci || self.skipped.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::Outcome;

    fn outcome(passed: usize, failed: &[&str], skipped: &[&str], unsteady: &[&str]) -> Outcome {
        let [failed, skipped, unsteady] =
            [failed, skipped, unsteady].map(|names| names.iter().map(|n| n.to_string()).collect());
        Outcome { passed, failed, skipped, unsteady }
    }

    #[test]
    fn runners_add_up_and_the_count_comes_last() {
        let mut all = outcome(3, &["a"], &[], &["b"]);
        all.add(outcome(4, &["c"], &["d: no card"], &[]));
        assert_eq!(
            all.lines(false),
            [
                "failed: a",
                "failed: c",
                "skipped: d: no card",
                "unsteady, passed at a later try: b",
                "7 passed, 2 failed, 1 skipped",
            ]
        );
        assert!(!all.good(false));
    }

    #[test]
    fn a_skip_fails_in_ci_only_and_a_second_try_nowhere() {
        let skip = outcome(1, &[], &["d: no card"], &[]);
        assert!(skip.good(false) && !skip.good(true));
        assert_eq!(skip.lines(true).len(), 3);
        assert!(outcome(1, &[], &[], &["b"]).good(true));
    }
}
