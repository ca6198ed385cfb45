//! The layout holds what ARCHITECTURE.md says of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use event_pipeline::wire::refusal::{Again, CLOSE_CODES};

type Imports = BTreeMap<String, BTreeSet<String>>;

/// The code map: each room with those it may import.
fn allowed() -> Imports {
    let text = fs::read_to_string("ARCHITECTURE.md").unwrap();
    let map = text.split("## Code map").nth(1).unwrap().split("\n## ").next().unwrap();
    let names = |cell: &str| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
    let rows = map.lines().filter(|line| line.starts_with("| `"));
    let mut rooms = Imports::new();
    for row in rows {
        let cells: Vec<_> = row.split('|').collect();
        for room in names(cells[1]) {
            rooms.insert(room, names(cells[2]).into_iter().collect());
        }
    }
    rooms
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// What a file holds, apart from its tests.
fn code(file: &Path) -> String {
    let text = fs::read_to_string(file).unwrap();
    text.split("#[cfg(test)]\nmod tests").next().unwrap().to_owned()
}

/// What each room imports, apart from its tests.
fn found() -> Imports {
    let mut rooms = Imports::new();
    for file in files(Path::new("src")) {
        let room = file.strip_prefix("src").unwrap().components().next().unwrap().as_os_str().to_str().unwrap();
        let room = room.trim_end_matches(".rs");
        let code = code(&file);
        let imports = rooms.entry(room.to_owned()).or_default();
        for place in code.split("crate::").skip(1) {
            let name: String = place.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            if name != room && !name.is_empty() {
                imports.insert(name);
            }
        }
    }
    rooms
}

#[test]
fn imports_point_down() {
    let allowed = allowed();
    for (room, imports) in found() {
        if matches!(room.as_str(), "lib" | "main" | "cli" | "model" | "sim") {
            continue;
        }
        let may = allowed.get(&room).unwrap_or_else(|| panic!("{room} is not in the code map of ARCHITECTURE.md"));
        let more: Vec<_> = imports.difference(may).collect();
        assert!(more.is_empty(), "{room} imports {more:?}, which the code map does not allow");
    }
    // Downward: no room can be reached from one it may import.
    let mut left = allowed;
    while let Some(lowest) = left.iter().find(|(_, may)| may.iter().all(|room| !left.contains_key(room))) {
        let lowest = lowest.0.clone();
        left.remove(&lowest);
    }
    assert!(left.is_empty(), "these rooms import each other: {:?}", left.keys());
}

/// The files of a folder that cannot be ordered so that each imports only from those before it.
fn circle(folder: &Path) -> BTreeSet<String> {
    let name = |file: &Path| file.file_stem().unwrap().to_str().unwrap().to_owned();
    let mut left: Imports = files(folder)
        .iter()
        .map(|file| {
            // `super::NAME` or `super::{…}`: whatever word follows up to the end of the path or of the braces.
            let code = code(file);
            let paths = code.split("super::").skip(1).map(|rest| match rest.strip_prefix('{') {
                Some(many) => many.split('}').next().unwrap(),
                None => rest.split(|c: char| !(c.is_alphanumeric() || c == '_')).next().unwrap(),
            });
            let words = paths.flat_map(|path| path.split(|c: char| !(c.is_alphanumeric() || c == '_')));
            (name(file), words.map(str::to_owned).filter(|word| *word != name(file)).collect())
        })
        .collect();
    left.remove("mod");
    while let Some(lowest) = left.iter().find(|(_, may)| may.iter().all(|other| !left.contains_key(other))) {
        let lowest = lowest.0.clone();
        left.remove(&lowest);
    }
    left.into_keys().collect()
}

#[test]
fn no_files_of_a_room_import_each_other() {
    for entry in fs::read_dir("src").unwrap() {
        let folder = entry.unwrap().path();
        // `sim` is a test.
        if folder.is_dir() && !folder.ends_with("sim") {
            assert_eq!(circle(&folder), BTreeSet::new(), "of {} import each other", folder.display());
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
