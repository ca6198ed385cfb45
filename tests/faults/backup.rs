//! A backup takes the place of a database that has given out more ids since: the server begins another epoch, whenever
//! the backup was made and however the server ended. With the files that the server itself left it keeps its epoch.

use std::cell::Cell;
use std::path::PathBuf;

use rusqlite::{Connection, OpenFlags};
use serde_json::Value;

use super::faulty_disk::*;
use crate::support::*;

/// The bytes of the database and of its log.
type Files = (Vec<u8>, Option<Vec<u8>>);

fn log_of(server: &Server) -> PathBuf {
    server.db_path().with_extension("db-wal")
}

/// One file, made while the server runs.
fn vacuumed(server: &Server) -> Files {
    let copy = server.folder().join("copy.db");
    let database = Connection::open_with_flags(server.db_path(), OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    database.execute("VACUUM INTO ?1", [copy.to_str().unwrap()]).unwrap();
    let bytes = std::fs::read(&copy).unwrap();
    std::fs::remove_file(copy).unwrap();
    (bytes, None)
}

/// Both files as they are, as a snapshot of the file system has them while nobody publishes.
fn snapshot(server: &Server) -> Files {
    (std::fs::read(server.db_path()).unwrap(), std::fs::read(log_of(server)).ok())
}

/// Puts a copy in place, into the same file; the file beside it stays.
fn put_back(server: &Server, (database, log): &Files) {
    let _ = std::fs::remove_file(server.db_path().with_extension("db-shm"));
    std::fs::write(server.db_path(), database).unwrap();
    match log {
        Some(log) => std::fs::write(log_of(server), log).unwrap(),
        None => drop(std::fs::remove_file(log_of(server))),
    }
}

fn epoch(server: &Server) -> Value {
    server.get_json("/stats")["epoch"].take()
}

/// Publishes several commits, one of them large enough for a checkpoint, and makes copies between any two of them.
fn copies(server: &Server) -> Vec<Files> {
    // Some 600 bytes each, so that a commit of them is larger than the log gets before a checkpoint.
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
        let beside = server.db_path().with_extension("db.lock");
        let (left, word) = (snapshot(&server), std::fs::read(&beside).unwrap());
        for (n, copy) in copies.iter().enumerate() {
            for (files, is_older) in [(copy, true), (&left, false)] {
                put_back(&server, files);
                std::fs::write(&beside, &word).unwrap();
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
    let Some(disk) = Disk::with_a_switch(test) else { return };
    let mut server = disk.server(tempfile::tempdir().unwrap(), &[("CHECK_AT_START", "false")]);
    server.restart();
    let before = epoch(&server);
    // Only backups of one file: a snapshot has a log, which may be the one that the server left.
    let copies: Vec<_> = copies(&server).into_iter().filter(|(_, log)| log.is_none()).collect();
    disk.order(Order::at(1, CHANGE, Fault::KillAfter));
    server.publisher().send(&tick("s", 0));
    server.await_exit();
    let (mut copies, is_older) = (copies.iter().cycle(), Cell::new(false));
    let put_one_back = |server: &Server| {
        is_older.set(!is_older.get());
        if is_older.get() {
            put_back(server, copies.next().unwrap());
        }
    };
    let look = |server: &Server| assert_eq!(epoch(server) != before, is_older.get());
    disk.cut_in_many_ways(&mut server, 12, put_one_back, look);
}
