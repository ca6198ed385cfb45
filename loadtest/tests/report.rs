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
    let validator = validator(&strict());
    for (scenario, own) in [("publish", "acknowledgement"), ("fanout", "delivery")] {
        let (out, html) = (folder.path().join(scenario), folder.path().join("report.html"));
        let [out, html] = [&out, &html].map(|path| path.to_str().expect("UTF-8"));
        let arguments = [scenario, "--seconds", "1", "--repeat", "2", "--json", "--out", out, "--html", html];
        let printed = lines(&loadtest(&arguments).stdout);
        assert_eq!(printed.len(), 2, "{printed:?}");
        assert_eq!(lines(&std::fs::read(out).expect("a file")), printed, "the file holds what was printed");
        for run in &printed {
            check(&validator, run);
            assert_eq!((&run["scenario"], &run["latency_us"]["of"]), (&json!(scenario), &json!(own)));
            assert!(run["server"]["cpu_us_each"].as_f64() > Some(0.0), "a server of our own is measured: {run}");
        }
        let page = std::fs::read_to_string(html).expect("a page");
        assert!(page.starts_with("<!doctype html>") && page.ends_with("</html>\n"), "{page}");
        assert!(page.contains("Verified: all 2 runs kept every promise."), "{page}");
        compares(Path::new(out));
    }
}

/// Compares a file with itself: nothing has changed.
fn compares(file: &Path) {
    let file = file.to_str().expect("UTF-8");
    let table = loadtest(&["compare", file, file]).stdout;
    let table = String::from_utf8(table).expect("UTF-8");
    let rate = table.lines().find(|line| line.trim_start().starts_with("events/s")).expect("a rate");
    assert!(rate.ends_with(" 0 %, within the spread") && table.contains("(2 runs)"), "{table}");
    let json = lines(&loadtest(&["compare", "--json", file, file]).stdout);
    let figures = json[0]["columns"][1]["figures"].as_array().expect("figures");
    assert!(!figures.is_empty() && figures.iter().all(|figure| figure["within_spread"] == json!(true)), "{json:?}");
}

#[test]
fn a_file_that_cannot_be_compared_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("runs.json");
    std::fs::write(&file, "{}\n").expect("a file");
    for (file, expected) in [(&file, "line 1 of "), (&folder.path().join("none.json"), "none.json: ")] {
        let output = Command::new(env!("CARGO_BIN_EXE_loadtest")).arg("compare").arg(file).output().expect("it starts");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(1) && stderr.contains(expected), "{stderr}");
    }
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
