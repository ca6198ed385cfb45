//! The driver of Redis: streams that are written to an append-only file, and pub/sub.

pub mod wire;

use std::net::TcpListener;
use std::process::Command;

use anyhow::{Context, bail};
use loadtest::{Connection, Dialect, Driver, Folder, Outcome, Process, Receive, Scratch, Subject, Target};

use crate::binary::{Binary, version_parts};
use crate::replies::replies;
use wire::{Scalar, array, bulk, command, scalar};

/// The stream and the channel.
const NAME: &[u8] = b"events";

/// The name of a stream entry's one field.
const FIELD: &[u8] = b"e";

/// Most entries that a subscriber is sent at once.
const ENTRIES_MAX: &[u8] = b"1000";

/// The first version that numbers entries by itself behind a time that is given (`0-*`).
const VERSION_MIN: (u32, u32) = (7, 0);

#[derive(Debug, Clone)]
pub struct Redis {
    pub binary: Binary,
    pub mode: Mode,
}

/// A mode of publishing and subscribing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// `XADD` and `XREAD`.
    Streams(Fsync),
    /// `PUBLISH` and `SUBSCRIBE`.
    PubSub,
}

/// When the append-only file is synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fsync {
    Always,
    EverySecond,
}

/// The server, if it is installed.
///
/// # Errors
/// It is too old.
pub fn installed() -> anyhow::Result<Option<Binary>> {
    let binary = Binary::find("redis-server", |line| line.split_once("v=")?.1.split(' ').next())?;
    if let Some(binary) = &binary
        && version_parts(&binary.version) < VERSION_MIN
    {
        bail!("redis-server {} cannot number entries as this needs: 7.0 was the first that could", binary.version);
    }
    Ok(binary)
}

impl Redis {
    /// What it is called, and what its acknowledgements promise.
    fn subject(&self) -> Subject {
        let version = &self.binary.version;
        let (name, acknowledged_means) = match self.mode {
            Mode::Streams(Fsync::Always) => (format!("Redis Streams {version}, fsync always"), "synced to disk"),
            Mode::Streams(Fsync::EverySecond) => (
                format!("Redis Streams {version}, fsync everysec"),
                "written to the operating system; synced to disk every second",
            ),
            Mode::PubSub => (format!("Redis pub/sub {version}"), "handed to the subscribers; never stored"),
        };
        Subject { name, acknowledged_means: acknowledged_means.to_owned() }
    }
}

impl Driver for Redis {
    fn start(&self, folder: Folder) -> anyhow::Result<Target> {
        // It cannot be asked to choose a port by itself.
        let port = TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr()).context("find a free port")?.port();
        let (append_only, fsync) = match self.mode {
            Mode::Streams(Fsync::Always) => ("yes", "always"),
            Mode::Streams(Fsync::EverySecond) => ("yes", "everysec"),
            Mode::PubSub => ("no", "no"),
        };
        let port = port.to_string();
        let options = [
            ("--bind", "127.0.0.1"),
            ("--port", &port),
            ("--appendonly", append_only),
            ("--appendfsync", fsync),
            // Neither dumps nor rewrites its file meanwhile, which would only slow it down here.
            ("--save", ""),
            ("--auto-aof-rewrite-percentage", "0"),
        ];
        let mut start = Command::new(&self.binary.path);
        start.current_dir(folder.path()).args(options.iter().flat_map(|(name, value)| [name, value]));
        let process = Process::start(&mut start, folder)?;
        process.wait_for(|line| line.contains("Ready to accept connections").then_some(()))?;
        Ok(Target::of_process(format!("127.0.0.1:{port}"), self.subject(), process))
    }

    fn render(&self) -> fn(&mut Vec<u8>, usize, &[u8]) {
        match self.mode {
            // The time is given as 0, so that the numbers are dense and a lost entry would be seen.
            Mode::Streams(_) => |out, _, event| command(out, &[b"XADD", NAME, b"0-*", FIELD, event]),
            Mode::PubSub => |out, _, event| command(out, &[b"PUBLISH", NAME, event]),
        }
    }

    fn dialect(&self) -> Dialect {
        Dialect::Peer { answers, after_burst: b"" }
    }

    async fn producer(&self, target: &Target, _: usize, scratch: &Scratch) -> anyhow::Result<Connection> {
        Connection::open(target, scratch).await
    }

    async fn subscriber(&self, target: &Target, scratch: &Scratch) -> anyhow::Result<Connection> {
        let mut connection = Connection::open(target, scratch).await?;
        match self.mode {
            // From the beginning of what is still empty: whenever it arrives, it misses nothing.
            Mode::Streams(_) => read_after(connection.out(), 0),
            Mode::PubSub => {
                command(connection.out(), &[b"SUBSCRIBE", NAME]);
                let confirmed = connection.ask(|bytes, _, answer| {
                    replies(bytes, |reader| {
                        let (3, b"subscribe", _name) = (array(reader)?, bulk(reader)?, bulk(reader)?) else {
                            return Err(reader.unexpected());
                        };
                        let Scalar::Integer(subscriptions) = scalar(reader)? else { return Err(reader.unexpected()) };
                        *answer = Some(subscriptions);
                        Ok(())
                    })
                });
                confirmed.await?;
            }
        }
        Ok(connection)
    }

    fn receive(&self) -> Receive {
        match self.mode {
            Mode::Streams(_) => |bytes, out, visit| {
                let mut last = None;
                let used = wire::entries(bytes, |number, event| {
                    last = Some(number);
                    visit(Some(number), event);
                })?;
                if let Some(last) = last {
                    read_after(out, last);
                }
                Ok(used)
            },
            Mode::PubSub => |bytes, _, visit| wire::messages(bytes, |event| visit(None, event)),
        }
    }

    async fn stored(&self, target: &Target) -> anyhow::Result<Option<u64>> {
        if self.mode == Mode::PubSub {
            return Ok(None);
        }
        let mut connection = Connection::open(target, &Scratch::default()).await?;
        command(connection.out(), &[b"XLEN", NAME]);
        let length = connection.ask(|bytes, _, answer| {
            replies(bytes, |reader| {
                let Scalar::Integer(length) = scalar(reader)? else { return Err(reader.unexpected()) };
                *answer = Some(length);
                Ok(())
            })
        });
        length.await.map(Some)
    }
}

