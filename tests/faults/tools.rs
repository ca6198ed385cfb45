//! Programs of other people that some tests need.

use std::io::Write;

/// Says loudly that a test is skipped for want of a tool. Where the tests are meant to be run it fails instead.
pub fn is_missing(test: &str, tool: &str, package: &str) {
    let told = format!("SKIPPED: {test}: needs {tool} (apt-get install {package})\n");
    assert!(std::env::var_os("CI").is_none(), "{told}");
    // The macros write where the test harness hides what a passing test says.
    std::io::stderr().write_all(told.as_bytes()).unwrap();
}
