//! The disk of `disk.c` between a server and its files: it counts what is done to them, fails it, kills the process
//! in the middle of it, or cuts the power.

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
/// A thread waits for its sockets. This is no disk, but the same orders make it fail, with the thread's name in the
/// place of a file's.
pub const WAIT: u32 = 128;
/// What changes something on a disk.
pub const CHANGE: u32 = WRITE | SYNC | TRUNCATE | UNLINK | SYNC_FOLDER;

pub const EIO: i32 = 5;
pub const EBADF: i32 = 9;
pub const EMFILE: i32 = 24;
pub const ENOSPC: i32 = 28;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    KillBefore,
    KillAfter,
    /// The disk is left as one that lost its power may be, by the seed, and the process is killed.
    PowerCut,
    /// The operation fails with this error.
    Fail(i32),
    /// It and all that follow do.
    FailFromNowOn(i32),
}

/// What is to happen at the n-th of some operations on some files.
#[derive(Clone, Copy, Debug)]
pub struct Order {
    pub fault: Fault,
    pub operations: u32,
    pub nth: u64,
    /// The end of the file's path; nothing for any.
    pub file: &'static str,
    pub seed: u64,
}

impl Order {
    pub fn at(nth: u64, operations: u32, fault: Fault) -> Order {
        Order { fault, operations, nth, file: "", seed: nth }
    }

    pub fn of(self, file: &'static str) -> Order {
        Order { file, ..self }
    }

    pub fn seeded(self, seed: u64) -> Order {
        Order { seed, ..self }
    }
}

pub struct Disk {
    /// The orders, what is carried from process to process, and which start of the system it is.
    beside: TempDir,
    orders: File,
    remembers: bool,
}

/// The shim, compiled once a process.
static SHIM: LazyLock<PathBuf> = LazyLock::new(|| {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let (draft, shim) = (folder.join(format!("disk-{}.so", std::process::id())), folder.join("disk.so"));
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/faults/disk.c");
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-o"]).arg(&draft).arg(source);
    let made = cc.output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    // Whoever has the former one loaded keeps it.
    std::fs::rename(draft, &shim).unwrap();
    shim
});

impl Disk {
    /// One for faults other than power cuts. Nothing, and a loud line, where it cannot be made.
    pub fn new(test: &str) -> Option<Disk> {
        Disk::made(test, false)
    }

    /// One that remembers what is not synced.
    pub fn with_a_switch(test: &str) -> Option<Disk> {
        Disk::made(test, true)
    }

    fn made(test: &str, remembers: bool) -> Option<Disk> {
        if program("cc").is_none() {
            skip(test, "cc (apt-get install gcc libc6-dev)");
            return None;
        }
        let beside = tempfile::tempdir().unwrap();
        let path = beside.path().join("orders");
        std::fs::write(&path, [0; 160]).unwrap();
        let orders = File::options().read(true).write(true).open(path).unwrap();
        let disk = Disk { beside, orders, remembers };
        disk.boot(1);
        Some(disk)
    }

    /// A server on this disk that is yet to be started.
    pub fn server(&self, folder: TempDir, settings: &[(&str, &str)]) -> Server {
        let beside = |name: &str| self.beside.path().join(name).display().to_string();
        let (root, shim) = (folder.path().display().to_string(), SHIM.display().to_string());
        let (orders, boot, carried) = (beside("orders"), beside("boot_id"), beside("carried"));
        let mut all = vec![("LD_PRELOAD", &*shim), ("DISK_ROOT", &root), ("DISK_ORDERS", &orders)];
        if self.remembers {
            all.extend([("DISK_CARRIED", &*carried), ("DISK_BOOT_ID", &boot)]);
        }
        all.extend_from_slice(settings);
        Server::at_rest(folder, &all)
    }

    /// Says which start of the system it is: the kernel's own does not change with a power cut that never was.
    pub fn boot(&self, nth: u64) {
        std::fs::write(self.beside.path().join("boot_id"), format!("{nth:08x}-0000-4000-8000-000000000000\n")).unwrap();
    }

    pub fn order(&self, order: Order) {
        self.calm();
        let (kind, error, lasting) = match order.fault {
            Fault::KillBefore => (1_u32, 0, 0_u32),
            Fault::KillAfter => (2, 0, 0),
            Fault::PowerCut => (3, 0, 0),
            Fault::Fail(error) => (4, error, 0),
            Fault::FailFromNowOn(error) => (4, error, 1),
        };
        let mut suffix = [0; 64];
        suffix[..order.file.len()].copy_from_slice(order.file.as_bytes());
        self.put(96, &suffix);
        self.put(4, &order.operations.to_ne_bytes());
        self.put(8, &lasting.to_ne_bytes());
        self.put(12, &error.to_ne_bytes());
        self.put(16, &order.nth.to_ne_bytes());
        self.put(24, &order.seed.to_ne_bytes());
        self.put(36, &0_u32.to_ne_bytes());
        self.put(0, &kind.to_ne_bytes());
    }

    /// Takes back what was ordered.
    pub fn calm(&self) {
        self.put(0, &0_u32.to_ne_bytes());
    }

    /// How long a sync takes from now on.
    pub fn syncs_take(&self, micros: u32) {
        self.put(32, &micros.to_ne_bytes());
    }

    /// The file in which one process leaves to the next what is not synced.
    fn carried(&self) -> PathBuf {
        self.beside.path().join("carried")
    }

    /// Simulates `ways` different power cuts on the files that a killed server has left, each from the same state.
    /// After each cut `meddle` may change the files, the server starts, and `look` checks it.
    pub fn cut_in_many_ways(
        &self,
        server: &mut Server,
        ways: u64,
        mut meddle: impl FnMut(&Server),
        mut look: impl FnMut(&Server),
    ) {
        let path = server.db_path();
        let beside = |end: &str| PathBuf::from(format!("{}{end}", path.display()));
        let files = [path.clone(), beside("-wal"), beside(".lock"), self.carried()];
        // In place, so that it stays the same file.
        let before = files.map(|file| (std::fs::read(&file).unwrap(), file));
        for way in 0..ways {
            before.iter().for_each(|(bytes, file)| std::fs::write(file, bytes).unwrap());
            self.boot(2 * way + 1);
            self.order(Order::at(1, CHANGE, Fault::PowerCut).seeded(way));
            server.try_restart().expect_err("the power is cut at the first change of a start");
            self.boot(2 * way + 2);
            meddle(server);
            server.restart();
            look(server);
            server.kill();
        }
    }

    /// How often what was ordered last has happened.
    pub fn fired(&self) -> u32 {
        u32::from_ne_bytes(self.get(36))
    }

    fn put(&self, offset: u64, bytes: &[u8]) {
        self.orders.write_all_at(bytes, offset).unwrap();
    }

    fn get<const N: usize>(&self, offset: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.orders.read_exact_at(&mut bytes, offset).unwrap();
        bytes
    }
}

/// A number of rounds, `FAULT_TIMES` over. Without it a quarter of them, in which `cargo test` shows each kind of fault.
pub fn rounds(usual: u64) -> u64 {
    times().map_or(usual.div_ceil(4), |times| usual * times)
}

/// Steps from one faulty change of a file to the next, where each change has its turn: 1 with `FAULT_TIMES`, else 3.
pub fn stride() -> usize {
    if times().is_some() { 1 } else { 3 }
}

fn times() -> Option<u64> {
    let times = std::env::var("FAULT_TIMES").ok()?;
    Some(times.parse().expect("FAULT_TIMES is a number"))
}
