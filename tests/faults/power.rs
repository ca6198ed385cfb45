//! Power cuts at any write or sync, on a disk that has delayed, reordered and torn what was not synced: the server
//! starts, and events are there as far as the level of their acknowledgement promises.

use serde_json::json;

use super::consumer::Consumer;
use super::faulty_disk::*;
use super::lives::*;
use super::record::{Loss, Record};
use crate::support::*;

fn cut(test: &'static str, durability: &str, count: u64, acks: &[Option<&'static str>], loss: Loss) {
    let mut lives = None;
    for round in 0..rounds(count) {
        if round % LIVES_OF_A_FILE == 0 {
            lives = Lives::begin(test, CUTS, durability, tempfile::tempdir().unwrap());
        }
        let Some(lives) = &mut lives else { return };
        lives.live(acks, loss);
    }
}

#[test]
fn a_power_cut_at_full_durability_loses_nothing_acknowledged_as_synced() {
    let acks = [None, None, Some("synced")];
    cut("a_power_cut_at_full_durability_loses_nothing_acknowledged_as_synced", "full", 50, &acks, Loss::Nothing);
}

#[test]
fn a_power_cut_at_full_durability_loses_at_most_the_last_commits_of_weaker_levels() {
    let test = "a_power_cut_at_full_durability_loses_at_most_the_last_commits_of_weaker_levels";
    cut(test, "full", 20, &[Some("stored"), Some("queued")], Loss::Unsynced);
    cut(test, "full", 20, &[None, Some("stored"), Some("queued"), Some("synced")], Loss::Unsynced);
}

#[test]
fn a_power_cut_at_normal_durability_loses_at_most_the_last_unsynced_commits() {
    let test = "a_power_cut_at_normal_durability_loses_at_most_the_last_unsynced_commits";
    cut(test, "normal", 20, &[None], Loss::Unsynced);
    cut(test, "normal", 30, &[None, Some("synced"), Some("stored"), Some("queued")], Loss::Unsynced);
}

/// Confirmations alone, without events, are commits of their own.
#[test]
fn a_power_cut_among_confirmations_leaves_a_file_that_starts() {
    let test = "a_power_cut_among_confirmations_leaves_a_file_that_starts";
    let Some(disk) = Disk::with_power_cuts(test) else { return };
    let mut server = disk.server(tempfile::tempdir().unwrap(), &[("DURABILITY", "full")]);
    server.restart();
    server.publish_lines(&ticks("s", 20));
    let epoch = server.get_json("/stats")["epoch"].take();
    let consumer = Consumer::open(&server, "board", &Record::new("full"));
    // A confirmation writes the header of a page and the page, and syncs both: three changes. The 22nd is in the
    // eighth.
    disk.inject(Injection::at(22, CHANGE, Fault::KillAfter).of("events.db-wal"));
    consumer.confirm_one_by_one(&server);
    server.await_exit();
    disk.cut_in_many_ways(
        &mut server,
        rounds(24),
        |_| (),
        |server| {
            assert_eq!(sequences(&server.stored("")), (1..=20).collect::<Vec<_>>());
            assert_eq!(server.get_json("/stats")["epoch"], epoch, "nothing was lost");
        },
    );
}

/// Sealing alone, without events, commits the posting lists of a full segment in slices.
#[test]
fn a_power_cut_while_a_segment_is_sealed_leaves_a_file_that_starts() {
    const SESSIONS: usize = 20_000;
    let test = "a_power_cut_while_a_segment_is_sealed_leaves_a_file_that_starts";
    let Some(disk) = Disk::with_power_cuts(test) else { return };
    let full = nearly_full_segment(SESSIONS);
    let mut server = disk.server(copy_of(&full), &[("DURABILITY", "full"), ("CHECK_AT_START", "false")]);
    server.restart();
    let epoch = server.get_json("/stats")["epoch"].take();
    server.publish_lines(&ticks("last", 100));
    // The commit that filled the segment was synced; the next 300 changes are the sealing.
    disk.inject(Injection::at(300, CHANGE, Fault::KillAfter).of("events.db-wal"));
    server.await_exit();
    disk.cut_in_many_ways(
        &mut server,
        rounds(12),
        |_| (),
        |server| {
            let stats = server.get_json("/stats");
            assert_eq!((&stats["total_events"], &stats["epoch"]), (&json!(65_600), &epoch));
            for n in [0, 1, SESSIONS - 1] {
                let session = session_of(SESSIONS, n);
                let expected: Vec<_> = (n + 1..=65_500).step_by(SESSIONS).map(|seq| seq as u64).collect();
                assert_eq!(sequences(&server.stored(&format!("session_id={session}"))), expected, "{session}");
            }
        },
    );
}

/// The log is emptied behind a deletion, and that is no safer from a power cut than any other write: of the log's end and
/// its middle some is left.
#[test]
fn a_power_cut_while_the_log_is_emptied_leaves_a_file_that_starts() {
    let test = "a_power_cut_while_the_log_is_emptied_leaves_a_file_that_starts";
    for durability in ["full", "normal"] {
        let Some(disk) = Disk::with_power_cuts(test) else { return };
        let mut server = disk.server(tempfile::tempdir().unwrap(), &[("DURABILITY", durability)]);
        server.restart();
        for _ in 0..5 {
            server.publish_lines(&[ticks("stays", 20), ticks("goes", 20)].concat());
        }
        disk.inject(Injection::at(1, TRUNCATE, Fault::KillAfter).of("events.db-wal"));
        Wire::connect(server.addr).send(request("DELETE", "/events?session_id=goes", &[], b""));
        server.await_exit();
        disk.cut_in_many_ways(
            &mut server,
            rounds(200),
            |_| (),
            |server| {
                assert_eq!(server.stored("session_id=stays").len(), 100);
                assert_eq!(server.stored("").len(), 100);
            },
        );
    }
}

