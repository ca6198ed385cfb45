//! The reports of the load test for programs, validated against their schema.

use std::path::Path;
use std::process::{Command, Output};

use jsonschema::Validator;
use serde_json::{Value, json};

const SCHEMA: &str = include_str!("../schema/report.json");

/// Makes sure that there is a server beside the load test, where it looks for one: `cargo test --workspace` builds
/// it, and `cargo test -p loadtest` alone does not.
fn ensure_server() {
    if Path::new(env!("CARGO_BIN_EXE_loadtest")).with_file_name("event-pipeline").exists() {
        return;
    }
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml");
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "--locked", "--bin", "event-pipeline", "--manifest-path", manifest]);
    if !cfg!(debug_assertions) {
        cargo.arg("--release");
    }
    assert!(cargo.status().expect("cargo starts").success(), "the server cannot be built");
}

fn loadtest(arguments: &[&str]) -> Output {
    let output = Command::new(env!("CARGO_BIN_EXE_loadtest")).args(arguments).output().expect("it starts");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

fn schema() -> Value {
    serde_json::from_str(SCHEMA).expect("a schema in JSON")
}

fn validator(schema: &Value) -> Validator {
    jsonschema::draft202012::meta::validate(schema).expect("a schema of this draft");
    jsonschema::draft202012::options().should_validate_formats(true).build(schema).expect("a schema")
}

/// The schema, changed so that it refuses properties that it does not describe.
fn strict() -> Value {
    fn close(schema: &mut Value) {
        if let Some(object) = schema.as_object_mut() {
            if object.get("properties").is_some_and(Value::is_object) {
                object.insert("additionalProperties".to_owned(), false.into());
            }
            object.values_mut().for_each(close);
        } else if let Some(items) = schema.as_array_mut() {
            items.iter_mut().for_each(close);
        }
    }
    let mut schema = schema();
    // An example is no schema.
    let examples = schema["examples"].take();
    close(&mut schema);
    schema["examples"] = examples;
    schema
}

fn lines(text: &[u8]) -> Vec<Value> {
    let text = std::str::from_utf8(text).expect("UTF-8");
    text.lines().map(|line| serde_json::from_str(line).expect("a JSON object a line")).collect()
}

fn check(validator: &Validator, run: &Value) {
    let errors = validator.iter_errors(run).map(|error| format!("{}: {error}", error.instance_path()));
    assert_eq!(errors.collect::<Vec<_>>(), [""; 0], "{run}");
}

/// The pointers to everything within, as far as the schema knows what it is.
fn described(value: &Value) -> Vec<String> {
    let mut pointers = Vec::new();
    let mut add = |key: &dyn std::fmt::Display, value: &Value| {
        pointers.push(format!("/{key}"));
        let within = described(value).into_iter().map(|pointer| format!("/{key}{pointer}"));
        pointers.extend(within);
    };
    match value {
        Value::Object(object) => object.iter().for_each(|(key, value)| match key.as_str() {
            "options" => add(key, &Value::Null),
            _ => add(key, value),
        }),
        Value::Array(items) => items.iter().enumerate().for_each(|(place, item)| add(&place, item)),
        _ => {}
    }
    pointers
}

fn with(run: &Value, pointer: &str, value: Value) -> Value {
    let mut run = run.clone();
    *run.pointer_mut(pointer).expect("a pointer into it") = value;
    run
}

fn without(run: &Value, pointer: &str) -> Option<Value> {
    let (parent, key) = pointer.rsplit_once('/').expect("a pointer to something within");
    let mut run = run.clone();
    run.pointer_mut(parent)?.as_object_mut()?.shift_remove(key)?;
    Some(run)
}

/// Properties that a report need not have, besides the names of threads.
fn is_optional(pointer: &str) -> bool {
    let ends = [
        "/label",
        "/commit",
        "/in_flight",
        "/asked",
        "/results",
        "/disturbed",
        "/read_back",
        "/deliveries",
        "/queries",
        "/connections",
        "/more_latencies_us",
        "/notes",
        "/server_settings",
        "/syncs_per_event",
        "/server_processors",
        "/server_memory_bytes",
    ];
    pointer.contains("/cpu_us_each_by_thread/") || ends.iter().any(|end| pointer.ends_with(end))
}

#[test]
fn the_example_in_the_schema_is_valid() {
    let schema = strict();
    check(&validator(&schema), &schema["examples"][0]);
}

#[test]
fn reports_of_runs_are_valid_by_the_schema() {
    ensure_server();
    let folder = tempfile::tempdir().expect("a folder");
    let schema = strict();
    let of_judgements = validator(&json!({ "$ref": "#/$defs/judgements", "$defs": schema["$defs"] }));
    let validator = validator(&schema);
    for (scenario, own) in [("publish", "acknowledgement"), ("fanout", "delivery")] {
        let (out, html) = (folder.path().join(scenario), folder.path().join("report.html"));
        let [out, html] = [&out, &html].map(|path| path.to_str().expect("UTF-8"));
        let mut arguments = vec![scenario, "--seconds", "1", "--repeat", "2", "--json", "--out", out, "--html", html];
        arguments.extend(["--label", "a test", "--fail-if", "p99>10s", "--fail-if", "rate<1"]);
        let mut printed = lines(&loadtest(&arguments).stdout);
        let judgements = printed.pop().expect("judgements");
        check(&of_judgements, &judgements);
        let failed = judgements["fail_if"].as_array().expect("judgements").iter().map(|judgement| &judgement["failed"]);
        assert_eq!(failed.collect::<Vec<_>>(), [&json!(false); 2]);
        assert_eq!(printed.len(), 2, "{printed:?}");
        assert_eq!(lines(&std::fs::read(out).expect("a file")), printed, "the file holds what was printed");
        for run in &printed {
            check(&validator, run);
            assert_eq!((&run["scenario"], &run["latency_us"]["of"]), (&json!(scenario), &json!(own)));
            assert_eq!(run["label"], json!("a test"));
            assert_eq!(run["commit"].as_str().is_some(), Path::new("../.git").exists(), "{run}");
            assert!(run["server"]["cpu_us_each"].as_f64() > Some(0.0), "a server of our own is measured: {run}");
        }
        let page = std::fs::read_to_string(html).expect("a page");
        assert!(page.starts_with("<!doctype html>") && page.ends_with("</html>\n"), "{page}");
        compares(Path::new(out));
    }
}

/// Compares a file with itself: nothing has changed.
fn compares(file: &Path) {
    let file = file.to_str().expect("UTF-8");
    let table = loadtest(&["compare", file, file]).stdout;
    let table = String::from_utf8(table).expect("UTF-8");
    let rate = table.lines().find(|line| line.trim_start().starts_with("events/s")).expect("a rate");
    assert!(rate.ends_with(" 0 %, no evidence (p = 1)") && table.contains("(2 runs)"), "{table}");
    let json = lines(&loadtest(&["compare", "--json", file, file]).stdout);
    let figures = json[0]["columns"][1]["figures"].as_array().expect("figures");
    assert!(!figures.is_empty() && figures.iter().all(|figure| figure["p_value"] == json!(1.0)), "{json:?}");
}

/// How a call ends that must not succeed: its exit code, and what it printed to stdout and stderr.
fn ends(arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_loadtest")).args(arguments).output().expect("it starts");
    let [stdout, stderr] = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    (output.status.code(), stdout, stderr)
}

#[test]
fn conditions_that_are_so_end_with_3_and_those_that_mean_nothing_with_2() {
    ensure_server();
    let (code, stdout, _) = ends(&["publish", "--seconds", "1", "--fail-if", "p50>1us", "--fail-if", "p99>10s"]);
    assert!(code == Some(3) && stdout.contains("\n  FAILED           p50>1us: "), "{stdout}");
    assert!(stdout.contains("\n  passed           p99>10s: "), "{stdout}");

    let folder = tempfile::tempdir().expect("a folder");
    let [before, after] = ["before", "after"].map(|name| folder.path().join(name).to_str().expect("UTF-8").to_owned());
    let run = &schema()["examples"][0];
    std::fs::write(&before, format!("{run}\n")).expect("a file");
    std::fs::write(&after, format!("{}\n", with(run, "/events/per_second", json!(1800.0)))).expect("a file");
    let compared = |condition| ends(&["compare", &before, &after, "--fail-if", condition]);
    let (code, stdout, _) = compared("rate<0.95x");
    assert!(code == Some(3) && stdout.contains("FAILED           rate<0.95x: 0.900 ×, publish"), "{stdout}");
    assert_eq!(compared("rate<0.85x").0, Some(0));

    // A server that is not there would be code 1: nothing was tried.
    let refused = |condition| ends(&["publish", "--url", "http://127.0.0.1:1", "--fail-if", condition]);
    for (condition, told) in
        [("mood>5ms", "there is no metric"), ("p99>5", "is a time"), ("rate<0.95x", "loadtest compare")]
    {
        let (code, _, stderr) = refused(condition);
        assert!(code == Some(2) && stderr.contains(told), "{condition}: {stderr}");
    }
    let (code, _, stderr) = compared("query p99>1ms");
    assert!(code == Some(2) && stderr.contains("none of the runs has this metric"), "{stderr}");
}

#[test]
fn without_a_scenario_one_screen_begins_with_the_verdict_and_files_hold_the_rest() {
    ensure_server();
    let folder = tempfile::tempdir().expect("a folder");
    let [csv, hdr, prometheus] = ["runs.csv", "runs.hdr", "runs.prom"].map(|name| folder.path().join(name));
    let [to_csv, to_hdr, to_prometheus] = [&csv, &hdr, &prometheus].map(|path| path.to_str().expect("UTF-8"));
    let files = ["--seconds", "1", "--csv", to_csv, "--hdr", to_hdr, "--prometheus", to_prometheus];
    let screen = String::from_utf8(loadtest(&files).stdout).expect("UTF-8");
    assert!(screen.starts_with("VERIFIED: 2 of 2 runs kept every promise; "), "{screen}");
    assert!(screen.lines().count() <= 24 && screen.lines().all(|line| line.chars().count() <= 100), "{screen}");
    let read = |path| std::fs::read_to_string(path).expect("a file");
    assert_eq!(read(csv).matches("\r\n").count(), 3);
    assert!((2..=4).contains(&read(hdr).matches("\nTag=delivery,").count()), "as many as the second has steps");
    assert_eq!(read(prometheus).matches("\nloadtest_runs{").count(), 2);
}

#[test]
fn mutilated_reports_are_invalid_by_the_schema() {
    let schema = schema();
    let (validator, run) = (validator(&schema), &schema["examples"][0]);
    check(&validator, run);
    for pointer in described(run) {
        // Few properties are booleans, and only results are negative.
        let may_be_true = ["/disturbed", "/asked/missed"].contains(&&*pointer);
        assert_eq!(validator.is_valid(&with(run, &pointer, true.into())), may_be_true, "{pointer} may be true");
        let may_be_negative = pointer.starts_with("/results/") && pointer.ends_with("/value");
        assert_eq!(validator.is_valid(&with(run, &pointer, (-1).into())), may_be_negative, "{pointer} may be negative");
        if let Some(rest) = without(run, &pointer) {
            assert_eq!(validator.is_valid(&rest), is_optional(&pointer), "without {pointer}");
        }
    }
    for (pointer, value) in [
        ("/format", json!(2)),
        ("/started_at", json!("yesterday")),
        ("/started_at", json!("2026-13-24T10:00:00Z")),
        ("/latency_us/of", json!("mood")),
        ("/latency_us/percentiles/0", json!([50.0])),
        ("/latency_us/percentiles/0", json!([50.0, 1.0, 1.0])),
        ("/latency_us/percentiles/0", json!([101.0, 1.0])),
        ("/timeline", json!([])),
        ("/events/count", json!(0.5)),
        ("/verdict", json!("good")),
    ] {
        assert!(!validator.is_valid(&with(run, pointer, value.clone())), "{pointer} may be {value}");
    }
}

#[test]
fn reports_with_more_properties_are_valid_by_the_schema() {
    let schema = schema();
    let mut run = schema["examples"][0].clone();
    run["server"]["temperature"] = json!(40);
    assert!(validator(&schema).is_valid(&run));
    assert!(!validator(&strict()).is_valid(&run), "the schema's test would not notice what it does not describe");
}
