//! The verifier gives up with EAGAIN when a signal comes for its thread, and one
//! comes whenever a child of the agent ends.

use std::io::ErrorKind;

use aya::programs::ProgramError;

/// As often as libbpf tries (`PROG_LOAD_ATTEMPTS`).
const ATTEMPTS: u32 = 5;

/// Loads a program by `load`, again if a signal interrupted it.
///
/// # Errors
/// The last answer.
pub fn unless_interrupted(
    mut load: impl FnMut() -> Result<(), ProgramError>,
) -> Result<(), ProgramError> {
    for _ in 1..ATTEMPTS {
        match load() {
            Err(ProgramError::LoadError { io_error, .. })
                if io_error.kind() == ErrorKind::WouldBlock => {}
            answer => return answer,
        }
    }
    load()
}

#[cfg(test)]
mod tests {
    use std::io::Error;

    use aya_obj::VerifierLog;

    use super::*;

    fn refused(errno: i32) -> ProgramError {
        let io_error = Error::from_raw_os_error(errno);
        ProgramError::LoadError { io_error, verifier_log: VerifierLog::new(String::new()) }
    }

    fn attempts(mut answer: impl FnMut(u32) -> Result<(), ProgramError>) -> (u32, bool) {
        let mut count = 0;
        let result = unless_interrupted(|| {
            count += 1;
            answer(count)
        });
        (count, result.is_ok())
    }

    #[test]
    fn only_an_interrupted_load_is_repeated() {
        assert_eq!(attempts(|_| Ok(())), (1, true));
        assert_eq!(attempts(|_| Err(refused(libc::EINVAL))), (1, false));
        let twice = |count| if count < 3 { Err(refused(libc::EAGAIN)) } else { Ok(()) };
        assert_eq!(attempts(twice), (3, true));
        assert_eq!(attempts(|_| Err(refused(libc::EAGAIN))), (ATTEMPTS, false));
    }
}
