//! `flannel-agent events`.

use std::io;
use std::time::{Duration, SystemTime};

use flannel_core::status::{Event, Events};

use super::{NOT_RUNNING, ask, complain, could_not_ask, print, print_json};
use crate::cli::EventsArgs;
use crate::control::Request;

/// How often an agent is asked for more.
const PAUSE: Duration = Duration::from_millis(500);

/// Prints what the running agent did or noticed lately.
pub fn run(args: &EventsArgs) -> u8 {
    let told = match told(args, 0) {
        Ok(Some(told)) => told,
        Ok(None) => {
            print(if args.reader.json {
                "[]"
            } else {
                "the agent is not running, and events go with it"
            });
            return NOT_RUNNING;
        }
        Err(error) => return could_not_ask(&args.reader.state.dir, &error),
    };
    let start = args.since.and_then(|since| SystemTime::now().checked_sub(since));
    let wanted =
        told.events.into_iter().filter(|event| start.is_none_or(|start| event.at >= start));
    let wanted: Vec<Event> = wanted.collect();
    if args.reader.json && !args.follow {
        print_json(&wanted);
    } else {
        wanted.iter().for_each(|event| show(event, args.reader.json));
    }
    match args.follow {
        true => follow(args, told.last),
        false => 0,
    }
}

/// Events after this number; `None` where no agent runs.
fn told(args: &EventsArgs, after: u64) -> io::Result<Option<Events>> {
    ask(&args.reader.state.dir, Request::Events(after))?
        .map(|answer| serde_json::from_str(&answer).map_err(io::Error::other))
        .transpose()
}

fn follow(args: &EventsArgs, mut last: u64) -> u8 {
    let mut away = false;
    loop {
        std::thread::sleep(PAUSE);
        match told(args, last) {
            // Another run counts from 1 again.
            Ok(Some(told)) if told.last < last => last = 0,
            Ok(Some(told)) => {
                away = false;
                last = told.last;
                told.events.iter().for_each(|event| show(event, args.reader.json));
            }
            Ok(None) if away => {}
            Ok(None) => {
                complain("the agent is not running; waiting for it");
                away = true;
            }
            Err(error) => return could_not_ask(&args.reader.state.dir, &error),
        }
    }
}

fn show(event: &Event, as_json: bool) {
    if as_json {
        print_json(event);
    } else {
        print(&line(event));
    }
}

fn line(event: &Event) -> String {
    format!("{} {}", humantime::format_rfc3339_millis(event.at), event.what)
}

#[cfg(test)]
mod tests {
    use flannel_core::status::What;

    use super::*;
    use crate::cli::{ReaderArgs, StateDir};

    #[test]
    fn a_line_has_time_and_cause() {
        let what = What::LeaseLost {
            subnet: "10.5.1.0/24".parse().unwrap(),
            why: "it was deleted".to_owned(),
        };
        let event = Event { number: 1, at: SystemTime::UNIX_EPOCH, what };
        assert_eq!(line(&event), "1970-01-01T00:00:00.000Z lease 10.5.1.0/24 lost: it was deleted");
    }

    #[test]
    fn without_an_agent_it_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let state_dir = folder.path().to_owned();
        let reader = ReaderArgs { json: true, state: StateDir { dir: state_dir } };
        let args = EventsArgs { reader, follow: true, since: None };
        assert_eq!(run(&args), NOT_RUNNING);
    }
}
