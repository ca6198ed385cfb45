//! Finding out that files have changed.
//!
//! It looks at them now and then: a file on a network, or one that is swapped in through a link, tells nobody of a change.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use parking_lot::Mutex;

/// Files that are read together, and read again together.
#[derive(Debug)]
pub struct Watch {
    paths: Vec<PathBuf>,
    looks: Mutex<Looks>,
}

/// The states in which the files were seen.
#[derive(Debug)]
struct Looks {
    read: States,
    /// By the last look.
    seen: States,
}

/// Of each file; `None`: there is none.
type States = Vec<Option<State>>;

/// Tells one state of a file from the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct State {
    inode: u64,
    changed: (i64, i64),
    bytes: u64,
}

impl Watch {
    /// To be called before the files are read for the first time, so that no change in between is missed.
    pub fn new(paths: impl IntoIterator<Item = PathBuf>) -> Self {
        let paths: Vec<_> = paths.into_iter().collect();
        let states = states_of(&paths);
        Self { paths, looks: Mutex::new(Looks { read: states.clone(), seen: states }) }
    }

    /// Looks at the files, and says whether to read them again: they have changed since they were read, and two looks have seen
    /// them the same, because a program may be writing one, or may have replaced one of two.
    pub fn has_changed(&self) -> bool {
        let (mut looks, now) = (self.looks.lock(), states_of(&self.paths));
        let has_changed = looks.seen == now && looks.read != now;
        if has_changed {
            looks.read.clone_from(&now);
        }
        looks.seen = now;
        has_changed
    }
}

fn states_of(paths: &[PathBuf]) -> States {
    let state_of = |path: &PathBuf| {
        let file = fs::metadata(path).ok()?;
        Some(State { inode: file.ino(), changed: (file.ctime(), file.ctime_nsec()), bytes: file.len() })
    };
    paths.iter().map(state_of).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_told_once_and_only_when_it_has_settled() {
        let folder = tempfile::tempdir().unwrap();
        let [one, two] = ["one", "two"].map(|name| folder.path().join(name));
        fs::write(&one, "1").unwrap();
        let watch = Watch::new([one.clone(), two.clone()]);
        assert_eq!([watch.has_changed(), watch.has_changed()], [false, false]);
        fs::write(&one, "12").unwrap();
        assert!(!watch.has_changed());
        fs::write(&two, "2").unwrap();
        assert!(!watch.has_changed(), "the other file is being written");
        assert_eq!([watch.has_changed(), watch.has_changed()], [true, false]);
        fs::remove_file(&two).unwrap();
        assert_eq!([watch.has_changed(), watch.has_changed(), watch.has_changed()], [false, true, false]);
    }
}
