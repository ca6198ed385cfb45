//! The rules and the dashboard in `deploy`: promtool accepts them, each alert is tested, and each query finds something in a
//! Prometheus that has scraped a server under load.

use std::collections::BTreeSet;
use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::thread::scope;

use serde_json::{Value, json};

use crate::metrics::{listed, second_address};
use crate::support::*;

const RULES: &str = "deploy/prometheus/rules.yml";
const DASHBOARD: &str = "deploy/grafana/event-pipeline.json";

/// The values behind a key in a YAML file that has one such key in a line.
fn values(file: &str, key: &str) -> Vec<String> {
    let text = fs::read_to_string(file).unwrap();
    let of_line = |line: &str| {
        let (_, rest) = line.split_once(key)?;
        Some(rest.split([',', '}']).next().unwrap().trim().to_owned())
    };
    text.lines().filter_map(of_line).collect()
}

/// The expressions of the rules, which are in a line each.
fn rules() -> Vec<String> {
    let text = fs::read_to_string(RULES).unwrap();
    text.lines().filter_map(|line| Some(line.trim().strip_prefix("expr: ")?.to_owned())).collect()
}

/// Each panel of the dashboard that has queries, with these.
fn panels() -> Vec<(String, Vec<String>)> {
    let dashboard: Value = serde_json::from_str(&fs::read_to_string(DASHBOARD).unwrap()).unwrap();
    let panels = dashboard["panels"].as_array().unwrap().iter().filter(|panel| panel["type"] != "row");
    let exprs =
        |panel: &Value| panel["targets"].as_array().unwrap().iter().map(|target| text_of(&target["expr"])).collect();
    panels.map(|panel| (text_of(&panel["title"]), exprs(panel))).collect()
}

/// A query as Grafana sends it, with its variables filled in.
fn filled(expr: &str) -> String {
    let filled = expr.replace("$__rate_interval", "1m").replace("$instance", ".*").replace("$job", "event-pipeline");
    assert!(!filled.contains('$'), "{expr} has another variable");
    filled
}

#[test]
fn rules_and_panels_use_only_listed_metrics() {
    let mut listed: BTreeSet<String> = listed().into_keys().collect();
    let histograms: Vec<_> = listed.iter().filter(|name| name.ends_with("_seconds")).cloned().collect();
    listed.extend(histograms.iter().map(|name| format!("{name}_bucket")));
    let queries = panels().into_iter().flat_map(|(_, exprs)| exprs).chain(rules());
    for query in queries {
        let words = query.split(|c: char| !(c.is_alphanumeric() || c == '_'));
        for word in words.filter(|word| word.starts_with("event_pipeline_") || word.starts_with("process_")) {
            assert!(listed.contains(word), "{word} in {query} is not in docs/metrics.md");
        }
    }
}

#[test]
fn promtool_accepts_the_rules_and_their_unit_tests_which_name_every_alert() {
    let test = "promtool_accepts_the_rules_and_their_unit_tests_which_name_every_alert";
    let tests = fs::read_to_string("deploy/prometheus/rules_test.yml").unwrap();
    let alerts = values(RULES, "- alert:");
    assert!(alerts.len() > 10, "{alerts:?}");
    for alert in &alerts {
        assert!(tests.contains(&format!("{alert}\"")) || tests.contains(&format!("{alert},")), "{alert} is not tested");
    }
    for key in ["summary:", "description:", "severity:"] {
        assert_eq!(values(RULES, key).len(), alerts.len() + usize::from(key == "severity:"), "{key}");
    }
    if program("promtool").is_none() {
        return skip(test, "promtool (apt-get install prometheus)");
    }
    for arguments in [
        &["check", "rules", "rules.yml"][..],
        &["check", "config", "prometheus.yml"],
        &["test", "rules", "rules_test.yml"],
    ] {
        let run = Command::new("promtool").args(arguments).current_dir("deploy/prometheus").output().unwrap();
        let said = String::from_utf8_lossy(&[run.stdout, run.stderr].concat()).into_owned();
        assert!(run.status.success(), "promtool {arguments:?}: {said}");
    }
}

