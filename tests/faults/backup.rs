//! Restoring a backup in place of a database that has given out more ids since: the server begins another epoch,
//! whenever the backup was made and however the server ended. With the files that the server itself left it keeps its
//! epoch.

use std::cell::Cell;
use std::path::PathBuf;

use rusqlite::{Connection, OpenFlags};
use serde_json::Value;

use super::faulty_disk::*;
use crate::support::*;

/// The bytes of the database and of its write-ahead log.
type Files = (Vec<u8>, Option<Vec<u8>>);

fn wal_of(server: &Server) -> PathBuf {
    server.db_path().with_extension("db-wal")
}

/// A backup in one file, made with `VACUUM INTO` while the server runs.
fn vacuumed(server: &Server) -> Files {
    let copy = server.folder().join("copy.db");
    let database = Connection::open_with_flags(server.db_path(), OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    database.execute("VACUUM INTO ?1", [copy.to_str().unwrap()]).unwrap();
    let bytes = std::fs::read(&copy).unwrap();
    std::fs::remove_file(copy).unwrap();
    (bytes, None)
}

/// Both files as a snapshot of the file system would have them while nobody publishes.
fn snapshot(server: &Server) -> Files {
    (std::fs::read(server.db_path()).unwrap(), std::fs::read(wal_of(server)).ok())
}

/// Overwrites the database with a copy. The sidecar stays as it is.
fn restore(server: &Server, (database, log): &Files) {
    let _ = std::fs::remove_file(server.db_path().with_extension("db-shm"));
    std::fs::write(server.db_path(), database).unwrap();
    match log {
        Some(log) => std::fs::write(wal_of(server), log).unwrap(),
        None => drop(std::fs::remove_file(wal_of(server))),
    }
}

fn epoch(server: &Server) -> Value {
    server.get_json("/stats")["epoch"].take()
}

/// Publishes several commits, one of them large enough for a checkpoint, and makes two copies before each commit and
/// after the last.
fn copies(server: &Server) -> Vec<Files> {
    // About 600 bytes each: 4,000 of them are larger than the write-ahead log gets before a checkpoint.
    let large = |n: usize| tick(&"s".repeat(200), n);
    let mut copies = vec![vacuumed(server), snapshot(server)];
    for n in 0..6 {
        match n {
            3 => drop(server.publish_lines(&(0..4_000).map(large).collect::<Vec<_>>())),
            _ => drop(server.publish_lines(&ticks("s", 1 + n % 3))),
        }
        copies.extend([vacuumed(server), snapshot(server)]);
    }
    server.publish(&tick("s", 0));
    copies
}

#[test]
fn restoring_a_backup_after_a_kill_begins_another_epoch() {
    for durability in ["full", "normal", "off"] {
        let mut server = Server::with(&[("DURABILITY", durability), ("CHECK_AT_START", "false")]);
        let before = epoch(&server);
        let copies = copies(&server);
        server.kill();
        let sidecar_path = server.db_path().with_extension("db.lock");
        let (left, sidecar) = (snapshot(&server), std::fs::read(&sidecar_path).unwrap());
        for (n, copy) in copies.iter().enumerate() {
            for (files, is_older) in [(copy, true), (&left, false)] {
                restore(&server, files);
                std::fs::write(&sidecar_path, &sidecar).unwrap();
                server.restart();
                assert_eq!(epoch(&server) != before, is_older, "{durability}, copy {n}");
                server.kill();
            }
        }
    }
}

#[test]
fn restoring_a_backup_after_a_power_cut_begins_another_epoch() {
    let test = "restoring_a_backup_after_a_power_cut_begins_another_epoch";
    let Some(disk) = Disk::with_power_cuts(test) else { return };
    let mut server = disk.server(tempfile::tempdir().unwrap(), &[("CHECK_AT_START", "false")]);
    server.restart();
    let before = epoch(&server);
    // Only backups of one file: a snapshot has a write-ahead log, which may be the very one that the server left.
    let copies: Vec<_> = copies(&server).into_iter().filter(|(_, log)| log.is_none()).collect();
    disk.inject(Injection::at(1, CHANGE, Fault::KillAfter));
    server.publisher().send(&tick("s", 0));
    server.await_exit();
    let (mut copies, is_older) = (copies.iter().cycle(), Cell::new(false));
    let restore_every_other_time = |server: &Server| {
        is_older.set(!is_older.get());
        if is_older.get() {
            restore(server, copies.next().unwrap());
        }
    };
    let look = |server: &Server| assert_eq!(epoch(server) != before, is_older.get());
    disk.cut_in_many_ways(&mut server, 12, restore_every_other_time, look);
}
