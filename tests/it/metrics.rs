//! `/metrics`: what each figure says, who may read it, and the list of all of them in docs/metrics.md.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::keys::Keys;
use crate::support::*;

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// A scrape, checked against the rules of its format.
struct Scrape {
    /// The type of each metric, by its name in the samples: that of a counter ends with `_total`.
    types: BTreeMap<String, String>,
    /// The value of each sample, by its name and labels as they are written.
    samples: BTreeMap<String, f64>,
}

impl Scrape {
    fn of(server: &Server) -> Scrape {
        Scrape::parse(&server.get("/metrics").text())
    }

    fn parse(text: &str) -> Scrape {
        let text = text.strip_suffix("# EOF\n").expect("OpenMetrics ends with it");
        let (mut types, mut samples, mut last) = (BTreeMap::new(), BTreeMap::new(), (String::new(), String::new()));
        for line in text.lines() {
            if let Some(metric) = line.strip_prefix("# TYPE ") {
                let (name, kind) = metric.split_once(' ').unwrap();
                last = (name.to_owned(), kind.to_owned());
                let suffix = match kind {
                    "counter" => "_total",
                    "info" => "_info",
                    "gauge" | "histogram" => "",
                    other => panic!("{other}"),
                };
                assert!(types.insert(format!("{name}{suffix}"), kind.to_owned()).is_none(), "{name} twice");
            } else if let Some(unit) = line.strip_prefix("# UNIT ") {
                let (name, unit) = unit.split_once(' ').unwrap();
                assert!(name == last.0 && name.ends_with(&format!("_{unit}")), "{line}");
            } else if !line.starts_with("# HELP ") {
                let (sample, value) = line.rsplit_once(' ').unwrap();
                let name = sample.split('{').next().unwrap();
                let suffix = name.strip_prefix(&last.0).unwrap_or_else(|| panic!("{line} is not of {last:?}"));
                let suffixes: &[&str] = match &*last.1 {
                    "counter" => &["_total"],
                    "info" => &["_info"],
                    "histogram" => &["_sum", "_count", "_bucket"],
                    _ => &[""],
                };
                assert!(suffixes.contains(&suffix), "{line} is not of {last:?}");
                assert!(samples.insert(sample.to_owned(), value.parse().unwrap()).is_none(), "{sample} twice");
            }
        }
        Scrape { types, samples }
    }

    /// The value of a sample, without the prefix of its name.
    fn value(&self, sample: &str) -> f64 {
        let found = self.samples.get(&format!("event_pipeline_{sample}"));
        *found.unwrap_or_else(|| panic!("there is no {sample} in {:?}", self.samples.keys()))
    }
}

/// The metrics that docs/metrics.md lists, by their names in the samples, with their types.
pub fn listed() -> BTreeMap<String, String> {
    let document = fs::read_to_string("docs/metrics.md").unwrap();
    let rows = document.lines().filter(|line| line.starts_with("| `"));
    let name_and_type = |row: &str| {
        let cells: Vec<_> = row.split('|').map(|cell| cell.trim().trim_matches('`')).collect();
        (cells[1].split('{').next().unwrap().to_owned(), cells[2].to_owned())
    };
    rows.map(name_and_type).collect()
}

#[test]
fn the_list_in_the_document_is_what_a_scrape_has() {
    assert_eq!(listed(), Scrape::of(&Server::start()).types);
    let document = fs::read_to_string("docs/metrics.md").unwrap();
    // Its labels, too.
    let scraped = Scrape::of(&Server::start()).samples;
    for row in document.lines().filter(|line| line.starts_with("| `") && line.contains('{')) {
        let (name, label) = row.split('`').nth(1).unwrap().trim_end_matches('}').split_once('{').unwrap();
        let has = |sample: &String| sample.starts_with(name) && sample.contains(&format!("{label}=\""));
        assert!(scraped.keys().any(has), "{name} has no label {label}");
    }
}

