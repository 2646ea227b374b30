//! nextest's report in JUnit's format, read.

use quick_junit::{Report, TestCase, TestCaseStatus};

use super::libtest::SKIP;
use super::outcome::Outcome;

/// What a report says.
pub(crate) fn outcome(report: &Report) -> Outcome {
    let mut outcome = Outcome::default();
    for suite in &report.test_suites {
        for case in &suite.test_cases {
            add(&format!("{} {}", suite.name.as_str(), case.name.as_str()), case, &mut outcome);
        }
    }
    outcome
}

fn add(name: &str, case: &TestCase, outcome: &mut Outcome) {
    match &case.status {
        TestCaseStatus::Success { flaky_runs } => {
            match reason(case) {
                Some(reason) => outcome.skipped.push(format!("{name}: {reason}")),
                None => outcome.passed += 1,
            }
            if !flaky_runs.is_empty() {
                outcome.unsteady.push(name.to_owned());
            }
        }
        TestCaseStatus::NonSuccess { .. } => outcome.failed.push(name.to_owned()),
        TestCaseStatus::Skipped { .. } => outcome.skipped.push(name.to_owned()),
    }
}

/// Why a case did not run: the harness's word, which nextest sees pass.
fn reason(case: &TestCase) -> Option<&str> {
    let said = case.system_err.as_ref()?;
    said.lines().find_map(|line| line.strip_prefix(SKIP))
}

#[cfg(test)]
mod tests {
    use quick_junit::Report;

    use super::outcome;
    use crate::test::outcome::Outcome;

    /// As nextest 0.9.143 writes it.
    const REPORT: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
<testsuites name="nextest-run" tests="4" failures="1" errors="0" uuid="e3a0ff6c-22b1-4d4b-9df7-3b4ed05a3fd9" timestamp="2026-11-26T04:00:00.000+00:00" time="1.500">
    <testsuite name="flannel-tests::e2e" tests="4" disabled="0" errors="0" failures="1">
        <testcase name="repair::a_good_one" classname="flannel-tests::e2e" time="0.500">
            <system-out>running 1 test</system-out>
            <system-err>SKIPPED packets: 0</system-err>
        </testcase>
        <testcase name="repair::a_bad_one" classname="flannel-tests::e2e" time="0.500">
            <failure message="thread panicked" type="test failure with exit code 101">text</failure>
            <rerunFailure timestamp="2026-11-26T04:00:00.000+00:00" time="0.5" message="thread panicked" type="test failure with exit code 101">text</rerunFailure>
            <system-err>SKIP of no one: it failed later</system-err>
        </testcase>
        <testcase name="repair::an_unsteady_one" classname="flannel-tests::e2e" time="0.500">
            <flakyFailure timestamp="2026-11-26T04:00:00.000+00:00" time="0.5" message="thread panicked" type="test failure with exit code 101">text</flakyFailure>
        </testcase>
        <testcase name="xdp::auto" classname="flannel-tests::e2e" time="0.500">
            <system-err>
SKIP auto: no two cards
</system-err>
        </testcase>
    </testsuite>
</testsuites>
"#;

    #[test]
    fn each_case_is_counted_once_by_how_it_ended() {
        let read = outcome(&Report::deserialize_from_str(REPORT).unwrap());
        let expected = Outcome {
            passed: 2,
            failed: vec!["flannel-tests::e2e repair::a_bad_one".to_owned()],
            skipped: vec!["flannel-tests::e2e xdp::auto: auto: no two cards".to_owned()],
            unsteady: vec!["flannel-tests::e2e repair::an_unsteady_one".to_owned()],
        };
        assert_eq!(read, expected);
    }
}
