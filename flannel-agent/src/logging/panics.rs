//! What a panic says, as a line of the log in its form.

use std::any::Any;
use std::backtrace::{Backtrace, BacktraceStatus};
use std::panic::{self, PanicHookInfo};
use std::thread;

/// Logs panics from now on.
pub(super) fn log() {
    panic::set_hook(Box::new(tell));
}

fn tell(info: &PanicHookInfo<'_>) {
    let place = info.location().map(ToString::to_string).unwrap_or_default();
    let here = thread::current();
    let thread = here.name().unwrap_or("unnamed");
    let reason = reason(info.payload());
    // RUST_BACKTRACE asks for one.
    let backtrace = Backtrace::capture();
    let backtrace = match backtrace.status() {
        BacktraceStatus::Captured => Some(backtrace.to_string()),
        _ => None,
    };
    tracing::error!(reason, place, thread, backtrace, "panic: a fault of the agent");
}

fn reason(payload: &(dyn Any + Send)) -> &str {
    let owned = || payload.downcast_ref::<String>().map(String::as_str);
    payload.downcast_ref::<&str>().copied().or_else(owned).unwrap_or("no reason given")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_is_told() {
        assert_eq!(reason(&"plain"), "plain");
        assert_eq!(reason(&"with 7".to_owned()), "with 7");
        assert_eq!(reason(&7), "no reason given");
    }
}
