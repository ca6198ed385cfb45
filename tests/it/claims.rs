//! Claims of the documents, compared with the records of runs and with the scripts.

use std::fs;
use std::path::Path;

use serde_json::Value;

/// The part of a document under a heading.
fn section(file: &str, heading: &str) -> String {
    let text = fs::read_to_string(file).unwrap();
    let part = text.split(&format!("\n{heading}\n")).nth(1).unwrap_or_else(|| panic!("{file} has no {heading:?}"));
    part.split("\n## ").next().unwrap().to_owned()
}

/// A number as the documents write it: 1,234,567.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let (first, rest) = digits.split_at((digits.len() - 1) % 3 + 1);
    let groups = rest.as_bytes().chunks(3).map(|group| str::from_utf8(group).unwrap());
    [first].into_iter().chain(groups).collect::<Vec<_>>().join(",")
}

/// The row that RELIABILITY.md must have for a piece of the long run; "not yet" for one without a record.
fn row(piece: &str) -> String {
    let Ok(text) = fs::read_to_string(format!("data/long/{piece}.json")) else {
        return format!("| `{piece}` | | not yet |");
    };
    let Value::Object(record) = serde_json::from_str(&text).unwrap() else { panic!("{piece}: {text}") };
    let commit = &record["commit"].as_str().unwrap()[..7];
    let counts = record.iter().filter(|(name, _)| !matches!(name.as_str(), "commit" | "batches" | "complete"));
    let counts = counts.map(|(name, count)| format!("{} {}", grouped(count.as_u64().unwrap()), name.replace('_', " ")));
    format!("| `{piece}` | {commit} | {} |", counts.collect::<Vec<_>>().join(", "))
}

#[test]
fn the_numbers_of_the_long_run_are_those_in_data_long() {
    let section = section("RELIABILITY.md", "## The long run");
    let rows: Vec<_> = section.lines().filter(|line| line.starts_with("| `")).collect();
    let pieces: Vec<_> = rows.iter().map(|row| row.split('`').nth(1).unwrap()).collect();
    for (row_told, piece) in rows.iter().zip(&pieces) {
        assert_eq!(*row_told, row(piece), "`.ci/long` brings RELIABILITY.md up to date");
    }
    for entry in fs::read_dir("data/long").into_iter().flatten() {
        let path = entry.unwrap().path();
        let piece = path.file_stem().unwrap().to_str().unwrap().to_owned();
        assert!(pieces.contains(&&*piece), "RELIABILITY.md says nothing of {}", path.display());
    }
    let script = fs::read_to_string(".ci/long").unwrap();
    for piece in pieces {
        assert!(script.contains(&format!("\n{piece}() {{")), ".ci/long has no piece called {piece}");
    }
}

#[test]
fn the_figure_of_the_readme_is_the_median_on_record() {
    let runs = fs::read_to_string("data/perf/publish.json").unwrap();
    let runs: Vec<Value> = runs.lines().map(|run| serde_json::from_str(run).unwrap()).collect();
    let mut rates: Vec<_> = runs.iter().map(|run| run["events"]["per_second"].as_f64().unwrap() as u64).collect();
    rates.sort_unstable();
    let median = grouped(rates[rates.len() / 2]);
    let day: jiff::Timestamp = runs[0]["started_at"].as_str().unwrap().parse().unwrap();
    let day = day.strftime("%-d %B %Y").to_string();
    let readme = fs::read_to_string("README.md").unwrap();
    let figure = readme.split("\n\n").find(|part| part.starts_with("**")).expect("a figure");
    for claim in [&*format!("**{median} events a second**"), &day] {
        assert!(figure.contains(claim), "{claim:?} is on record, not: {figure}");
    }
    let row = fs::read_to_string("PERF.md").unwrap();
    assert!(row.contains(&format!("| `publish` | {median} ")), "PERF.md has the same");
}

#[test]
fn the_gate_runs_the_test_command_of_the_readme() {
    let gate = fs::read_to_string(".ci/run").unwrap();
    assert!(section("README.md", "## Quick start").contains("\ncargo test "));
    assert!(gate.contains("\nstep \"cargo test\" cargo test\n"));
}

#[test]
fn the_gate_runs_as_many_seeds_as_the_documents_say() {
    let gate = fs::read_to_string(".ci/run").unwrap();
    let seeds = gate.split("SIM_SEEDS=").skip(1).map(|rest| rest.split(' ').next().unwrap().parse::<u64>().unwrap());
    let seeds = grouped(seeds.sum());
    for document in ["RELIABILITY.md", "CONTRIBUTING.md"] {
        let text = fs::read_to_string(document).unwrap();
        assert!(text.contains(&format!("{seeds} seeds")), "{document} does not say that the gate lives {seeds} seeds");
    }
}

#[test]
fn every_fuzz_target_names_modules_that_exist() {
    // `tests/fuzz/run --turns` chooses targets by these names.
    for entry in fs::read_dir("tests/fuzz/stubs").unwrap() {
        let stub = entry.unwrap().path();
        let target = Path::new("tests/fuzz/targets").join(stub.file_name().unwrap());
        let text = fs::read_to_string(&target).unwrap();
        let modules = text.split("event_pipeline::").skip(1);
        let modules: Vec<_> =
            modules.map(|rest| rest.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap()).collect();
        assert!(!modules.is_empty(), "{} names no module", target.display());
        for module in modules {
            let is_there =
                Path::new("src").join(module).is_dir() || Path::new("src").join(format!("{module}.rs")).is_file();
            assert!(is_there, "{} names {module}", target.display());
        }
    }
}
