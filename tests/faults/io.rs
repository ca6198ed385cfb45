//! Writes, syncs, reads and opens that fail, and disks that are full: nothing is acknowledged that is not stored, a
//! failed sync ends the process, events are refused while the disk is full and stored again once it is not, and no
//! answer passes off some of the events as all of them.

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::faulty_disk::*;
use super::lives::WAYS;
use super::producers::Producer;
use super::record::{Loss, Record, message_of};
use crate::support::*;

/// The error of a write to a file system that the kernel has made read-only because of errors.
const EROFS: i32 = 30;

fn publish_all(server: &Server, record: &Record, name: &str, most: usize) -> Vec<String> {
    let producers = WAYS.map(|way| Producer::open(server, way, &format!("{name}{way:?}"), None));
    thread::scope(|scope| {
        let threads = producers.map(|producer| scope.spawn(move || producer.publish(record, most)));
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    })
}

/// Waits until the server has ended with 1 because of a fault, and has logged the cause.
fn await_failure(server: &mut Server, cause: &str) {
    server.await_log(cause);
    let status = server.await_exit();
    assert_eq!(status.code(), Some(1), "the server ended with {status}");
}

/// Injects a fault while events are published: the process must end, and the next one must have every acknowledged
/// event, also after a power cut.
fn must_end_the_process(test: &str, fault: Fault, operations: u32, file: &'static str, name: &str) {
    let Some(disk) = Disk::with_power_cuts(test) else { return };
    let mut dice = Random::seeded();
    let mut server = disk.server(tempfile::tempdir().unwrap(), &[]);
    server.allow_noise();
    let mut record = Record::new("full");
    server.restart();
    record.check(&server, Loss::Nothing);
    // Large events fill the write-ahead log up to a checkpoint. Checking them takes long, so there are fewer rounds.
    for round in 1..=rounds(if name == "large" { 3 } else { 8 }) {
        disk.inject(Injection { fault, operations, nth: 1 + round / 2 * 3, file, seed: dice.below(1 << 40) });
        for refused in publish_all(&server, &record, &format!("{name}{round}"), 100_000) {
            assert!(refused.contains("could not be stored, try again"), "{refused}");
        }
        await_failure(&mut server, "disk I/O error");
        assert_eq!(disk.fired(), 1, "the failed operation is not tried again");
        disk.clear();
        server.restart();
        record.check(&server, Loss::Nothing);

        // Pages whose sync failed are readable from the page cache but not on the disk. Later commits must survive a
        // power cut.
        disk.inject(Injection::at(1 + dice.below(60), CHANGE, Fault::PowerCut).seeded(dice.below(1 << 40)));
        publish_all(&server, &record, &format!("keyed{round}"), 100_000);
        server.await_exit();
        disk.boot(round + 1);
        server.restart();
        record.check(&server, Loss::Nothing);
    }
    eprintln!("{test}: {} events were acknowledged", record.total);
}

#[test]
fn a_failed_write_of_the_write_ahead_log_ends_the_process_before_anything_is_acknowledged() {
    let test = "a_failed_write_of_the_write_ahead_log_ends_the_process_before_anything_is_acknowledged";
    must_end_the_process(test, Fault::FailFromNowOn(EIO), WRITE, "-wal", "plain");
}

#[test]
fn a_write_ahead_log_that_becomes_read_only_ends_the_process() {
    must_end_the_process(
        "a_write_ahead_log_that_becomes_read_only_ends_the_process",
        Fault::FailFromNowOn(EROFS),
        WRITE,
        "-wal",
        "plain",
    );
}

#[test]
fn a_failed_sync_of_the_write_ahead_log_is_never_tried_again() {
    must_end_the_process(
        "a_failed_sync_of_the_write_ahead_log_is_never_tried_again",
        Fault::FailFromNowOn(EIO),
        SYNC,
        "-wal",
        "plain",
    );
}

#[test]
fn a_failed_sync_of_the_database_is_never_tried_again() {
    let test = "a_failed_sync_of_the_database_is_never_tried_again";
    must_end_the_process(test, Fault::FailFromNowOn(EIO), SYNC, "events.db", "large");
}

