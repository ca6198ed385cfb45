//! Programs that are installed.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

/// A program that is installed.
#[derive(Debug, Clone)]
pub struct Binary {
    pub path: PathBuf,
    pub version: String,
}

impl Binary {
    /// Finds a program by its name, and its version in what it says of itself.
    ///
    /// # Errors
    /// It is there and does not work.
    pub fn find(name: &str, version: fn(&str) -> Option<&str>) -> anyhow::Result<Option<Self>> {
        // Debian installs servers in /usr/sbin, which is not in every user's PATH.
        for path in [PathBuf::from(name), Path::new("/usr/sbin").join(name)] {
            let output = match Command::new(&path).arg("--version").output() {
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                output => output.with_context(|| format!("start {}", path.display()))?,
            };
            let text = String::from_utf8_lossy(&output.stdout);
            let version = version(text.trim()).with_context(|| format!("{name} says no version in {text:?}"))?;
            return Ok(Some(Self { version: version.to_owned(), path }));
        }
        Ok(None)
    }
}

/// The first two numbers of a version.
pub fn version_parts(version: &str) -> (u32, u32) {
    let mut parts = version.split('.').map(|part| part.parse().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_that_are_not_there_are_not_found() {
        assert!(Binary::find("no-such-program", |_| None).expect("nothing").is_none());
    }

    #[test]
    fn versions_are_compared_by_their_numbers() {
        assert_eq!(["2.9.10", "2.10", "7"].map(version_parts), [(2, 9), (2, 10), (7, 0)]);
        assert!(version_parts("2.9.10") < version_parts("2.10.0"));
    }
}