/// A Prometheus that scrapes one address.
struct Prometheus {
    _process: Process,
    address: SocketAddr,
}

impl Prometheus {
    /// The configuration in `deploy`, with another address, more scrapes, and the path of the rules.
    fn scraping(target: SocketAddr, folder: &Path) -> Prometheus {
        let config = fs::read_to_string("deploy/prometheus/prometheus.yml").unwrap();
        let rules = fs::canonicalize(RULES).unwrap();
        let config = config
            .replace("127.0.0.1:9464", &target.to_string())
            .replace("15s", "200ms")
            .replace("- rules.yml", &format!("- {}", rules.display()));
        fs::write(folder.join("prometheus.yml"), config).unwrap();
        // It cannot choose a free port by itself.
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut command = Command::new("prometheus");
        command
            .args(["--config.file=prometheus.yml", "--storage.tsdb.path=data", "--log.level=warn"])
            .arg(format!("--web.listen-address={address}"))
            .current_dir(folder);
        let prometheus = Prometheus { _process: Process::watch(&mut command), address };
        await_true("Prometheus listens", || std::net::TcpStream::connect(address).is_ok());
        prometheus
    }

    /// What a query finds now.
    fn query(&self, expr: &str) -> Vec<Value> {
        let mut wire = Wire::connect(self.address).unchecked();
        wire.send(request("GET", &format!("/api/v1/query?query={}", encode(expr)), &[], b""));
        let answer = wire.response().expect("an answer").json();
        assert_eq!(answer["status"], "success", "{expr}: {answer}");
        answer["data"]["result"].as_array().unwrap().clone()
    }
}

#[test]
fn every_panel_and_rule_finds_data_in_a_prometheus_that_scraped_a_server_under_load() {
    let test = "every_panel_and_rule_finds_data_in_a_prometheus_that_scraped_a_server_under_load";
    if program("prometheus").is_none() {
        return skip(test, "prometheus (apt-get install prometheus)");
    }
    let server = Server::with(&[("METRICS_ADDRESS", "127.0.0.1:0")]);
    let folder = tempfile::tempdir().unwrap();
    let prometheus = Prometheus::scraping(second_address(&server), folder.path());
    let (mut all, mut publisher) = (server.subscriber(&json!({})), server.publisher());
    let classroom = classroom();
    let has_data = |expr: &str| {
        // A comparison of a rule finds something only when it is true: that what it compares is there, is what counts.
        let sides = expr.split(" or ").flat_map(|part| part.split(" and ")).map(|part| {
            let is_comparison = |at: &str| part.rsplit_once(at).filter(|(_, to)| to.trim().parse::<f64>().is_ok());
            [" == ", " > ", " < "].into_iter().find_map(is_comparison).map_or(part, |(value, _)| value).to_owned()
        });
        sides.into_iter().all(|side| !prometheus.query(&side).is_empty())
    };
    // Until everything was scraped twice under load, so that rates exist. Each round publishes, delivers, reads and is refused.
    let queries: Vec<_> = panels()
        .into_iter()
        .flat_map(|(title, exprs)| exprs.into_iter().map(move |expr| (title.clone(), filled(&expr))))
        .chain(rules().into_iter().map(|expr| ("a rule".to_owned(), expr)))
        .collect();
    let mut missing: Vec<_> = queries.iter().collect();
    await_true("every query finds something", || {
        scope(|scope| {
            scope.spawn(|| acknowledged(&publisher.pipeline(&classroom)));
            all.collect(classroom.len());
        });
        server.stored("limit=10");
        server.get("/nowhere");
        missing.retain(|(_, expr)| !has_data(expr));
        missing.is_empty()
    });
    assert!(queries.len() > 40, "{} queries", queries.len());
    // What is found is what happened.
    let stored = prometheus.query("event_pipeline_stored_events_total");
    let stored: f64 = text_of(&stored[0]["value"][1]).parse().unwrap();
    assert!(stored >= classroom.len() as f64, "{stored}");
    assert_eq!(prometheus.query("ALERTS{alertstate=\"firing\",severity=\"page\"}"), [] as [Value; 0], "it is well");
}
