//! Why bpf(2), bpffs or an attach call did not do what was asked.

use std::borrow::Cow;
use std::io;

use serde::{Deserialize, Serialize};

/// A bpf(2) or attach call that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{step} {object}: {reason}{}", hint.as_ref().map(|hint| format!(" ({hint})")).unwrap_or_default())]
pub struct BpfError {
    /// What was tried.
    pub step: Cow<'static, str>,
    /// Map, program, hook or path.
    pub object: String,
    /// errno or the library's text.
    pub reason: String,
    /// What usually causes it.
    pub hint: Option<String>,
    /// The end of the verifier's log, if it refused a program.
    pub verifier_log: Option<Box<str>>,
    /// It is somebody else's, and not ours to touch.
    pub foreign: bool,
}

/// Lines of the verifier's log that are kept: the refusal stands at its end.
const LOG_LINES: usize = 20;

impl BpfError {
    /// An error whose reason is `source` with everything below it.
    pub fn new(
        step: &'static str,
        object: impl Into<String>,
        source: &(dyn std::error::Error + 'static),
    ) -> Self {
        let mut reason = String::new();
        let mut verifier_log = None;
        let mut os_error = None;
        let mut next = Some(source);
        while let Some(error) = next {
            if let Some(aya::programs::ProgramError::LoadError { io_error, verifier_log: log }) =
                error.downcast_ref()
            {
                verifier_log = tail(&log.to_string());
                os_error = os_error.or(io_error.raw_os_error());
                push(&mut reason, &format!("the verifier or the kernel refused it: {io_error}"));
                break;
            }
            if let Some(io) = error.downcast_ref::<io::Error>() {
                os_error = os_error.or(io.raw_os_error());
            }
            push(&mut reason, &error.to_string());
            next = error.source();
        }
        let hint = match os_error {
            // Of a map that was opened with all rights.
            Some(libc::EPERM) if MAP_WRITES.contains(&step) => Some(FROZEN.to_owned()),
            errno => errno.and_then(|errno| hint(errno, verifier_log.is_some())),
        };
        let step = step.into();
        Self { step, object: object.into(), reason, hint, verifier_log, foreign: false }
    }

    /// An error of our own, without a cause below it.
    pub fn plain(step: &'static str, object: impl Into<String>, reason: impl Into<String>) -> Self {
        Self {
            step: step.into(),
            object: object.into(),
            reason: reason.into(),
            hint: None,
            verifier_log: None,
            foreign: false,
        }
    }

    /// Logs what the verifier said, if it refused a program.
    pub fn log_verifier(&self) {
        if let Some(log) = &self.verifier_log {
            let program = &self.object;
            tracing::warn!(program, "program refused; the end of the verifier's log:\n{log}");
        }
    }

    /// The same with another hint.
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// Steps that write into a map.
const MAP_WRITES: [&str; 2] = ["write map", "remove from map"];
/// Why a write may be forbidden though the map could be opened.
const FROZEN: &str = "somebody froze the map, or a security module forbids it; stop the agent, run \
                      `flannel-agent cleanup --keep-device`, and start it for new maps";

fn push(reason: &mut String, text: &str) {
    // Wrapping errors often repeat the text of what they wrap.
    if reason.contains(text) {
        return;
    }
    if !reason.is_empty() {
        reason.push_str(": ");
    }
    reason.push_str(text);
}

fn tail(log: &str) -> Option<Box<str>> {
    let lines: Vec<&str> = log.lines().filter(|line| !line.is_empty()).collect();
    let first = lines.len().saturating_sub(LOG_LINES);
    (!lines.is_empty()).then(|| lines[first..].join("\n").into())
}

fn hint(errno: i32, has_log: bool) -> Option<String> {
    let hint = match errno {
        libc::EPERM => {
            "missing capability (CAP_BPF with CAP_NET_ADMIN, or CAP_SYS_ADMIN before Linux 5.8), \
             or forbidden by lockdown, seccomp or a security module"
        }
        libc::EACCES if has_log => "the verifier refused the program, see the end of its log",
        libc::EINVAL => "the kernel is too old for this call, or was built without it",
        libc::E2BIG => "the kernel is too old for the attributes of this call",
        libc::ENOMEM => "out of memory, or of RLIMIT_MEMLOCK before Linux 5.11",
        libc::ENOSPC => "a table or the bpf file system is full",
        libc::EBUSY => "another program occupies the hook exclusively",
        libc::EROFS => "the file system is mounted read-only",
        libc::ENODEV => "the interface has gone",
        _ => return None,
    };
    Some(hint.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_call_the_object_the_cause_and_a_hint() {
        let source = io::Error::from_raw_os_error(libc::EPERM);
        let error = BpfError::new("load program", "from_pod", &source);
        let text = error.to_string();
        assert!(text.starts_with("load program from_pod: Operation not permitted"), "{text}");
        assert!(text.contains("CAP_BPF"), "{text}");
        let text = BpfError::new("write map", "fl_cfg", &source).to_string();
        assert!(text.contains("froze") && !text.contains("CAP_BPF"), "{text}");
    }

    #[test]
    fn keeps_the_end_of_a_long_log() {
        let log: String = (0..100).map(|line| format!("{line}\n")).collect();
        let kept = tail(&log).unwrap();
        assert_eq!(kept.lines().count(), LOG_LINES);
        assert_eq!(kept.lines().last(), Some("99"));
        assert_eq!(tail("\n"), None);
    }
}
