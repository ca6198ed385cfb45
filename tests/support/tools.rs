//! Programs that some tests need and this repository does not have.

use std::env;
use std::io::Write;
use std::path::PathBuf;

/// The path of a program.
pub fn program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// Reports on stderr that a test is skipped because it needs something that is missing. With `CI` set, where no test may be
/// skipped, it panics.
pub fn skip(test: &str, needs: &str) {
    assert!(env::var_os("CI").is_none(), "{test} needs {needs}");
    // The test harness hides the output of `eprintln!` in a test that passes.
    std::io::stderr().write_all(format!("SKIPPED: {test}: needs {needs}\n").as_bytes()).unwrap();
}
