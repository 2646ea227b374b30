//! The text formats of a scrape, and which of them a client wants.

use prometheus_client::metrics::MetricType;

use super::catalogue;

/// A text format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Prometheus's own, version 0.0.4: what everybody reads.
    Prometheus,
    /// OpenMetrics 1.0.0, for whoever asks for it.
    OpenMetrics,
}

impl Format {
    /// What a client wants by its `Accept`: OpenMetrics if it names that, and prefers
    /// nothing else.
    pub fn wanted(accept: &str) -> Self {
        let (mut open, mut plain) = (0.0, 0.0);
        for range in accept.split(',') {
            let range = Range::read(range);
            let version = range.version.as_deref();
            match range.media.as_str() {
                "application/openmetrics-text" if matches!(version, None | Some("1.0.0")) => {
                    open = range.quality.max(open);
                }
                "text/plain" if matches!(version, None | Some("0.0.4")) => {
                    plain = range.quality.max(plain);
                }
                _ => {}
            }
        }
        if open > 0.0 && open >= plain { Self::OpenMetrics } else { Self::Prometheus }
    }

    /// Its media type.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }

    /// A scrape in this format. Samples are the same in both.
    pub(super) fn of(self, open_metrics: String) -> String {
        match self {
            Self::OpenMetrics => open_metrics,
            Self::Prometheus => open_metrics.lines().filter_map(prometheus).collect(),
        }
    }
}

/// A line in Prometheus's format: there a counter's help and type have the name of its
/// samples, and nothing marks the end.
fn prometheus(line: &str) -> Option<String> {
    let mut words = line.splitn(4, ' ');
    let (Some("#"), Some(word)) = (words.next(), words.next()) else {
        return Some(format!("{line}\n"));
    };
    let (family, rest) = (words.next()?, words.next().unwrap_or_default());
    let known = catalogue::ALL.iter().find(|metric| metric.family == family);
    let total = known.is_some_and(|metric| matches!(metric.kind, MetricType::Counter));
    let suffix = if total { "_total" } else { "" };
    Some(format!("# {word} {family}{suffix} {rest}\n"))
}

/// One of the media ranges of an `Accept`.
struct Range {
    media: String,
    version: Option<String>,
    quality: f32,
}

impl Range {
    fn read(text: &str) -> Self {
        let mut parts = text.split(';').map(str::trim);
        let media = parts.next().unwrap_or_default().to_ascii_lowercase();
        let mut range = Self { media, version: None, quality: 1.0 };
        for (name, value) in parts.filter_map(|part| part.split_once('=')) {
            let value = value.trim().trim_matches('"');
            match name.trim().to_ascii_lowercase().as_str() {
                "version" => range.version = Some(value.to_owned()),
                "q" => range.quality = value.parse().unwrap_or(0.0),
                _ => {}
            }
        }
        range
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_get_what_they_prefer() {
        use Format::{OpenMetrics, Prometheus};
        for (accept, format) in [
            ("", Prometheus),
            ("*/*", Prometheus),
            ("text/plain", Prometheus),
            ("text/plain;version=0.0.4;q=0.5, */*;q=0.1", Prometheus),
            ("application/openmetrics-text", OpenMetrics),
            ("Application/OpenMetrics-Text; Version=\"1.0.0\"; charset=utf-8", OpenMetrics),
            // Prometheus 2 and 3.
            (
                "application/openmetrics-text;version=1.0.0,\
                 application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,\
                 */*;q=0.1",
                OpenMetrics,
            ),
            (
                "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,\
                 application/openmetrics-text;version=0.0.1;q=0.4,\
                 text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,text/plain;version=0.0.4;q=0.2,\
                 /;q=0.1",
                OpenMetrics,
            ),
            ("application/openmetrics-text;q=0.2,text/plain;q=0.8", Prometheus),
            ("application/openmetrics-text;q=0", Prometheus),
            ("application/openmetrics-text;version=0.0.1", Prometheus),
        ] {
            assert_eq!(Format::wanted(accept), format, "{accept}");
        }
    }
}