#[test]
fn a_checkpoint_that_fails_to_write_loses_nothing_and_is_tried_again() {
    let Some(disk) = Disk::new("a_checkpoint_that_fails_to_write_loses_nothing_and_is_tried_again") else { return };
    for (error, cause) in [(EIO, "disk I/O error"), (ENOSPC, "database or disk is full")] {
        let mut server = disk.server(tempfile::tempdir().unwrap(), &[]);
        server.allow_noise();
        let mut record = Record::new("full");
        server.restart();
        record.check(&server, Loss::Nothing);
        disk.inject(Injection::at(3, WRITE, Fault::FailFromNowOn(error)).of("events.db"));
        assert!(
            publish_all(&server, &record, "large1", 100).is_empty(),
            "the write-ahead log takes what the database does not"
        );
        server.await_log(cause);
        assert!(disk.fired() > 0);
        server.kill();
        disk.clear();
        server.restart();
        record.check(&server, Loss::Nothing);

        // The same without a restart: the write-ahead log is emptied by itself once the database can be written.
        disk.inject(Injection::at(3, WRITE, Fault::FailFromNowOn(error)).of("events.db"));
        assert!(publish_all(&server, &record, "large2", 100).is_empty());
        server.await_log(cause);
        disk.clear();
        assert!(publish_all(&server, &record, "large3", 100).is_empty());
        server.await_stats("an empty log", |stats| stats["router"]["wal_pages"] == 0);
        server.kill();
        server.restart();
        record.check(&server, Loss::Nothing);
    }
}

/// Publishes in every way to a full disk: each refusal must name it, and reads must work.
fn must_refuse_and_serve_reads(server: &Server, record: &Record, name: &str) {
    let refused = publish_all(server, record, name, 40);
    let is_told = |refused: &&String| refused.contains("The disk is full, try again later");
    assert_eq!(refused.iter().find(|refused| !is_told(refused)), None);
    let of_requests = refused.iter().filter(|refused| refused.starts_with("507 ")).count();
    assert!(of_requests > 0 && of_requests < refused.len(), "requests and sockets get refusals: {refused:?}");
    assert!(!server.stored_lines("limit=10").is_empty() || record.known() == 0, "reads go on");
    assert_eq!(server.get_json("/health")["status"], "ok");
}

#[test]
fn storing_resumes_by_itself_after_a_disk_was_full_at_any_write() {
    let Some(disk) = Disk::new("storing_resumes_by_itself_after_a_disk_was_full_at_any_write") else { return };
    let mut server = disk.server(tempfile::tempdir().unwrap(), &[]);
    server.allow_noise();
    let mut record = Record::new("full");
    server.restart();
    record.check(&server, Loss::Nothing);
    let mut publisher = server.publisher();
    let ready = |server: &Server| server.get("/readiness").status;
    for nth in 1..=rounds(40) {
        disk.inject(Injection::at(nth, WRITE, Fault::FailFromNowOn(ENOSPC)).seeded(nth));
        publish_all(&server, &record, &format!("plain{nth}"), 40);
        assert!(disk.fired() > 0);
        must_refuse_and_serve_reads(&server, &record, &format!("full{nth}"));
        disk.clear();
        // The connected publisher is served again, with nothing done but freeing the disk.
        let token = format!("keyed{nth}");
        let answer = publisher.ask(&message_of(&token));
        assert_eq!(answer["status"], "ok", "{answer}");
        record.note(&token, &answer["event_id"], true);
        assert_eq!(ready(&server), 200);
        if nth % 4 == 0 {
            server.kill();
            server.restart();
            record.check(&server, Loss::Nothing);
            publisher = server.publisher();
        }
    }
}

/// A small file system in memory (tmpfs), and a folder for a server whose data is on it.
struct SmallDisk {
    mount_point: TempDir,
}