/// A repeat writes nothing by itself, and SQLite syncs no commit that writes nothing.
#[test]
fn a_power_cut_after_a_repeat_that_was_acknowledged_as_synced_keeps_its_event() {
    let test = "a_power_cut_after_a_repeat_that_was_acknowledged_as_synced_keeps_its_event";
    let Some(disk) = Disk::with_power_cuts(test) else { return };
    let mut server = disk.server(tempfile::tempdir().unwrap(), &[("DURABILITY", "normal")]);
    server.restart();
    server.publish_lines(&ticks("s", 3));
    let publish = |ack: &str| {
        let target = format!("/events?ack={ack}");
        server.call("POST", &target, &[JSON, ("Idempotency-Key", "one")], tick("s", 3).as_bytes())
    };
    assert_eq!(publish("stored").header("ack-level"), Some("stored"));
    // It notes the last number, as a repeat may do.
    let time = text_of(&server.stored("")[1]["timestamp"]);
    let deleted = server.call("DELETE", &format!("/events?before={}", encode(&time)), &[], b"");
    assert_eq!(deleted.json(), json!({"deleted": 1}));
    assert_eq!(publish("synced").header("ack-level"), Some("synced"));
    disk.inject(Injection::at(1, CHANGE, Fault::KillBefore));
    Wire::connect(server.addr).send(request("POST", "/events", &[JSON], tick("s", 4).as_bytes()));
    server.await_exit();
    disk.cut_in_many_ways(
        &mut server,
        rounds(24),
        |_| (),
        |server| {
            assert_eq!(sequences(&server.stored("")), [2, 3, 4]);
        },
    );
}

/// The sidecar notes that unsynced commits may be lost. Torn, it must still lead to another epoch.
#[test]
fn a_power_cut_while_the_sidecar_is_written_still_begins_another_epoch() {
    let test = "a_power_cut_while_the_sidecar_is_written_still_begins_another_epoch";
    for _ in 0..rounds(30) {
        let Some(mut lives) = Lives::begin(test, CUTS, "normal", tempfile::tempdir().unwrap()) else { return };
        let producers = lives.producers(&WAYS, "plain", &[None]);
        lives.publish(producers, 40, |_| ());
        // The cut falls on the header of the sidecar, on one of its later marks, or on the note of an orderly end.
        let nth = 1 + lives.dice.below(60);
        lives.end_at(nth, CHANGE, ".lock");
        lives.server.signal("TERM");
        lives.next(Loss::Unsynced);
    }
}

/// Without syncs the file may be damaged: then the server must report it without a panic. Or the file is whole and has
/// lost events: then the epoch must be another one.
#[test]
fn a_power_cut_at_durability_off_damages_the_file_or_begins_another_epoch() {
    let test = "a_power_cut_at_durability_off_damages_the_file_or_begins_another_epoch";
    let (mut damaged, mut lost) = (0, 0);
    let count = rounds(30);
    for round in 0..count {
        let Some(mut lives) = Lives::begin(test, CUTS, "off", tempfile::tempdir().unwrap()) else { return };
        lives.server.allow_noise();
        let epoch = text_of(&lives.server.get_json("/stats")["epoch"]);
        let name = if round % 2 == 0 { "plain" } else { "large" };
        let producers = lives.producers(&WAYS, name, &[None, Some("stored"), Some("synced")]);
        let nth = 1 + lives.dice.below(if round % 2 == 0 { 500 } else { 4_000 });
        lives.end_at(nth, CHANGE, "");
        lives.publish(producers, 100_000, |_| ());
        lives.server.await_exit();
        lives.disk.boot(2);
        if let Err((status, _)) = lives.server.try_restart() {
            assert_eq!(status.code(), Some(1), "refused with an error, not a panic");
            damaged += 1;
            continue;
        }
        match lives.record.keeps(&lives.server) {
            None => damaged += 1,
            Some(true) => {}
            Some(false) => {
                assert_ne!(text_of(&lives.server.get_json("/stats")["epoch"]), epoch, "ids are given out again");
                lost += 1;
            }
        }
        let panics: Vec<_> = lives.server.log().into_iter().filter(|line| line.contains("panicked")).collect();
        assert_eq!(panics, Vec::<String>::new());
    }
    assert!(damaged + lost > 0, "a disk that is never synced loses something");
    eprintln!("{test}: of {count} files {damaged} were damaged, {lost} lost events");
}

#[test]
fn a_power_cut_while_the_file_is_created_leaves_a_file_that_starts() {
    let test = "a_power_cut_while_the_file_is_created_leaves_a_file_that_starts";
    for _ in 0..rounds(2) {
        kill_during_starts(test, CUTS, |_| (), |server, record| record.check(server, Loss::Nothing));
    }
}

#[test]
fn a_power_cut_during_an_upgrade_keeps_every_event() {
    let test = "a_power_cut_during_an_upgrade_keeps_every_event";
    kill_during_starts(test, CUTS, python_database, |server, record| {
        record.adopt(server);
        must_hold_the_python_events(server);
    });
}
