//! A server that is started from here, in a folder of its own.

use std::collections::VecDeque;
use std::fs::{self, DirBuilder};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{self, Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// 60 s: far longer than a server takes to start, when it rebuilds the index of up to 65,536 events, or to end, when it
/// finishes all requests. One that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often it is looked whether a server has ended.
const LOOK: Duration = Duration::from_millis(5);

/// How many of the server's last lines, and of its warnings, are shown.
const LINES_MAX: usize = 5;

/// Most lines of a starting server that wait for [`Process::wait_for`].
const LINES_AT_START_MAX: usize = 1_000;

/// A child that serves. Dropped, it is killed and its folder removed.
pub struct Process {
    child: Child,
    log: Log,
    lines: mpsc::Receiver<String>,
    folder: Folder,
}

impl Process {
    /// Starts it. Threads read what it prints, so that it never waits for a reader.
    pub fn start(command: &mut Command, folder: Folder) -> anyhow::Result<Self> {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Ctrl-C must not end the server, so that the run can still be verified.
            .process_group(0)
            .spawn()
            .with_context(|| format!("start {}", command.get_program().display()))?;
        let (log, (sender, lines)) = (Log::default(), mpsc::sync_channel(LINES_AT_START_MAX));
        log.follow(child.stdout.take().expect("it is piped"), sender.clone());
        log.follow(child.stderr.take().expect("it is piped"), sender);
        Ok(Self { child, log, lines, folder })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Waits for the first line it prints in which something is found.
    ///
    /// # Errors
    /// It ended, or there is no such line for a minute.
    pub fn wait_for<T>(&self, find: impl Fn(&str) -> Option<T>) -> anyhow::Result<T> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    if let Some(found) = find(&line) {
                        return Ok(found);
                    }
                }
                Err(RecvTimeoutError::Disconnected) => bail!("the server ended: {}", self.log.last_words()),
                Err(RecvTimeoutError::Timeout) => bail!("the server does not listen: {}", self.log.last_words()),
            }
        }
    }

    /// Ends it with SIGTERM. Returns its exit status and its log.
    ///
    /// # Errors
    /// It does not end, or had ended before.
    pub fn stop(mut self) -> anyhow::Result<(ExitStatus, Log)> {
        if let Some(status) = self.child.try_wait()? {
            bail!("the server ended with {status}: {}", self.log.last_words());
        }
        kill_process(Pid::from_child(&self.child), Signal::TERM).context("stop the server")?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.child.try_wait().context("wait for the server to end")? {
                Some(status) => return Ok((status, self.log.clone())),
                None => ensure!(Instant::now() < deadline, "the server does not end"),
            }
            thread::sleep(LOOK);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It has ended already, unless the run has failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a server prints.
#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<Lines>>);

#[derive(Default)]
struct Lines {
    last: VecDeque<String>,
    warnings: Vec<String>,
}

impl Log {
    fn follow(&self, output: impl Read + Send + 'static, sender: mpsc::SyncSender<String>) {
        let kept = self.0.clone();
        // It ends when the server does.
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                kept.lock().expect("nobody panics while holding it").keep(&line);
                // Once the server listens, no line is waited for any more.
                let _ = sender.try_send(line);
            }
        });
    }

    pub fn last_words(&self) -> String {
        let kept = self.0.lock().expect("nobody panics while holding it");
        kept.last.iter().map(String::as_str).collect::<Vec<_>>().join(" / ")
    }

    pub fn warnings(&self) -> Vec<String> {
        self.0.lock().expect("nobody panics while holding it").warnings.clone()
    }
}

impl Lines {
    fn keep(&mut self, line: &str) {
        let level = serde_json::from_str::<Value>(line).map(|entry| entry["level"].clone()).unwrap_or_default();
        if matches!(level.as_str(), Some("WARN" | "ERROR")) && self.warnings.len() < LINES_MAX {
            self.warnings.push(line.to_owned());
        }
        if self.last.len() == LINES_MAX {
            self.last.pop_front();
        }
        self.last.push_back(line.to_owned());
    }
}

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
