//! Restoring a backup in place of a database that has given out more ids since: the server begins another epoch,
//! whenever the backup was made and however the server ended. With the files that the server itself left it keeps its
//! epoch.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

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

/// Runs `event-pipeline backup` or `restore`.
fn run(arguments: &[&Path], environment: &[(&str, String)]) -> Finished {
    let mut command = command(Path::new("/"));
    let environment = environment.iter().map(|(name, value)| (name, value));
    Run::start(command.args(arguments).envs(environment), "").finish()
}

fn back_up(database: &Path, to: &Path, environment: &[(&str, String)]) -> Finished {
    run(&[Path::new("backup"), Path::new("--to"), to, database], environment)
}

fn restored(from: &Path, into: &Path) -> Finished {
    run(&[Path::new("restore"), Path::new("--from"), from, Path::new("--into"), into], &[])
}

fn succeeded(finished: &Finished) {
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
}

#[test]
fn a_backup_under_load_has_all_that_was_acknowledged_before_and_a_server_on_it_begins_another_epoch() {
    let server = Server::with(&[("CHECK_AT_START", "false")]);
    let before = epoch(&server);
    let (acknowledged, is_over) = (AtomicUsize::new(0), AtomicBool::new(false));
    let backups = tempfile::tempdir().unwrap();
    let copies = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                let stored = server.publish_lines(&ticks("s", 100)).len();
                acknowledged.fetch_add(stored, Ordering::Relaxed);
            }
        });
        let copies: Vec<_> = (0..3)
            .map(|nth| {
                let enough = 1_000 * (nth + 1);
                await_true("some events", || acknowledged.load(Ordering::Relaxed) >= enough);
                let (copy, at_least) = (backups.path().join(format!("{nth}.db")), acknowledged.load(Ordering::Relaxed));
                succeeded(&back_up(&server.db_path(), &copy, &[]));
                (copy, at_least)
            })
            .collect();
        is_over.store(true, Ordering::Relaxed);
        copies
    });
    let original = server.stored_lines("");
    for (copy, at_least) in copies {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("data")).unwrap();
        let into = database(folder.path());
        succeeded(&restored(&copy, &into));
        let again = restored(&copy, &into);
        assert_eq!(again.code, Some(1), "a restore overwrites nothing");
        assert!(again.stderr.contains("exists"), "{}", again.stderr);
        let restored = Server::in_folder(folder, &[("CHECK_AT_START", "false")]);
        let stored = restored.stored_lines("");
        assert!(stored.len() >= at_least && original.starts_with(&stored), "{} of {at_least}", stored.len());
        assert_ne!(epoch(&restored), before);
        restored.publish(&tick("s", 0));
    }
}

#[test]
fn a_backup_that_is_killed_or_fills_the_disk_leaves_nothing_under_its_name_and_the_next_one_works() {
    let test = "a_backup_that_is_killed_or_fills_the_disk_leaves_nothing_under_its_name_and_the_next_one_works";
    let Some(disk) = Disk::new(test) else { return };
    let server = Server::start();
    server.publish_lines(&ticks("s", 300));
    let backups = tempfile::tempdir().unwrap();
    let copy = backups.path().join("copy.db");
    let environment = disk.environment(backups.path());
    for fault in [Fault::KillBefore, Fault::KillAfter, Fault::FailFromNowOn(ENOSPC), Fault::Fail(EIO)] {
        let mut nth = 1;
        loop {
            let is_killed = matches!(fault, Fault::KillBefore | Fault::KillAfter);
            // A full disk lets files be removed.
            let operations = if is_killed { CHANGE } else { CHANGE & !UNLINK };
            disk.inject(Injection::at(nth, operations, fault));
            let finished = back_up(&server.db_path(), &copy, &environment);
            disk.clear();
            if disk.fired() == 0 {
                succeeded(&finished);
                std::fs::remove_file(&copy).unwrap();
                break;
            }
            assert_ne!(finished.code, Some(0), "{fault:?} at {nth}");
            if copy.exists() {
                // Killed when it had its name, which was not synced yet.
                assert!(is_killed, "{fault:?} at {nth}");
                let checked = run(&[Path::new("check"), &copy], &[]);
                succeeded(&checked);
                assert!(checked.stdout.contains("300 events"), "{fault:?} at {nth}: {}", checked.stdout);
                std::fs::remove_file(&copy).unwrap();
            }
            let left = std::fs::read_dir(backups.path()).unwrap().count();
            assert!(is_killed || left == 0, "{fault:?} at {nth} leaves {left} files");
            succeeded(&back_up(&server.db_path(), &copy, &[]));
            assert_eq!(std::fs::read_dir(backups.path()).unwrap().count(), 1, "{fault:?} at {nth}");
            std::fs::remove_file(&copy).unwrap();
            nth += 1 + nth / 3;
        }
        assert!(nth > 10, "{fault:?}");
    }
}

#[test]
fn a_backup_of_a_damaged_or_foreign_file_is_refused() {
    let mut server = Server::start();
    server.publish_lines(&ticks("s", 300));
    server.stop();
    let copy = server.folder().join("copy.db");
    let file = Connection::open(server.db_path()).unwrap();
    file.execute("UPDATE events SET payload = '{\"n\":0}' WHERE seq = 7", []).unwrap();
    drop(file);
    let refused = back_up(&server.db_path(), &copy, &[]);
    assert_eq!(refused.code, Some(1));
    assert!(refused.stderr.contains("evt_000000000007 is damaged"), "{}", refused.stderr);
    let foreign = server.folder().join("foreign.db");
    Connection::open(&foreign).unwrap().execute_batch("CREATE TABLE events (x)").unwrap();
    for not_ours in [&foreign, &server.folder().join("none.db")] {
        assert_eq!(back_up(not_ours, &copy, &[]).code, Some(1));
    }
    assert!(
        !copy.exists()
            && !server.folder().join("copy.db.partial").exists()
            && !server.folder().join("none.db").exists()
    );
}
