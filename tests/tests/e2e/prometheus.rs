//! A real Prometheus that scrapes real agents: what it reads, the alerts, and every
//! query of the dashboard.

use std::fs;
use std::process::Command;
use std::time::Duration;

use flannel_tests::agent::Options;
use flannel_tests::load::SPACED;
use flannel_tests::node::Node;
use flannel_tests::pair::Pair;
use flannel_tests::process::{Process, output, run};
use flannel_tests::wait;

const PACKAGING: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging");
/// Nobody else listens in a node's namespace.
const PORT: u16 = 10_250;

#[test]
fn each_alert_fires_in_trouble_and_none_without() {
    let rules = format!("{PACKAGING}/prometheus/flannel.rules.yml");
    let said = run(Command::new("promtool").args(["check", "rules"]).arg(&rules));
    let count = fs::read_to_string(rules).expect("the rules").matches("- alert: ").count();
    assert!(said.contains(&format!("SUCCESS: {count} rules found")), "{said}");
    let tests = format!("{PACKAGING}/prometheus/flannel.test.yml");
    let text = fs::read_to_string(&tests).expect("the rules' tests");
    assert_eq!(text.matches(&format!("value: {count}\n")).count(), 2, "all of them are tested");
    run(Command::new("promtool").args(["test", "rules"]).arg(&tests));
}

/// Answer of the Prometheus on this node to a query: one sample a line.
fn ask(node: &Node, query: &str) -> Vec<String> {
    let mut command = node.netns.command("promtool");
    let output = output(command.args(["query", "instant", "http://127.0.0.1:9090"]).arg(query));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{query}: {error}");
    // Nothing is an empty line.
    let lines = String::from_utf8_lossy(&output.stdout).into_owned();
    lines.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

fn start(pair: &Pair) -> Process {
    let dir = pair.lab.dir().join("prometheus");
    fs::create_dir(&dir).expect("a directory");
    let config = dir.join("prometheus.yml");
    let text = format!(
        "global: {{scrape_interval: 500ms, evaluation_interval: 500ms}}
rule_files: ['{PACKAGING}/prometheus/flannel.rules.yml']
scrape_configs:
  - job_name: flannel
    static_configs: [{{targets: ['{}:{PORT}', '{}:{PORT}']}}]
",
        pair.left.address, pair.right.address
    );
    fs::write(&config, text).expect("write the configuration");
    let mut command = pair.left.netns.command("prometheus");
    command
        .arg(format!("--config.file={}", config.display()))
        .arg(format!("--storage.tsdb.path={}", dir.join("data").display()))
        .arg("--web.listen-address=127.0.0.1:9090");
    Process::start("prometheus", &mut command, &dir.join("log"))
}

/// The dashboard's queries, with what Grafana would put in.
fn queries() -> Vec<(String, String)> {
    let path = format!("{PACKAGING}/grafana/flannel.json");
    let text = fs::read_to_string(path).expect("the dashboard");
    let dashboard: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let mut queries = Vec::new();
    for panel in dashboard["panels"].as_array().expect("panels") {
        let title = panel["title"].as_str().expect("a title");
        for target in panel["targets"].as_array().expect("targets") {
            let expression = target["expr"].as_str().expect("an expression");
            let filled = expression.replace("$instance", ".*").replace("$__rate_interval", "10s");
            queries.push((title.to_owned(), filled));
        }
    }
    queries
}

#[test]
fn every_query_of_the_dashboard_has_an_answer() {
    let extra = vec![format!("--healthz-port={PORT}")];
    let pair = Pair::agents(&Options { extra, ..Options::ebpf() });
    let _prometheus = start(&pair);
    wait::holds("an answer of Prometheus", Duration::from_secs(30), || {
        pair.left.netns.try_sh("promtool query instant http://127.0.0.1:9090 vector(1)")
    });
    wait::holds("scrapes of both nodes", Duration::from_secs(30), || {
        ask(&pair.left, "up == 1").len() == 2
    });
    // Something to repair, so that there are passes to measure.
    pair.left.netns.ip(&format!("route del {}", pair.right.subnet()));
    pair.traffic(SPACED, "--seconds 2");
    let fast = "sum(rate(flannel_packets_total{path=\"fast\"}[10s])) > 0";
    wait::holds("the traffic in Prometheus", Duration::from_secs(10), || {
        ask(&pair.left, fast).len() == 1
    });
    let queries = queries();
    assert!(queries.len() >= 16, "{}", queries.len());
    for (title, query) in queries {
        let answer = ask(&pair.left, &query);
        let numbers = answer.iter().filter(|line| !line.contains("=> NaN")).count();
        assert!(numbers > 0, "{title}: nothing for {query}: {answer:?}");
    }
    assert_eq!(ask(&pair.left, "ALERTS"), Vec::<String>::new(), "both nodes are well");
    assert_eq!(ask(&pair.left, "count(flannel_build_info{abi=~\"[0-9]+\"}) == 2").len(), 1);
}
