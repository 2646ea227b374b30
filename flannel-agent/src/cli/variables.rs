//! Variables of the environment that look like a flag's and are none.

use std::ffi::OsString;

use clap::CommandFactory as _;
use clap::error::{ContextKind, ContextValue};

use super::{Cli, go_style};

/// Sets the level of the log, and is no flag.
const LOG: &str = "FLANNELD_LOG";

/// What is wrong with each `FLANNELD_` variable that sets nothing: a misspelt one would
/// leave its flag at the default without a word.
pub fn without_a_flag(names: impl IntoIterator<Item = OsString>) -> Vec<String> {
    let mut command = Cli::command();
    command.build();
    let flags = command.get_arguments().filter_map(|arg| arg.get_long()).map(go_style::variable);
    let known: Vec<_> = flags.chain(go_style::logging().map(go_style::variable)).collect();
    let mut unknown: Vec<_> = names
        .into_iter()
        .filter_map(|name| name.into_string().ok())
        .filter(|name| name.starts_with(go_style::PREFIX) && name != LOG && !known.contains(name))
        .collect();
    unknown.sort();
    unknown.iter().map(|name| complaint(&command, name)).collect()
}

fn complaint(command: &clap::Command, name: &str) -> String {
    let flag = name.trim_start_matches(go_style::PREFIX).to_ascii_lowercase().replace('_', "-");
    let refused = command.clone().try_get_matches_from(["flannel-agent", &format!("--{flag}=")]);
    let similar = match refused.as_ref().err().and_then(|e| e.get(ContextKind::SuggestedArg)) {
        Some(ContextValue::String(similar)) => Some(similar.trim_start_matches('-')),
        _ => None,
    };
    let hint = match similar {
        Some(flag) => format!("is {} meant?", go_style::variable(flag)),
        None => "see --help".to_owned(),
    };
    format!("{name} in the environment sets no flag; {hint}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(names: &[&str]) -> Vec<String> {
        without_a_flag(names.iter().map(OsString::from))
    }

    #[test]
    fn a_misspelt_variable_is_named_with_what_is_meant() {
        assert_eq!(
            told(&["FLANNELD_ETCD_ENDPOINT", "FLANNELD_ZZZ", "PATH"]),
            [
                "FLANNELD_ETCD_ENDPOINT in the environment sets no flag; \
                 is FLANNELD_ETCD_ENDPOINTS meant?",
                "FLANNELD_ZZZ in the environment sets no flag; see --help",
            ]
        );
    }

    #[test]
    fn what_sets_something_is_not_named() {
        let flags = Cli::command();
        let flags = flags.get_arguments().filter_map(|arg| arg.get_long());
        let variables: Vec<_> = flags.map(go_style::variable).collect();
        let names: Vec<_> = variables.iter().map(String::as_str).collect();
        assert_eq!(told(&names), [""; 0]);
        // Of other programs, of the log, and what units carry beside.
        let others = ["FLANNEL_OPTIONS", "FLANNELD_LOG", "FLANNELD_V", "FLANNELD_VERSION"];
        assert_eq!(told(&others), [""; 0]);
    }
}
