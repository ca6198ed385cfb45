//! The layout holds what ARCHITECTURE.md says of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use event_pipeline::wire::refusal::{Again, CLOSE_CODES};

use crate::imports::{Crate, Imports, circles, code, files};

/// Modules that only tests have, and the program's root.
const LEFT_OUT: [&str; 3] = ["sim", "model", "main"];

/// The crates of the load test: folder, name, and the file that lists the modules.
const LOAD_TESTS: [(&str, &str, &str); 2] =
    [("loadtest/src", "loadtest", "lib.rs"), ("loadtest/peers/src", "loadtest_peers", "main.rs")];

fn server() -> Imports {
    Crate::read(Path::new("src"), "event_pipeline", &LEFT_OUT).imports()
}

/// The top-level module of a file of `src`.
fn module(file: &Path) -> String {
    file.strip_prefix("src").unwrap().with_extension("").iter().next().unwrap().to_str().unwrap().to_owned()
}

/// The code map: each module with those it may import.
fn allowed() -> BTreeMap<String, BTreeSet<String>> {
    let text = fs::read_to_string("ARCHITECTURE.md").unwrap();
    let map = text.split("## Code map").nth(1).unwrap().split("\n## ").next().unwrap();
    let names = |cell: &str| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
    let rows = map.lines().filter(|line| line.starts_with("| `"));
    let cells = rows.map(|row| row.split('|').map(str::to_owned).collect::<Vec<_>>());
    cells
        .flat_map(|cells| {
            names(&cells[1]).into_iter().map(move |module| (module, names(&cells[2]).into_iter().collect()))
        })
        .collect()
}

#[test]
fn imports_point_down_the_code_map() {
    let allowed = allowed();
    for (file, imports) in server() {
        let of = module(&file);
        if of == "lib" {
            continue;
        }
        let may = allowed.get(&of).unwrap_or_else(|| panic!("{of} is not in the code map of ARCHITECTURE.md"));
        for other in imports.iter().map(|other| module(other)).filter(|other| *other != of) {
            assert!(may.contains(&other), "{} imports {other}, which the code map does not allow", file.display());
        }
    }
    // Downward: no module can be reached from one that it may import.
    let mut left = allowed;
    while let Some(lowest) = left.iter().find(|(_, may)| may.iter().all(|module| !left.contains_key(module))) {
        let lowest = lowest.0.clone();
        left.remove(&lowest);
    }
    assert!(left.is_empty(), "these modules import each other: {:?}", left.keys());
}

#[test]
fn no_files_import_each_other() {
    let others = LOAD_TESTS.map(|(folder, name, _)| circles(&Crate::read(Path::new(folder), name, &[]).imports()));
    let circles = [circles(&server()), others.concat()].concat();
    assert!(circles.is_empty(), "these files import each other: {circles:?}");
}

#[test]
fn no_file_is_longer_than_500_lines_without_its_tests() {
    for file in ["src", "loadtest/src", "loadtest/peers/src"].iter().flat_map(|folder| files(Path::new(folder))) {
        let is_rust = file.extension().is_some_and(|extension| extension == "rs");
        if !is_rust || file.starts_with("src/sim") {
            continue;
        }
        let text = fs::read_to_string(&file).unwrap();
        let lines = text.split("#[cfg(test)]\nmod tests").next().unwrap().lines().count();
        assert!(lines <= 500, "{} has {lines} lines", file.display());
    }
}

/// The load test names its modules in order at the top of its root, as does the crate of the other servers: each imports
/// only from those below it.
#[test]
fn imports_of_the_load_test_point_down_its_lists() {
    for (folder, name, list) in LOAD_TESTS {
        let folder = Path::new(folder);
        let imports = Crate::read(folder, name, &[]).imports();
        let text = fs::read_to_string(folder.join(list)).unwrap();
        let lines = text.lines().take_while(|line| line.starts_with("//!")).filter(|line| line.starts_with("//! * ["));
        let heights: BTreeMap<_, _> = lines.flat_map(|line| line.split('`').skip(1).step_by(2)).zip(0..).collect();
        let module_within = |file: &PathBuf| {
            let inside = file.strip_prefix(folder).ok()?.with_extension("");
            inside
                .iter()
                .next()
                .unwrap()
                .to_str()
                .map(str::to_owned)
                .filter(|module| !["main", "lib"].contains(&&**module))
        };
        for (file, others) in &imports {
            let Some(of) = module_within(file) else { continue };
            let height = *heights.get(&*of).unwrap_or_else(|| panic!("{of} is not in the list of {list}"));
            for other in others.iter().filter_map(module_within).filter(|other| *other != of) {
                assert!(heights[&*other] > height, "{} imports {other}, which {list} has above it", file.display());
            }
        }
    }
}

/// A `JoinSet` ends its tasks when it is dropped. A task of `tokio::spawn` goes on when nobody holds it, so nothing calls
/// that.
#[test]
fn no_task_is_spawned_that_nobody_waits_for() {
    for file in files(Path::new("src")) {
        let code = code(&file);
        for spawns in ["tokio::spawn(", "task::spawn(", "spawn_local("] {
            assert!(!code.contains(spawns), "{} calls {spawns}…)", file.display());
        }
    }
}

#[test]
fn every_dependency_has_its_reason() {
    let manifest = fs::read_to_string("Cargo.toml").unwrap();
    let section =
        |name: &str| manifest.split(&format!("[{name}]\n")).nth(1).unwrap().split("\n[").next().unwrap().to_owned();
    let text = fs::read_to_string("ARCHITECTURE.md").unwrap();
    let reasons = text.split("## Dependencies").nth(1).unwrap().split("\n## ").next().unwrap();
    let reasons: BTreeSet<&str> = reasons.split(|c: char| !(c.is_alphanumeric() || c == '-' || c == '_')).collect();
    for line in [section("dependencies"), section("dev-dependencies")].concat().lines() {
        let name = line.split(' ').next().unwrap();
        assert!(reasons.contains(name), "{name} has no line under Dependencies in ARCHITECTURE.md");
    }
}

#[test]
fn our_client_reconnects_after_the_close_codes_that_the_contract_says() {
    let text = fs::read_to_string("docs/CONTRACT.md").unwrap();
    let table = text.split("| close code |").nth(1).unwrap().split("\n\n").next().unwrap();
    let mut told = Vec::new();
    for row in table.lines().skip(2) {
        let cells: Vec<_> = row.split('|').map(str::trim).collect();
        let again = match cells[3] {
            "yes" | "later" => Again::Yes,
            "no" | "not the same" => Again::No,
            other => panic!("{other:?} after {}", cells[1]),
        };
        told.extend(cells[1].split(", ").map(|code| (code.parse().unwrap(), again)));
    }
    told.sort_unstable_by_key(|(code, _)| *code);
    assert_eq!(told, CLOSE_CODES);
}

/// A second comparison of secrets would sooner or later be one that takes longer for a better guess.
#[test]
fn secrets_are_compared_in_one_place() {
    let compares = |file: &PathBuf| code(file).contains("ct_eq");
    let found: Vec<_> = files(Path::new("src")).into_iter().filter(compares).collect();
    assert_eq!(found, [Path::new("src/auth/key.rs")]);
    assert_eq!(code(&found[0]).matches("ct_eq").count(), 1);
}