#[test]
fn a_scrape_counts_what_has_happened() {
    let server = Server::start();
    let mut all = server.subscriber(&json!({}));
    let mut one = server.subscriber(&json!({"session_id": "a"}));
    let mut publisher = server.publisher();
    publisher.ask(&tick("a", 0));
    publisher.ask(&tick("b", 1));
    publisher.send(r#"{"event_type":"nothing","source":"it"}"#);
    assert_eq!(publisher.json()["status"], "error");
    server.post(format!("[{},{}]", tick("a", 2), tick("b", 3)));
    assert_eq!(server.post("{}").status, 422);
    assert_eq!(server.get("/nowhere").status, 404);
    server.call("POST", "/events?ack=queued", &[JSON], tick("c", 4).as_bytes());
    all.collect(5);
    one.collect(2);
    server.stored("session_id=a");

    let scrape = Scrape::of(&server);
    assert_eq!(scrape.value("stored_events_total"), 5.0);
    assert_eq!(scrape.value(r#"acknowledged_events_total{level="synced"}"#), 4.0);
    assert_eq!(scrape.value(r#"acknowledged_events_total{level="queued"}"#), 1.0);
    assert_eq!(scrape.value("acknowledgement_seconds_count"), 4.0, "each batch whose producer waits");
    assert_eq!(scrape.value(r#"acknowledgement_seconds_bucket{le="+Inf"}"#), 4.0);
    assert!(scrape.value(r#"acknowledgement_seconds_bucket{le="0.5"}"#) <= 4.0);
    assert!(scrape.value("acknowledgement_seconds_sum") > 0.0);
    let (commits, rounds) = (scrape.value("commit_seconds_count"), scrape.value("deliveries_total"));
    assert!(commits >= 1.0, "{commits}");
    assert!(scrape.value(r#"sync_seconds_count{of="log"}"#) >= 1.0);
    assert!((2.0..=7.0).contains(&rounds), "{rounds}");
    assert_eq!(scrape.value("delivered_events_total"), 5.0 + 2.0);
    assert_eq!(scrape.value(r#"subscribers{state="live"}"#), 2.0);
    assert_eq!(scrape.value("subscribers_behind"), 0.0);
    assert_eq!(scrape.value(r#"refusals_total{reason="invalid"}"#), 2.0, "a message and a request");
    assert_eq!(scrape.value(r#"refusals_total{reason="not-found"}"#), 1.0);
    assert!(scrape.value("query_seconds_count") >= 1.0);
    assert!(scrape.value("connections") >= 4.0, "three sockets, and the scrape");
    assert_eq!(scrape.value(r#"durable_subscriptions{connected="true"}"#), 0.0);
    let states = ["unchecked", "checking", "sound", "damaged"];
    let states = states.map(|state| scrape.value(&format!("integrity{{state=\"{state}\"}}")));
    assert_eq!(states.iter().sum::<f64>(), 1.0, "it is in one state");
    assert!(scrape.value("disk_free_bytes") > 0.0 && scrape.value("database_bytes") > 0.0);
    assert!(scrape.value(&format!("build_info{{version=\"{}\"}}", env!("CARGO_PKG_VERSION"))) == 1.0);

    // What subscribes can leave again, and what waits can be done.
    drop((all, one));
    await_true("the subscribers leave", || Scrape::of(&server).value(r#"subscribers{state="live"}"#) == 0.0);
    await_true("the queue is empty", || Scrape::of(&server).value("queue_oldest_seconds") == 0.0);
    assert_eq!(Scrape::of(&server).value("queue_events"), 0.0);
}

#[test]
fn a_subscriber_that_takes_nothing_shows_as_behind_with_its_lag() {
    let server = Server::with(&[("MAX_SUBSCRIBER_BYTES", "65536"), ("WRITE_TIMEOUT_SECONDS", "600")]);
    let slow = server.subscriber(&json!({}));
    let lag = |scrape: &Scrape| scrape.value("lag_events");
    assert_eq!(lag(&Scrape::of(&server)), 0.0);
    server.publish_30_mb();
    await_true("it is behind", || Scrape::of(&server).value("subscribers_behind") == 1.0);
    let scrape = Scrape::of(&server);
    assert_eq!(scrape.value(r#"subscribers{state="catching_up"}"#), 1.0);
    assert!((1.0..=500.0).contains(&lag(&scrape)), "{}", lag(&scrape));
    assert_eq!(server.get_json("/stats")["subscribers_behind"], 1);

    let mut slow = slow;
    slow.collect(500);
    await_true("it has caught up", || Scrape::of(&server).value(r#"subscribers{state="live"}"#) == 1.0);
    let scrape = Scrape::of(&server);
    assert_eq!((scrape.value("subscribers_behind"), lag(&scrape)), (0.0, 0.0));
    assert!(scrape.value("outbox_overflows_total") >= 1.0);
}

#[test]
fn subscribers_are_counted_by_what_they_do() {
    let server = Server::start();
    server.publish(&tick("s", 0));
    let _member = server.subscriber(&json!({"group": "graders"}));
    let _durable = server.subscriber(&json!({"name": "screen"}));
    let _quiet = server.subscriber(&json!({"last": 1}));
    let in_state = |state: &str| Scrape::of(&server).value(&format!("subscribers{{state=\"{state}\"}}"));
    await_true("each is where it stays", || in_state("member") == 1.0 && in_state("live") == 2.0);
    let scrape = Scrape::of(&server);
    assert_eq!(scrape.value(r#"durable_subscriptions{connected="true"}"#), 2.0);
    assert_eq!(scrape.value("unconfirmed_events"), 0.0);
    // A long poll has no stream.
    let mut poll = Wire::connect(server.addr);
    poll.send("GET /events?session_id=t&after_id=evt_000000000001&wait=30 HTTP/1.1\r\nHost: localhost\r\n\r\n");
    await_true("the poll waits", || in_state("opening") == 1.0);
    server.publish(&tick("t", 1));
    assert_eq!(poll.response().expect("an answer").status, 200);
    await_true("the member has it in hand", || Scrape::of(&server).value("unconfirmed_events") == 1.0);
    assert_eq!(Scrape::of(&server).value("durable_lag_events"), 1.0);

    // It reads the past up to an end, which takes it as long as it likes.
    server.publish_30_mb();
    let _past = server.subscriber(&json!({"last": 500, "until": "9999-01-01T00:00:00Z"}));
    await_true("the replay waits for its client", || in_state("replaying") == 1.0);
}

#[test]
fn the_older_text_format_has_the_same_for_a_client_that_prefers_it() {
    let server = Server::start();
    server.publish(&tick("s", 0));
    for accept in ["*/*", "application/openmetrics-text;version=1.0.0;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"]
    {
        let answer = server.call("GET", "/metrics", &[("Accept", accept)], b"");
        assert_eq!(answer.header("content-type"), Some(OPEN_METRICS), "{accept}");
        Scrape::parse(&answer.text());
    }
    let answer = server.call("GET", "/metrics", &[("Accept", "text/plain;version=0.0.4;q=1,*/*;q=0.1")], b"");
    assert_eq!(answer.header("content-type"), Some(TEXT));
    let text = answer.text();
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
    let types: BTreeSet<_> = types.map(str::to_owned).collect();
    assert_eq!(types, Scrape::of(&server).types.into_keys().collect());
    assert!(text.contains("\nevent_pipeline_stored_events_total 1\n") && !text.contains("# EOF"), "{text}");
}

#[test]
fn metrics_need_their_scope_but_no_known_host() {
    let locked = Server::with(&[("REQUIRE_AUTH", "true"), ("API_KEY", "the key of everything")]);
    locked.get("/metrics").refusal(401);
    assert_eq!(locked.call("GET", "/metrics", &[("X-API-Key", "the key of everything")], b"").status, 200);

    let folder = tempfile::tempdir().unwrap();
    let mut keys = Keys { file: folder.path().join("data/keys.toml") };
    let [watcher, reader] = ["metrics", "query"].map(|scope| keys.add(scope, &["--scope", scope]));
    let pinned = keys.add("pinned", &["--scope", "metrics", "--session", "s"]);
    let named = Server::in_folder(folder, &[("RATE_LIMIT_QUERY", "3/hour")]);
    let get = |path, key: &str| named.call("GET", path, &[("X-API-Key", key)], b"");
    assert_eq!(get("/metrics", &watcher).status, 200);
    get("/stats", &watcher).refusal(403);
    get("/metrics", &reader).refusal(403);
    get("/metrics", &pinned).refusal(403);
    assert_eq!(get("/api/v1/metrics", &watcher).status, 200);
    get("/metrics", &watcher).refusal(429);

    let open = Server::start();
    let mut wire = Wire::connect(open.addr);
    wire.send("GET /metrics HTTP/1.1\r\nHost: prometheus-target.example\r\n\r\n");
    assert_eq!(wire.response().expect("an answer").status, 200);
}

/// The second address of a server that was started with one.
pub fn second_address(server: &Server) -> SocketAddr {
    server.await_log("metrics are served without a key");
    let log = server.log();
    let line = log.iter().find(|line| line.contains("metrics are served without a key")).unwrap();
    let line: Value = serde_json::from_str(line).unwrap();
    text_of(&line["fields"]["address"]).parse().unwrap()
}

#[test]
fn the_second_address_has_metrics_and_health_without_a_key_and_nothing_else() {
    let settings =
        [("METRICS_ADDRESS", "127.0.0.1:0"), ("REQUIRE_AUTH", "true"), ("API_KEY", "the key of everything, and long")];
    let mut server = Server::with(&settings);
    let address = second_address(&server);
    let get = |path| call(address, "GET", path, &[], b"");
    assert_eq!(Scrape::parse(&get("/metrics").text()).value("stored_events_total"), 0.0);
    assert_eq!(get("/health").json()["status"], "ok");
    for path in ["/events", "/stats", "/", "/docs", "/api/v1/metrics", "/openapi.json"] {
        get(path).refusal(404);
    }
    for method in ["POST", "DELETE", "OPTIONS"] {
        assert_eq!(call(address, method, "/metrics", &[], b"").status, 405, "{method}");
    }
    assert_eq!(server.get("/metrics").status, 401, "the first address asks for a key");

    // It serves a few clients, and a shutdown does not wait for one that says nothing.
    let mut idle: Vec<_> = (0..16).map(|_| Wire::connect(address)).collect();
    for wire in &mut idle {
        wire.send("GET /health HTTP/1.1\r\nHost: x\r\n\r\n");
        assert_eq!(wire.response().expect("an answer").status, 200);
    }
    assert_eq!(Wire::connect(address).response().expect("an answer").status, 503);
    let began = Instant::now();
    server.stop();
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

#[test]
fn the_last_minute_is_in_the_statistics() {
    let server = Server::start();
    let none = server.get_json("/stats");
    assert_eq!(none["last_minute"]["commit"], json!({"count": 0, "p50": null, "p99": null}));
    for n in 0..10 {
        server.publish(&tick("s", n));
    }
    let stats = server.get_json("/stats");
    assert_eq!(stats["last_minute"]["acknowledgement"]["count"], 10);
    for stage in ["acknowledgement", "commit", "sync", "query"] {
        let percentiles = &stats["last_minute"][stage];
        let [p50, p99] = ["p50", "p99"].map(|name| percentiles[name].as_f64().expect("a number"));
        assert!(0.0 < p50 && p50 <= p99 && p99 <= 10.0, "{stage}: {percentiles}");
    }
    assert!(stats["disk_free_bytes"].as_u64().unwrap() > 0);
}
