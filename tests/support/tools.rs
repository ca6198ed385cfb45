//! Programs of other people that some tests need.

use std::env;
use std::io::Write;
use std::path::PathBuf;

/// Where a program is.
pub fn program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// Says loudly that a test is skipped for want of something. Where nothing may be skipped (`CI` is set) it fails.
pub fn skip(test: &str, needs: &str) {
    assert!(env::var_os("CI").is_none(), "{test} needs {needs}");
    // The macros write where the test harness hides what a passing test says.
    std::io::stderr().write_all(format!("SKIPPED: {test}: needs {needs}\n").as_bytes()).unwrap();
}
