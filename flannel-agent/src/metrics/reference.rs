//! The page `docs/metrics.md`, made of the catalogue.

use std::fmt::Write as _;

use flannel_core::health::Subject;
use flannel_core::repair::Repair;

use super::catalogue::{self, Metric};

const INTRODUCTION: &str = "\
# Metrics

`/metrics` is served beside `/healthz` and `/readyz`, with `--healthz-port`. The format
is Prometheus's text, version 0.0.4. Who asks for OpenMetrics by `Accept`, as Prometheus
does, gets OpenMetrics 1.0.0. `Content-Type` says which. Samples are the same in both:

```yaml
scrape_configs:
  - job_name: flannel
    static_configs:
      - targets: ['192.0.2.1:8081', '192.0.2.2:8081']
```

Alert rules are in `packaging/prometheus/flannel.rules.yml`. Units are base units, and
times are time stamps: their age is `time() - <metric>`. Counters of programs go on
when the agent is restarted; the others begin anew. No label has an address or a port
of a pod.

This page is made from the code. A test compares the two.

";

/// The page.
pub(super) fn page() -> String {
    let mut page = INTRODUCTION.to_owned();
    page.push_str("| metric | kind | labels | meaning |\n|---|---|---|---|\n");
    for metric in catalogue::ALL {
        let _ = writeln!(
            page,
            "| `{}` | {} | {} | {} |",
            metric.name(),
            metric.kind.as_str(),
            labels(metric),
            metric.help
        );
    }
    page.push_str(
        "\n## Subjects\n\nValues of the label `subject`. [troubleshooting.md](troubleshooting.md) \
         says what each means\nand what to do.\n\n",
    );
    for subject in Subject::ALL {
        let _ = writeln!(page, "- `{subject}`");
    }
    page.push_str("\n## Repairs\n\nValues of the label `kind` of `flannel_repairs_total`: ");
    let kinds: Vec<String> =
        Repair::ALL.into_iter().map(|kind| format!("`{}`", kind.name())).collect();
    let _ = writeln!(page, "\n{}.", kinds.join(", "));
    page
}

fn labels(metric: &Metric) -> String {
    let labels: Vec<String> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
    labels.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_the_codes() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md");
        if std::env::var_os("FLANNEL_WRITE_DOCS").is_some() {
            std::fs::write(path, page()).unwrap();
        }
        let written = std::fs::read_to_string(path).unwrap();
        assert!(
            written == page(),
            "docs/metrics.md is not what the code says; write it anew with \
             FLANNEL_WRITE_DOCS=1 cargo test -p flannel-agent --lib metrics::reference"
        );
    }
}
