//! What flannel's logger (klog, glog) takes as flags, in our levels.

use std::ffi::OsString;

use super::go_style;
use crate::flag;
use crate::logging::CRATES;

/// klog's levels of verbosity for which ours are.
const DEBUG: i64 = 2;
const TRACE: i64 = 5;

/// The logger's flags, as they were given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Klog {
    /// `-v`; `None`: not given.
    level: Option<i64>,
    /// `-vmodule`: parts of the agent, with levels.
    parts: Vec<(String, i64)>,
    /// All, as they were written.
    pub written: Vec<String>,
    /// Those that change nothing.
    pub without_effect: Vec<String>,
}

impl Klog {
    /// Those that do something.
    pub(super) const FLAGS: [&str; 2] = ["v", "vmodule"];

    /// Takes in flags as they were written, and the environment where there is none.
    pub(super) fn read(written: Vec<String>, env: impl Fn(&str) -> Option<OsString>) -> Self {
        let mut klog = Self::default();
        for name in Self::FLAGS {
            let value = env(&go_style::variable(name)).filter(|value| !value.is_empty());
            if let Some(value) = value.as_ref().and_then(|value| value.to_str())
                && !klog.set(name, Some(value))
            {
                klog.without_effect.push(format!("{}={value}", go_style::variable(name)));
            }
        }
        for text in &written {
            let (name, value) = match text.split_once(['=', ' ']) {
                Some((name, value)) => (name, Some(value)),
                None => (text.as_str(), None),
            };
            if !klog.set(name.trim_start_matches('-'), value) {
                klog.without_effect.push(text.clone());
            }
        }
        klog.written = written;
        klog
    }

    /// Whether the flag is understood and changes something.
    fn set(&mut self, name: &str, value: Option<&str>) -> bool {
        match (name, value) {
            ("v", Some(value)) => match flag::go_int(value) {
                Ok(level) => self.level = Some(level),
                Err(_) => return false,
            },
            ("vmodule", Some(value)) => {
                let Some(parts) = value.split(',').map(part).collect() else { return false };
                self.parts = parts;
            }
            _ => return false,
        }
        true
    }

    /// As a filter of the log; `None`: no flag says anything.
    pub fn filter(&self) -> Option<String> {
        if self.level.is_none() && self.parts.is_empty() {
            return None;
        }
        let mut filter = vec!["info".to_owned()];
        if let Some(level) = self.level {
            filter.extend(CRATES.map(|name| format!("{name}={}", level_of(level))));
        }
        for (part, level) in &self.parts {
            filter.extend(CRATES.map(|name| format!("{name}::{part}={}", level_of(*level))));
        }
        Some(filter.join(","))
    }
}

fn level_of(verbosity: i64) -> &'static str {
    match verbosity {
        TRACE.. => "trace",
        DEBUG.. => "debug",
        _ => "info",
    }
}

/// One `part=level`. The part is one of the agent: a module's path. Patterns fit none.
fn part(text: &str) -> Option<(String, i64)> {
    let (part, level) = text.split_once('=')?;
    let name = |letter: char| letter.is_ascii_alphanumeric() || letter == '_' || letter == ':';
    let known = !part.is_empty() && part.chars().all(name);
    known.then_some((part.to_owned(), flag::go_int(level).ok()?))
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::EnvFilter;

    use super::*;

    fn read(written: &[&str], env: &[(&str, &str)]) -> Klog {
        Klog::read(written.iter().map(ToString::to_string).collect(), |name| {
            env.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into())
        })
    }

    #[test]
    fn levels_of_klog_are_ours() {
        let levels = [("-3", "info"), ("0", "info"), ("1", "info"), ("2", "debug"), ("4", "debug")];
        for (v, level) in levels.into_iter().chain([("5", "trace"), ("0xa", "trace")]) {
            let filter = read(&[&format!("-v={v}")], &[]).filter().unwrap();
            assert_eq!(filter, format!("info,flannel_agent={level},flannel_core={level}"));
            assert!(EnvFilter::try_new(filter).is_ok());
        }
        let last = read(&["-v=4", "-logtostderr", "--v 0"], &[]);
        assert_eq!(last.filter().unwrap(), "info,flannel_agent=info,flannel_core=info");
        assert_eq!(last.without_effect, ["-logtostderr"]);
        assert_eq!(read(&["-logtostderr=true"], &[]).filter(), None);
    }

    #[test]
    fn vmodule_names_parts_of_the_agent() {
        let filter = read(&["-vmodule=source::etcd3=9,watch=2"], &[]).filter().unwrap();
        assert!(filter.contains(",flannel_agent::source::etcd3=trace,"), "{filter}");
        assert!(filter.contains(",flannel_agent::watch=debug,"), "{filter}");
        assert!(EnvFilter::try_new(filter).is_ok());
        for wrong in ["-vmodule=vxlan*=2", "-vmodule=a", "-vmodule a=b", "-v=high", "-v"] {
            let klog = read(&[wrong], &[]);
            assert!(klog.filter().is_none() && klog.without_effect == [wrong], "{wrong}");
        }
    }

    #[test]
    fn the_environment_is_asked_first() {
        let env = [("FLANNELD_V", "3"), ("FLANNELD_VMODULE", "x*=1")];
        let klog = read(&[], &env);
        assert!(klog.filter().unwrap().contains("=debug"), "{klog:?}");
        assert_eq!(klog.without_effect, ["FLANNELD_VMODULE=x*=1"]);
        assert!(read(&["-v=0"], &env).filter().unwrap().contains("flannel_agent=info"));
    }
}
