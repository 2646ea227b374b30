//! Messages as the journal's own entries: each field of a message is a field of the
//! entry, and the journal keeps the time.

use std::fmt::{self, Write as _};
use std::io;

use log::kv::{Error, Key, Source, Value, VisitSource};
use systemd_journal_logger::JournalLog;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

/// `journalctl -t` finds entries by it.
const IDENTIFIER: &str = "flannel-agent";

/// Before each field's name, so that none is taken for one of the journal's own.
const PREFIX: &str = "flannel_";

/// journald, through its socket.
pub(super) struct Journal(JournalLog);

impl Journal {
    /// # Errors
    /// There is no journald.
    pub(super) fn open() -> io::Result<Self> {
        Ok(Self(JournalLog::empty()?.with_syslog_identifier(IDENTIFIER.to_owned())))
    }
}

impl<S: Subscriber> Layer<S> for Journal {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let entry = Entry::of(event);
        let metadata: &Metadata<'_> = event.metadata();
        // A message that the journal does not take has no other place to go.
        let _ = self.0.journal_send(
            &log::Record::builder()
                .level(priority(*metadata.level()))
                .target(metadata.target())
                .module_path(metadata.module_path())
                .file(metadata.file())
                .line(metadata.line())
                .args(format_args!("{}", entry.text()))
                .key_values(&entry)
                .build(),
        );
    }
}

/// The journal gets `info` as notice, `debug` as info, `trace` as debug.
fn priority(level: Level) -> log::Level {
    match level {
        Level::ERROR => log::Level::Error,
        Level::WARN => log::Level::Warn,
        Level::INFO => log::Level::Info,
        Level::DEBUG => log::Level::Debug,
        Level::TRACE => log::Level::Trace,
    }
}

/// A message in parts.
#[derive(Debug, Default)]
struct Entry {
    message: String,
    /// Names with [`PREFIX`].
    fields: Vec<(String, String)>,
}

impl Entry {
    fn of(event: &Event<'_>) -> Self {
        let mut entry = Self::default();
        event.record(&mut entry);
        entry
    }

    /// All on one line, as `journalctl` shows it.
    fn text(&self) -> String {
        let mut text = self.message.clone();
        for (name, value) in &self.fields {
            let _ = write!(text, " {}={value}", &name[PREFIX.len()..]);
        }
        text
    }

    fn put(&mut self, field: &Field, value: String) {
        match field.name() {
            "message" => self.message = value,
            // tracing-log's own, about records of the crate log.
            name if name.starts_with("log.") => {}
            name => {
                let name = format!("{PREFIX}{}", name.trim_start_matches("r#"));
                self.fields.push((name, value));
            }
        }
    }
}

impl Visit for Entry {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format!("{value:?}"));
    }
}

impl Source for Entry {
    fn visit<'kvs>(&'kvs self, visitor: &mut dyn VisitSource<'kvs>) -> Result<(), Error> {
        for (name, value) in &self.fields {
            visitor.visit_pair(Key::from_str(name), Value::from(value.as_str()))?;
        }
        Ok(())
    }
}