impl SmallDisk {
    fn mounted(test: &str, size: &str) -> Option<(SmallDisk, TempDir)> {
        let mount_point = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={size},mode=700"), "faults"]).arg(mount_point.path());
        if !mount.output().is_ok_and(|mounted| mounted.status.success()) {
            skip(test, "the right to mount a tmpfs");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(mount_point.path(), folder.path().join("data")).unwrap();
        Some((SmallDisk { mount_point }, folder))
    }

    fn remount(&self, how: &str) {
        let remounted = Command::new("mount")
            .args(["-o", &format!("remount,{how}")])
            .arg(self.mount_point.path())
            .status()
            .unwrap();
        assert!(remounted.success());
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.mount_point.path()).status();
    }
}

#[test]
fn reading_and_deleting_work_while_a_small_disk_is_full() {
    let test = "reading_and_deleting_work_while_a_small_disk_is_full";
    // With a reserve (`FREE_SPACE_MIN_BYTES`), and without: then the write that fills the disk fails.
    for kept_free in ["1 MiB", "0"] {
        let Some((small, folder)) = SmallDisk::mounted(test, "8m") else { return };
        let mut server = Server::in_folder(folder, &[("FREE_SPACE_MIN_BYTES", kept_free)]);
        server.allow_noise();
        let mut record = Record::new("full");
        record.check(&server, Loss::Nothing);
        for round in 0..4 {
            let refused = publish_all(&server, &record, &format!("large{round}"), 400);
            assert!(refused.iter().any(|refused| refused.starts_with("507 ")), "{kept_free}: the disk is full");
            must_refuse_and_serve_reads(&server, &record, &format!("large{round}b"));
            if round % 2 == 0 && kept_free != "0" {
                // Space comes back because events are deleted, which itself needs the reserve …
                let deleted = server.call("DELETE", "/events", &[], b"");
                assert_eq!(deleted.status, 200, "{}", deleted.text());
                record.forget_all(&server);
            } else {
                // … or because the file system grows.
                small.remount(&format!("size={}m", 8 << (round + 1)));
            }
            let refused = publish_all(&server, &record, &format!("plain{round}"), 10);
            assert!(refused.is_empty(), "{kept_free}: there is space again: {refused:?}");
            server.kill();
            server.restart();
            record.check(&server, Loss::Nothing);
        }
    }
}

#[test]
fn deleting_by_filter_works_while_the_disk_is_full_however_large_the_events_are() {
    let test = "deleting_by_filter_works_while_the_disk_is_full_however_large_the_events_are";
    // With a reserve smaller than a commit of such a deletion, the deletion goes in smaller commits.
    for kept_free in ["1 MiB", "256 KiB"] {
        let Some((_small, folder)) = SmallDisk::mounted(test, "8m") else { return };
        let mut server = Server::in_folder(folder, &[("FREE_SPACE_MIN_BYTES", kept_free)]);
        server.allow_noise();
        let text = "x".repeat(60_000);
        let event = json!({"event_type": "timer_tick", "source": "large", "payload": {"text": text}}).to_string();
        let publish = || server.call("POST", "/events", &[JSON], event.as_bytes()).status;
        let stored = (0..).take_while(|_| publish() == 201).count();
        assert_eq!(publish(), 507, "{kept_free}");
        let deleted = server.call("DELETE", "/events?source=large", &[], b"");
        assert_eq!((deleted.status, deleted.text()), (200, json!({"deleted": stored}).to_string()), "{kept_free}");
        assert_eq!(publish(), 201, "{kept_free}");
    }
}

#[test]
fn a_start_on_a_read_only_disk_fails_and_changes_nothing() {
    let Some((small, folder)) = SmallDisk::mounted("a_start_on_a_read_only_disk_fails_and_changes_nothing", "8m")
    else {
        return;
    };
    let mut server = Server::in_folder(folder, &[]);
    let mut record = Record::new("full");
    record.check(&server, Loss::Nothing);
    publish_all(&server, &record, "plain", 100);
    server.kill();
    small.remount("ro");
    server.allow_noise();
    let (status, _) = server.try_restart().expect_err("nothing can be stored");
    assert!(!status.success() && status.code().is_some(), "{status}");
    small.remount("rw");
    server.restart();
    record.check(&server, Loss::Nothing);
}