/// Asks for the entries after this one, and waits for one if there is none.
fn read_after(out: &mut Vec<u8>, number: u64) {
    let id = format!("0-{number}");
    command(out, &[b"XREAD", b"COUNT", ENTRIES_MAX, b"BLOCK", b"0", b"STREAMS", NAME, id.as_bytes()]);
}

/// `XADD` is answered with the id, `PUBLISH` with the number of subscribers.
fn answers(
    bytes: &[u8],
    _: &mut Vec<u8>,
    visit: &mut dyn FnMut(Outcome) -> anyhow::Result<()>,
) -> anyhow::Result<usize> {
    replies(bytes, |reader| {
        let outcome = match scalar(reader)? {
            Scalar::Text(id) => Outcome::Stored(wire::sequence(id)?),
            Scalar::Integer(_) => Outcome::PassedOn,
            Scalar::Error(words) => Outcome::Refused(String::from_utf8_lossy(words).into_owned()),
        };
        Ok(visit(outcome)?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_tell_what_became_of_an_event() {
        let outcomes = |bytes: &[u8]| {
            let mut seen = Vec::new();
            let mut visit = |outcome| {
                seen.push(outcome);
                Ok(())
            };
            answers(bytes, &mut Vec::new(), &mut visit).map(|used| (used, seen))
        };
        let bytes = b"$3\r\n0-7\r\n:3\r\n-OOM no memory\r\n$3\r\n0-8";
        let seen = vec![Outcome::Stored(7), Outcome::PassedOn, Outcome::Refused("OOM no memory".to_owned())];
        assert_eq!(outcomes(bytes).expect("answers"), (bytes.len() - 7, seen));
        assert!(outcomes(b"$3\r\n1-1\r\n").is_err());
        assert!(outcomes(b"*1\r\n").is_err());
    }

    #[test]
    fn a_subscriber_asks_for_what_comes_after_what_it_got() {
        let redis = Redis {
            binary: Binary { path: "redis-server".into(), version: "7".to_owned() },
            mode: Mode::Streams(Fsync::Always),
        };
        let reply = b"*1\r\n*2\r\n$6\r\nevents\r\n*1\r\n*2\r\n$4\r\n0-41\r\n*2\r\n$1\r\ne\r\n$2\r\n{}\r\n";
        let (mut out, mut seen) = (Vec::new(), Vec::new());
        let receive = redis.receive();
        for cut in [0, 20, reply.len() - 1] {
            let visit = &mut |_, _: &[u8]| panic!("half a reply was visited");
            assert_eq!(receive(&reply[..cut], &mut out, visit).expect("half a reply"), 0);
        }
        let mut visit = |number, event: &[u8]| seen.push((number, event.to_vec()));
        assert_eq!(receive(reply, &mut out, &mut visit).expect("a reply"), reply.len());
        assert_eq!(seen, [(Some(41), b"{}".to_vec())]);
        let mut expected = Vec::new();
        read_after(&mut expected, 41);
        assert_eq!(out, expected);
    }
}
