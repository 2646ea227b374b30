//! `flannel-agent completions`.

use std::io::{self, Write as _};

use clap::CommandFactory as _;
use clap_complete::Shell;

use crate::cli::Cli;

/// Prints what lets this shell complete our flags and commands.
pub fn run(shell: Shell) -> u8 {
    // A reader that has gone away is no error of ours.
    let _ = io::stdout().write_all(&script(shell));
    0
}

fn script(shell: Shell) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "flannel-agent", &mut script);
    script
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum as _;

    use super::*;

    #[test]
    fn every_shell_gets_flags_and_commands() {
        for shell in Shell::value_variants() {
            let script = String::from_utf8(script(*shell)).unwrap();
            for word in ["etcd-endpoints", "metrics-peers", "cleanup", "keep-device"] {
                assert!(script.contains(word), "{shell}: {word}");
            }
        }
    }
}