#[test]
fn publishing_and_live_delivery_work_while_reads_get_no_file_descriptor() {
    let Some(disk) = Disk::new("publishing_and_live_delivery_work_while_reads_get_no_file_descriptor") else { return };
    let mut server = disk.server(tempfile::tempdir().unwrap(), &[]);
    server.allow_noise();
    server.restart();
    let mut publisher = server.publisher();
    let mut live = server.subscriber(&json!({}));
    server.await_stats("the check, which reads too", |stats| stats["integrity"]["state"] == "sound");
    // From here on the pages that idle read connections have cached are out of date, so that they read the disk again.
    publisher.ask(&tick("s", 0));
    live.collect(1);
    disk.inject(Injection::at(1, READ, Fault::FailFromNowOn(EIO)));
    let mut wire = Wire::connect(server.addr);
    // A read connection that failed is closed, and at most eight are idle: after eight failures each read opens the
    // file.
    for _ in 0..8 {
        wire.send(request("GET", "/events", &[], b""));
        assert!(FAILED_READS.contains(&wire.response().unwrap().status));
    }
    disk.inject(Injection::at(1, OPEN, Fault::FailFromNowOn(EMFILE)));
    for n in 1..=5 {
        for target in ["/events", "/stats", "/events/evt_000000000001", "/events?after_id=evt_000000000000"] {
            wire.send(request("GET", target, if n % 2 == 0 { &[ACCEPT_NDJSON] } else { &[] }, b""));
            let response = wire.response().unwrap();
            response.refusal(503);
            assert!(response.header("retry-after").is_some(), "{target}: {:?}", response.headers);
        }
        let answer = publisher.ask(&tick("s", n));
        assert_eq!(answer["status"], "ok", "producers are unharmed: {answer}");
        assert_eq!(live.json()["id"], answer["event_id"], "and so are subscribers");
    }
    disk.clear();
    assert_eq!(server.stored("").len(), 6);
}

/// Statuses of answers whose read failed: in the middle of a statement SQLite reports damage (500), elsewhere a failed
/// read (503).
const FAILED_READS: [u16; 2] = [500, 503];

/// Exports all events: returns the ids that came, and whether the answer ended as complete.
fn exported(server: &Server) -> (Vec<u64>, bool) {
    let mut wire = Wire::connect(server.addr);
    wire.send(request("GET", "/events", &[ACCEPT_NDJSON], b""));
    let head = wire.response_head().expect("an answer");
    if head.status != 200 {
        assert!(FAILED_READS.contains(&head.status), "{}", head.status);
        return (Vec::new(), false);
    }
    let mut body = Vec::new();
    let is_whole = loop {
        match wire.chunk() {
            None => break false,
            Some(chunk) if chunk.is_empty() => break true,
            Some(chunk) => body.extend(chunk),
        }
    };
    let text = String::from_utf8(body).unwrap();
    let whole_lines = text.rsplit_once('\n').map_or("", |(lines, _)| lines);
    let ids = whole_lines.lines().map(|line| sequence(&serde_json::from_str::<Value>(line).unwrap()["id"])).collect();
    (ids, is_whole)
}

