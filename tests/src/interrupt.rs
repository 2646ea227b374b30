//! Cleaning up when a person stops a program.

use nix::sys::signal::{SigSet, Signal};

/// Makes SIGINT, SIGTERM and SIGHUP remove what this process made, then end
/// it. To be called first: threads started before would take the signals.
///
/// # Panics
/// Signals cannot be blocked.
pub fn clean_up() {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        signals.add(signal);
    }
    // Children start with nothing blocked (std::process resets the mask).
    signals.thread_block().expect("block signals");
    std::thread::spawn(move || {
        let signal = signals.wait().expect("wait for a signal");
        eprintln!("\n{signal}: removing namespaces, devices and pins");
        // Other threads find their processes killed; that is no news.
        std::panic::set_hook(Box::new(|_| {}));
        crate::process::end_children();
        crate::netns::sweep(true);
        std::process::exit(128 + signal as i32);
    });
}
