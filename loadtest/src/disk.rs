//! The disk that a server stores to, and how often its cache was flushed: each sync of a file ends in a flush.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{major, minor};

/// The flushes are the 16th number in a disk's `stat`; Linux 5.5 and later have it.
const FLUSHES: usize = 15;

/// A disk whose flushes can be counted. The count is of the whole disk, for all programs.
#[derive(Debug, Clone)]
pub struct Disk {
    stat: PathBuf,
}

impl Disk {
    /// The disk of this file or folder; `None` where its flushes are not known: a volume without a disk of its
    /// own, a disk made of others, or one that the kernel does not flush because its cache survives.
    pub fn of(path: &Path) -> Option<Self> {
        let device = fs::metadata(path).ok()?.dev();
        let device = fs::canonicalize(format!("/sys/dev/block/{}:{}", major(device), minor(device))).ok()?;
        // Flushes are counted by the disk, not by its partitions.
        let disk = if device.join("partition").exists() { device.parent()? } else { &device };
        let made_of_others = fs::read_dir(disk.join("slaves")).is_ok_and(|mut slaves| slaves.next().is_some());
        let flushed =
            fs::read_to_string(disk.join("queue/write_cache")).is_ok_and(|cache| cache.trim() == "write back");
        let disk = Self { stat: disk.join("stat") };
        (flushed && !made_of_others && disk.flushes().is_some()).then_some(disk)
    }

    /// The disk of the database that a process has open.
    pub fn of_process(pid: u32) -> Option<Self> {
        let files = fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
        let mut files = files.filter_map(|file| fs::read_link(file.ok()?.path()).ok());
        Self::of(&files.find(|file| file.extension().is_some_and(|extension| extension == "db"))?)
    }

    /// Flushes since the machine was started.
    pub fn flushes(&self) -> Option<u64> {
        fs::read_to_string(&self.stat).ok()?.split_whitespace().nth(FLUSHES)?.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_without_a_disk_has_no_flushes() {
        assert!(Disk::of(Path::new("/proc")).is_none());
        assert!(Disk::of(Path::new("/no/such/file")).is_none());
    }

    #[test]
    fn a_sync_is_counted() {
        let path = std::env::current_exe().expect("this test").with_extension("sync");
        // Where flushes cannot be counted, nothing is claimed.
        let Some(disk) = Disk::of(path.parent().expect("its folder")) else { return };
        let before = disk.flushes().expect("they were known");
        let file = fs::File::create(&path).expect("a file");
        file.set_len(1).and_then(|()| file.sync_all()).expect("a disk");
        fs::remove_file(&path).expect("a file");
        assert!(disk.flushes().expect("they were known") > before);
    }
}