/// Sets a flag when it is dropped, so that other threads end even if the test panics.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_failed_read_is_never_taken_for_the_end_of_the_events() {
    let Some(disk) = Disk::new("a_failed_read_is_never_taken_for_the_end_of_the_events") else { return };
    let mut server = disk.server(tempfile::tempdir().unwrap(), &[]);
    server.allow_noise();
    server.restart();
    const COUNT: usize = 6_000;
    let filler = "x".repeat(1_500);
    let event = |n: usize| {
        json!({"event_type": "timer_tick", "source": "it", "session_id": format!("s{}", n % 3), "payload": {"f": filler}})
            .to_string()
    };
    for chunk in (0..COUNT).map(event).collect::<Vec<_>>().chunks(2_000) {
        server.publish_lines(chunk);
    }
    let all: Vec<_> = (1..=COUNT as u64).collect();
    let (is_over, mut failed) = (AtomicBool::new(false), 0);
    thread::scope(|scope| {
        let (server, is_over) = (&server, &is_over);
        let _end = SetOnDrop(is_over);
        // Another client publishes and receives live events all the time.
        let (mut publisher, mut live) = (server.publisher(), server.subscriber(&json!({"session_id": "live"})));
        scope.spawn(move || {
            let mut n = 0;
            while !is_over.load(Ordering::Relaxed) {
                let answer = publisher.ask(&tick("live", n));
                assert_eq!(answer["status"], "ok", "{answer}");
                assert_eq!(live.json()["id"], answer["event_id"]);
                n += 1;
            }
        });
        for nth in (1..=rounds(24)).map(|round| round * round) {
            let inject_into = |file| disk.inject(Injection::at(nth, READ, Fault::Fail(EIO)).of(file));
            inject_into("events.db");
            let (ids, is_whole) = exported(server);
            assert!(all.starts_with(&ids) || ids.starts_with(&all), "the events that came are right");
            // An export may look up the first event and fail only there: then all events come.
            assert!(!is_whole || ids.len() >= COUNT, "{} events look like all", ids.len());
            failed += disk.fired();

            inject_into("events.db");
            let mut subscriber = Socket::open(server.addr, "/ws/subscribe");
            subscriber.send(&json!({"after": id_of(0), "session_id": "s1"}).to_string());
            let (mut heard, mut expected) = (0, (2..).step_by(3));
            while heard < COUNT / 3 {
                let Received::Text(text) = subscriber.receive() else { break };
                let said: Value = serde_json::from_str(&text).unwrap();
                if said.get("id").is_none() {
                    continue;
                }
                assert_eq!(Some(sequence(&said["id"])), expected.next(), "no gap before the end");
                heard += 1;
            }
            assert!(heard == COUNT / 3 || disk.fired() > 0, "only a failed read ends a stream");
            failed += disk.fired();

            inject_into("events.db");
            for target in ["/events?limit=1000&session_id=s2", "/stats", "/events?after_id=evt_000000000800&limit=900"]
            {
                let response = server.get(target);
                if response.status != 200 {
                    assert!(FAILED_READS.contains(&response.status), "{}", response.text());
                } else if target.contains("limit=9") {
                    let ids = sequences(response.json().as_array().unwrap());
                    assert_eq!(ids, (0x801..0x801 + 900).collect::<Vec<_>>());
                } else if target.contains("limit=1000") {
                    assert_eq!(response.json().as_array().unwrap().len(), 1_000);
                }
            }
            failed += disk.fired();
        }
        disk.clear();
        let (ids, is_whole) = exported(server);
        assert!(is_whole && ids.starts_with(&all), "afterwards all of them come");
    });
    eprintln!("{failed} reads failed");
    assert!(failed > 10, "reads reach the disk");
}

/// A network thread that cannot wait for its sockets panics. The process must end, or its clients would wait for ever.
#[test]
fn a_network_thread_that_panics_ends_the_process() {
    let Some(disk) = Disk::new("a_network_thread_that_panics_ends_the_process") else { return };
    let mut server = disk.server(tempfile::tempdir().unwrap(), &[("NETWORK_THREADS", "2")]);
    server.allow_noise();
    server.restart();
    let mut others = [server.publisher(), server.publisher()];
    others.iter_mut().for_each(|other| drop(other.ask(&tick("s", 0))));
    disk.inject(Injection::at(1, WAIT, Fault::Fail(EBADF)).of("network"));
    // A request wakes the network threads.
    let mut wire = Wire::connect(server.addr);
    wire.send(request("GET", "/health", &[], b""));
    assert_eq!(server.await_exit().code(), Some(1));
    server.restart();
    assert_eq!(sequences(&server.stored("")), [1, 2], "acknowledged events are there");
}
