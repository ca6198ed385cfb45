//! Runs every fuzz target on its seeds, among them every input that it ever failed on.

use std::fs;
use std::path::Path;

#[path = "../fuzz/targets/mod.rs"]
mod targets;

#[test]
fn every_input_that_the_fuzzer_has_kept_passes_its_target() {
    let mut folders: Vec<_> =
        fs::read_dir("tests/fuzz/seeds").unwrap().map(|entry| entry.unwrap().file_name()).collect();
    folders.sort();
    assert_eq!(folders, targets::ALL.map(|(name, _)| name), "each target has seeds");
    for (name, target) in targets::ALL {
        let mut seeds = 0;
        for entry in fs::read_dir(Path::new("tests/fuzz/seeds").join(name)).unwrap() {
            let path = entry.unwrap().path();
            let seed = fs::read(&path).unwrap();
            let outcome = std::panic::catch_unwind(|| target(&seed));
            assert!(outcome.is_ok(), "{} fails", path.display());
            seeds += 1;
        }
        assert!(seeds > 0, "{name} has no seed");
    }
}
