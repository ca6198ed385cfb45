//! A disk that injects faults, made of the shim in `disk.c`: it counts the operations of a server on its files, and
//! fails one, kills the process at one, or cuts the power at one.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use tempfile::TempDir;

use crate::support::*;

pub const WRITE: u32 = 1;
pub const SYNC: u32 = 2;
pub const TRUNCATE: u32 = 4;
pub const READ: u32 = 8;
pub const OPEN: u32 = 16;
pub const UNLINK: u32 = 32;
pub const SYNC_FOLDER: u32 = 64;
/// A thread waits for its sockets (`epoll_wait`). This is no disk operation, but the shim fails it in the same way; the
/// name of the thread stands in the place of the file's.
pub const WAIT: u32 = 128;
/// Every operation that changes something on a disk.
pub const CHANGE: u32 = WRITE | SYNC | TRUNCATE | UNLINK | SYNC_FOLDER;

pub const EIO: i32 = 5;
pub const EBADF: i32 = 9;
pub const EMFILE: i32 = 24;
pub const ENOSPC: i32 = 28;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    KillBefore,
    KillAfter,
    /// The process is killed and the files are left as a disk may hold them after a power cut; the seed chooses how.
    PowerCut,
    /// The operation fails with this error.
    Fail(i32),
    /// The operation and all later ones fail with this error.
    FailFromNowOn(i32),
}

/// A fault at the n-th of some operations on some files.
#[derive(Clone, Copy, Debug)]
pub struct Injection {
    pub fault: Fault,
    pub operations: u32,
    pub nth: u64,
    /// The end of the file's path; empty for any file.
    pub file: &'static str,
    pub seed: u64,
}

impl Injection {
    pub fn at(nth: u64, operations: u32, fault: Fault) -> Injection {
        Injection { fault, operations, nth, file: "", seed: nth }
    }

    pub fn of(self, file: &'static str) -> Injection {
        Injection { file, ..self }
    }

    pub fn seeded(self, seed: u64) -> Injection {
        Injection { seed, ..self }
    }
}

pub struct Disk {
    /// A folder for the injection, the unsynced changes that one process leaves to the next, and the boot id.
    state: TempDir,
    /// The struct that the shim maps into memory.
    injection: File,
    /// Whether it keeps unsynced changes, so that it can take them back at a power cut.
    remembers: bool,
}

/// The shim, compiled once in each test process.
static SHIM: LazyLock<PathBuf> = LazyLock::new(|| {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let (draft, shim) = (folder.join(format!("disk-{}.so", std::process::id())), folder.join("disk.so"));
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/faults/disk.c");
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-o"]).arg(&draft).arg(source);
    let compiled = cc.output().unwrap();
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    // Renamed into place, so that processes that have loaded the former shim keep it.
    std::fs::rename(draft, &shim).unwrap();
    shim
});

impl Disk {
    /// A disk for faults other than power cuts. `None`, and a line that says `SKIPPED`, where there is no C compiler.
    pub fn new(test: &str) -> Option<Disk> {
        Disk::compiled(test, false)
    }

    /// A disk for power cuts: it remembers what is not synced.
    pub fn with_power_cuts(test: &str) -> Option<Disk> {
        Disk::compiled(test, true)
    }

    fn compiled(test: &str, remembers: bool) -> Option<Disk> {
        if program("cc").is_none() {
            skip(test, "cc (apt-get install gcc libc6-dev)");
            return None;
        }
        let state = tempfile::tempdir().unwrap();
        let path = state.path().join("injection");
        std::fs::write(&path, [0; 160]).unwrap();
        let injection = File::options().read(true).write(true).open(path).unwrap();
        let disk = Disk { state, injection, remembers };
        disk.boot(1);
        Some(disk)
    }

    /// A server on this disk, not yet started.
    pub fn server(&self, folder: TempDir, settings: &[(&str, &str)]) -> Server {
        let mut all = self.environment(folder.path());
        all.extend(settings.iter().map(|(name, value)| (*name, value.to_string())));
        let all: Vec<_> = all.iter().map(|(name, value)| (*name, &**value)).collect();
        Server::not_started(folder, &all)
    }

    /// What puts a process on this disk, with the files of a folder.
    pub fn environment(&self, folder: &Path) -> Vec<(&'static str, String)> {
        let in_state = |name: &str| self.state.path().join(name).display().to_string();
        let mut all = vec![
            ("LD_PRELOAD", SHIM.display().to_string()),
            ("DISK_ROOT", folder.display().to_string()),
            ("DISK_INJECTION", in_state("injection")),
        ];
        if self.remembers {
            all.extend([("DISK_CARRIED", in_state("carried")), ("DISK_BOOT_ID", in_state("boot_id"))]);
        }
        all
    }

