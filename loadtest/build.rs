//! Notes the commit that the tool is built from, so that every report names it. Without git, or outside its repository,
//! reports name none.

use std::path::Path;
use std::process::Command;

/// What the tool and the server that it starts are built from.
const SOURCES: [&str; 7] = ["src", "build.rs", "Cargo.toml", "peers", "../src", "../Cargo.toml", "../Cargo.lock"];

fn main() {
    // Without these lines cargo would run this before every build. They are also what makes the commit another: git
    // writes the log of HEAD with each commit, and the index with each change of what is going to be committed.
    SOURCES.iter().for_each(|source| println!("cargo::rerun-if-changed={source}"));
    for file in ["HEAD", "logs/HEAD", "index"] {
        let path = git(&["rev-parse", "--git-path", file]).filter(|path| Path::new(path).exists());
        path.iter().for_each(|path| println!("cargo::rerun-if-changed={path}"));
    }
    // A copy of the source in another repository is not of that one's commits.
    let Some(_) = git(&["ls-files", "--error-unmatch", "build.rs"]) else { return };
    let Some(commit) = git(&["rev-parse", "--short=12", "HEAD"]) else { return };
    // Reading the status would else refresh the index, which would lead to the next run of this.
    let status = [&["--no-optional-locks", "status", "--porcelain", "--"][..], &SOURCES].concat();
    let is_changed = git(&status).is_none_or(|changes| !changes.is_empty());
    println!("cargo::rustc-env=LOADTEST_COMMIT={commit}{}", if is_changed { "-dirty" } else { "" });
}

/// What git says; `None` where there is no git, or it refuses.
fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}
