//! The page of `--html`, as a file and in a browser.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

/// Text that would do harm if it were taken for markup, or for the end of the script that carries it.
const NASTY: &str =
    r#"</td></script><!--<script src="http://127.0.0.1/">alert('&')</script><img src=x onerror="1">{RUNS}"#;

fn example() -> Value {
    let schema = serde_json::from_str::<Value>(include_str!("../schema/report.json")).expect("a schema");
    schema["examples"][0].clone()
}

/// The page that `compare` writes about these files of runs.
fn page(folder: &Path, files: &[Vec<Value>], more: &[&str]) -> PathBuf {
    let page = folder.join("report.html");
    let mut command = Command::new(env!("CARGO_BIN_EXE_loadtest"));
    command.arg("compare").arg("--html").arg(&page).args(more);
    for (number, runs) in files.iter().enumerate() {
        let file = folder.join(format!("runs {number}.json"));
        std::fs::write(&file, runs.iter().map(|run| format!("{run}\n")).collect::<String>()).expect("a file");
        command.arg(file);
    }
    let output = command.output().expect("it starts");
    assert!(matches!(output.status.code(), Some(0 | 3)), "{}", String::from_utf8_lossy(&output.stderr));
    page
}

/// What a browser has made of a page, and what it said on its console. `None` without a browser, which is only allowed
/// where `CI` is not set.
fn opened(page: &Path) -> Option<(String, Vec<String>)> {
    let profile = tempfile::tempdir().expect("a folder");
    let output = Command::new("chromium")
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"])
        .args(["--disable-background-networking", "--enable-logging=stderr", "--dump-dom"])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .arg(format!("file://{}", page.display()))
        .env_clear()
        .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
        .env("HOME", profile.path())
        .output();
    let Ok(output) = output else {
        assert!(std::env::var_os("CI").is_none(), "there is no Chromium (apt-get install chromium)");
        eprintln!("SKIPPED: a browser's view of a page: there is no Chromium (apt-get install chromium)");
        return None;
    };
    let [dom, said] = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    Some((dom, said.lines().filter(|line| line.contains("CONSOLE")).map(str::to_owned).collect()))
}

/// Runs of which each has something that the others lack.
fn runs() -> Vec<Vec<Value>> {
    let mut nasty = example();
    for pointer in ["/scenario", "/subject", "/title", "/label", "/machine/cpu", "/limit", "/acknowledged_means"] {
        *nasty.pointer_mut(pointer).expect("a text") = NASTY.into();
    }
    nasty["options"] = json!({ NASTY: NASTY });
    nasty["server"]["cpu_us_each_by_thread"][NASTY] = json!(1.0);
    nasty["results"] = json!([{ "name": NASTY, "unit": NASTY, "value": -3.5 }]);
    nasty["violations"] = json!([NASTY]);
    let mut blind = example();
    blind["server"] = Value::Null;
    blind["processors_busy"]["server"] = Value::Null;
    blind["options"] = Value::Null;
    for key in ["label", "commit", "loop", "exercised", "results", "verdict", "disturbed"] {
        blind.as_object_mut().expect("an object").remove(key);
    }
    for point in blind["timeline"].as_array_mut().expect("points") {
        *point = json!({ "at": point["at"], "per_second": 0.0, "p50_us": 0.0, "p99_us": 0.0, "max_us": 0.0 });
    }
    let mut idle = blind.clone();
    idle["latency_us"] = json!({ "of": "acknowledgement", "count": 0, "mean": 0.0, "p50": 0.0, "p90": 0.0, "p99": 0.0,
        "p99_9": 0.0, "max": 0.0, "percentiles": [] });
    idle["timeline"] = json!([]);
    idle["events"] = json!({ "count": 0, "per_second": 0.0 });
    let mut bad = example();
    bad["verdict"] = "not_exercised".into();
    bad["exercised"] = json!([{ "what": "requests were refused", "count": 0 }]);
    bad["disturbed"] = true.into();
    bad["asked"] = json!({ "of": "acknowledgement", "per_second": 1e5, "missed": true });
    let mut slow = example();
    slow["verdict"] = "rate_missed".into();
    slow["scenario"] = "fanout".into();
    slow["deliveries"] = json!({ "count": 5, "per_second": 10.0 });
    slow["latency_us"]["of"] = "delivery".into();
    slow["latency_us"]["count"] = 1.into();
    slow["more_latencies_us"] = json!([example()["latency_us"]]);
    let mut wide = example();
    wide["options"]["window"] = 7.into();
    vec![vec![example(), example(), wide, nasty], vec![blind, idle, bad], vec![slow, example()]]
}

