//! A folder for a server that is started from here.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, ensure};

/// A new folder on a disk, removed when dropped.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new(parent: &Path) -> anyhow::Result<Self> {
        /// The kind of a volume in memory, as `statfs` gives it.
        const TMPFS: i64 = 0x0102_1994;
        static CREATED: AtomicU32 = AtomicU32::new(0);
        let parent = parent.canonicalize().with_context(|| format!("find {}", parent.display()))?;
        let volume = rustix::fs::statfs(&parent).with_context(|| format!("look at {}", parent.display()))?;
        ensure!(volume.f_type as i64 != TMPFS, "{} is in memory, not on a disk; choose a --folder", parent.display());
        let number = CREATED.fetch_add(1, Ordering::Relaxed);
        let folder = parent.join(format!("loadtest-{}-{number}", process::id()));
        DirBuilder::new().mode(0o700).create(&folder).with_context(|| format!("create {}", folder.display()))?;
        Ok(Self(folder))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