    /// Sets the boot id that the server reads: the kernel's own does not change with a simulated power cut.
    pub fn boot(&self, nth: u64) {
        std::fs::write(self.state.path().join("boot_id"), format!("{nth:08x}-0000-4000-8000-000000000000\n")).unwrap();
    }

    pub fn inject(&self, injection: Injection) {
        self.clear();
        let (kind, error, lasting) = match injection.fault {
            Fault::KillBefore => (1_u32, 0, 0_u32),
            Fault::KillAfter => (2, 0, 0),
            Fault::PowerCut => (3, 0, 0),
            Fault::Fail(error) => (4, error, 0),
            Fault::FailFromNowOn(error) => (4, error, 1),
        };
        let mut suffix = [0; 64];
        suffix[..injection.file.len()].copy_from_slice(injection.file.as_bytes());
        self.write_at(96, &suffix);
        self.write_at(4, &injection.operations.to_ne_bytes());
        self.write_at(8, &lasting.to_ne_bytes());
        self.write_at(12, &error.to_ne_bytes());
        self.write_at(16, &injection.nth.to_ne_bytes());
        self.write_at(24, &injection.seed.to_ne_bytes());
        self.write_at(36, &0_u32.to_ne_bytes());
        self.write_at(0, &kind.to_ne_bytes());
    }

    /// Withdraws the injection.
    pub fn clear(&self) {
        self.write_at(0, &0_u32.to_ne_bytes());
    }

    /// Starts a server into an armed fault, and disarms it. Returns whether the server still runs: the fault may have ended
    /// the start, or what the server does right after it, such as removing the rows of deleted events.
    pub fn survives_start(&self, server: &mut Server) -> bool {
        let has_started = server.try_restart().is_ok();
        self.clear();
        let survives = has_started && self.fired() == 0;
        if has_started && !survives {
            server.await_exit();
        }
        survives
    }

    /// Makes each sync take this long from now on.
    pub fn syncs_take(&self, micros: u32) {
        self.write_at(32, &micros.to_ne_bytes());
    }

    /// The file in which one process leaves its unsynced changes to the next.
    fn carried(&self) -> PathBuf {
        self.state.path().join("carried")
    }

    /// Simulates `ways` different power cuts on the files that a killed server has left, each from the same state.
    /// After each cut `change` may change the files, the server starts, and `check` checks it.
    pub fn cut_in_many_ways(
        &self,
        server: &mut Server,
        ways: u64,
        mut change: impl FnMut(&Server),
        mut check: impl FnMut(&Server),
    ) {
        let path = server.db_path();
        let path_with = |end: &str| PathBuf::from(format!("{}{end}", path.display()));
        let files = [path.clone(), path_with("-wal"), path_with(".lock"), self.carried()];
        // Overwritten in place, so that each stays the same file (the same inode).
        let before = files.map(|file| (std::fs::read(&file).unwrap(), file));
        for way in 0..ways {
            before.iter().for_each(|(bytes, file)| std::fs::write(file, bytes).unwrap());
            self.boot(2 * way + 1);
            self.inject(Injection::at(1, CHANGE, Fault::PowerCut).seeded(way));
            server.try_restart().expect_err("the power is cut at the first change of a start");
            self.boot(2 * way + 2);
            change(server);
            server.restart();
            check(server);
            server.kill();
        }
    }

    /// How often the last injection has taken effect.
    pub fn fired(&self) -> u32 {
        u32::from_ne_bytes(self.read_at(36))
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) {
        self.injection.write_all_at(bytes, offset).unwrap();
    }

    fn read_at<const N: usize>(&self, offset: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.injection.read_exact_at(&mut bytes, offset).unwrap();
        bytes
    }
}

/// `usual` rounds times `FAULT_TIMES`; without that setting a quarter of `usual`, so that `cargo test` takes 10
/// minutes.
pub fn rounds(usual: u64) -> u64 {
    times().map_or(usual.div_ceil(4), |times| usual * times)
}

/// Where a test ends the server at each change of a file in turn: 1 for every change with `FAULT_TIMES`, else every
/// third.
pub fn stride() -> usize {
    if times().is_some() { 1 } else { 3 }
}

fn times() -> Option<u64> {
    let times = std::env::var("FAULT_TIMES").ok()?;
    Some(times.parse().expect("FAULT_TIMES is a number"))
}