#[test]
fn a_page_carries_the_runs_unchanged_and_no_text_of_them_is_markup() {
    let folder = tempfile::tempdir().expect("a folder");
    let files = runs();
    let text = std::fs::read_to_string(page(folder.path(), &files, &[])).expect("a page");
    let (before, rest) = text.split_once(r#"<script type="application/json" id="runs">"#).expect("the runs");
    let (carried, after) = rest.split_once("</script>").expect("their end");
    assert!(!carried.contains('<') && !carried.contains("{STYLE}"), "{carried}");
    // Nothing else of the page depends on the runs, and nothing in it is loaded.
    let other = std::fs::read_to_string(page(folder.path(), &[vec![example()]], &[])).expect("a page");
    assert!(other.starts_with(before) && other.ends_with(after), "{before}{after}");
    assert!(
        !["src=", "href=", "url(", "@import", "import("].iter().any(|word| (before.to_owned() + after).contains(word))
    );
    let carried = serde_json::from_str::<Value>(carried).expect("JSON");
    let sections = carried["sections"].as_array().expect("sections").iter();
    let reports = sections.flat_map(|section| section["reports"].as_array().expect("columns")).flat_map(|column| {
        column.as_array().expect("runs").iter().map(|run| (&run["title"], &run["latency_us"], &run["violations"]))
    });
    let mut reports = reports.collect::<Vec<_>>();
    for run in files.iter().flatten() {
        let place =
            reports.iter().position(|report| *report == (&run["title"], &run["latency_us"], &run["violations"]));
        reports.swap_remove(place.unwrap_or_else(|| panic!("{run} is not in {carried}")));
    }
    assert!(reports.is_empty(), "{reports:?}");
}

#[test]
fn a_browser_draws_whatever_runs_say_or_lack_without_a_complaint() {
    let folder = tempfile::tempdir().expect("a folder");
    let Some((dom, complaints)) = opened(&page(folder.path(), &runs(), &["--fail-if", "p99>1ms"])) else { return };
    assert_eq!(complaints, [""; 0]);
    // The script itself stands in the page, too.
    let (_, drawn) = dom.rsplit_once("</script>").expect("what was drawn");
    assert_eq!(drawn.matches("<section ").count(), 3, "{drawn}");
    assert!(!drawn.contains("NaN") && !drawn.contains("Infinity") && !drawn.contains("undefined"), "{drawn}");
    assert!(!drawn.contains("<img") && drawn.contains("&lt;img src=x"), "{drawn}");
    for text in [
        "VIOLATION: a promise was broken (1 of 9 runs)",
        "NOT EXERCISED: what the scenario is for did not happen (1 of 9 runs)",
        "NOT EXERCISED: before ",
        "RATE MISSED: slower than asked for (1 of 9 runs)",
        "DISTURBED: other programs used the processors; measure again when they are gone (1 of 9 runs)",
        "FAILED: p99&gt;1ms: 3.00 ms, publish, event-pipeline 0.1.0, runs 1.json",
        "Server CPU per event, by thread",
        "Delivery latency by percentile",
        "Memory held by the server, over time",
        "Mann–Whitney",
    ] {
        assert!(drawn.contains(text), "{text}: {drawn}");
    }
    assert!(!drawn.contains("Verified: all"), "{drawn}");
}

#[test]
fn a_browser_runs_no_other_script_than_the_one_the_page_was_made_with() {
    let folder = tempfile::tempdir().expect("a folder");
    let page = page(folder.path(), &[vec![example()]], &[]);
    let Some((dom, complaints)) = opened(&page) else { return };
    assert!(dom.contains("Verified: the run kept every promise.") && complaints.is_empty(), "{complaints:?}");
    let text = std::fs::read_to_string(&page).expect("a page");
    std::fs::write(&page, text.replace("\"use strict\";", "\"use strict\"; ")).expect("a page");
    let (dom, complaints) = opened(&page).expect("a browser");
    assert!(!dom.contains("<section ") && !complaints.is_empty(), "{dom}");
}
