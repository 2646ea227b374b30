//! The verifier gives up with EAGAIN when a signal comes for its thread, and one
//! comes whenever a child of the agent ends. So its thread takes none meanwhile.

use std::io::ErrorKind;

use aya::programs::ProgramError;
use nix::sys::signal::{SigSet, SigmaskHow};

/// As often as libbpf tries (`PROG_LOAD_ATTEMPTS`).
const ATTEMPTS: u32 = 5;

/// Loads a program by `load`, with signals left to other threads; again if one
/// interrupted it all the same.
///
/// # Errors
/// The last answer.
pub fn unless_interrupted(
    mut load: impl FnMut() -> Result<(), ProgramError>,
) -> Result<(), ProgramError> {
    // Where that fails, signals come as ever.
    let mask = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK).ok();
    let answer = repeated(&mut load);
    if let Some(mask) = mask {
        let _ = mask.thread_set_mask();
    }
    answer
}

fn repeated(mut load: impl FnMut() -> Result<(), ProgramError>) -> Result<(), ProgramError> {
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
    use nix::sys::signal::Signal;

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

    #[test]
    fn signals_go_to_other_threads_while_it_loads() {
        let before = SigSet::thread_get_mask().unwrap();
        let mut during = None;
        let loaded = unless_interrupted(|| {
            during = SigSet::thread_get_mask().ok();
            Ok(())
        });
        assert!(loaded.is_ok());
        assert!(during.unwrap().contains(Signal::SIGCHLD));
        assert_eq!(SigSet::thread_get_mask().unwrap(), before);
    }
}
