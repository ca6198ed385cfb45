//! The server that is measured: one of our own on a disk of its own, or one that runs already.

use std::collections::VecDeque;
use std::env;
use std::fs::{self, DirBuilder};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{self, Child, ChildStderr, Command, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail, ensure};
use clap::Args;
use event_pipeline::client::Client;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::answer;

/// A server that does not listen or does not end by then will not do so at all. It rebuilds an index of up to
/// 65,536 events when it starts and finishes all requests when it ends.
const PATIENCE: Duration = Duration::from_secs(60);

/// Warnings of the server that are repeated.
const WARNINGS_MAX: usize = 5;

#[derive(Args, Debug, Clone)]
#[command(next_help_heading = "Server")]
pub struct TargetArgs {
    /// A running server, with nobody else publishing; without it one is started: the event-pipeline beside this program
    #[arg(long, global = true, value_name = "URL")]
    url: Option<String>,
    /// Key to show to a running server
    #[arg(long, global = true, value_name = "KEY", requires = "url")]
    api_key: Option<String>,
    /// Process number of a running server on this machine, to measure its CPU time, memory and writes
    #[arg(long, global = true, value_name = "PID", requires = "url")]
    pid: Option<u32>,
    /// Setting of the server that is started, such as NETWORK_THREADS=2; repeatable
    #[arg(long, global = true, value_name = "NAME=VALUE", value_parser = setting, conflicts_with = "url")]
    set: Vec<(String, String)>,
    /// Where the server that is started keeps its database, in a folder of its own; must be on a disk
    /// [default: $TMPDIR, or where this program was built]
    #[arg(long, global = true, value_name = "FOLDER", conflicts_with = "url")]
    folder: Option<PathBuf>,
}

fn setting(text: &str) -> Result<(String, String), &'static str> {
    let (name, value) = text.split_once('=').ok_or("not of the form NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

/// Where requests go.
pub struct Target {
    /// `host:port`
    pub authority: String,
    /// What the path of every request begins with; no slash at its end.
    pub prefix: String,
    api_key: Option<String>,
    /// The process to measure, if it is on this machine and known.
    pub pid: Option<u32>,
    server: Option<Server>,
}

impl Target {
    /// Starts a server, unless one is named.
    pub fn new(args: &TargetArgs) -> anyhow::Result<Self> {
        let Some(url) = &args.url else {
            let server = Server::start(args)?;
            let (authority, pid) = (server.address.clone(), Some(server.process.id()));
            return Ok(Self { authority, prefix: String::new(), api_key: None, pid, server: Some(server) });
        };
        let rest = url.strip_prefix("http://").with_context(|| format!("{url:?} does not begin with http://"))?;
        let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let port = if host.trim_end_matches(|c: char| c.is_ascii_digit()).ends_with(':') { "" } else { ":80" };
        Ok(Self {
            authority: format!("{host}{port}"),
            prefix: path.trim_end_matches('/').to_owned(),
            api_key: args.api_key.clone(),
            pid: args.pid,
            server: None,
        })
    }

    /// The lines that the head of every request needs.
    pub fn headers(&self) -> String {
        let key = self.api_key.as_ref().map_or(String::new(), |key| format!("X-API-Key: {key}\r\n"));
        format!("Host: {}\r\n{key}", self.authority)
    }

    fn client(&self) -> anyhow::Result<Client> {
        Client::new(&format!("http://{}{}", self.authority, self.prefix), self.api_key.as_deref())
    }

    /// How many events are stored.
    pub async fn stored(&self) -> anyhow::Result<u64> {
        let stats = self.client()?.get("/stats").await?.ok()?.json()?;
        stats["total_events"].as_u64().with_context(|| format!("no total_events in {stats}"))
    }

    /// The sequence number of the newest event; 0 if there is none.
    pub async fn newest(&self) -> anyhow::Result<u64> {
        let newest = self.client()?.get("/events?limit=1").await?.ok()?.json()?;
        match &newest[0]["id"] {
            Value::Null => Ok(0),
            id => id.as_str().and_then(|id| answer::sequence(id.as_bytes())).with_context(|| format!("{id} is no id")),
        }
    }

    /// Ends a server that was started here, and returns what it warned of.
    pub fn stop(self) -> anyhow::Result<Vec<String>> {
        self.server.map_or(Ok(Vec::new()), Server::stop)
    }
}

/// A server of our own. Dropped, it is killed and its database removed.
struct Server {
    process: Child,
    address: String,
    log: Log,
    folder: Folder,
}

impl Server {
    fn start(args: &TargetArgs) -> anyhow::Result<Self> {
        let here = env::current_exe().context("find this program")?;
        let binary = here.with_file_name("event-pipeline");
        ensure!(
            binary.exists(),
            "there is no server at {}; build it beside this program: cargo build --release --workspace",
            binary.display()
        );
        if cfg!(debug_assertions) {
            eprintln!("loadtest: a build without optimisation measures nothing: cargo build --release --workspace");
        }
        let parent = match (&args.folder, env::var_os("TMPDIR")) {
            (Some(folder), _) => folder.clone(),
            (None, Some(folder)) => folder.into(),
            (None, None) => here.parent().context("find the folder of this program")?.to_owned(),
        };
        let folder = Folder::new(&parent)?;
        let mut process = Command::new(&binary)
            .arg("serve")
            // Neither a configuration file nor a setting from around us may change what is measured.
            .current_dir(&folder.0)
            .env_clear()
            .env("HOST", "127.0.0.1")
            .env("PORT", "0")
            .env("DATABASE_PATH", folder.0.join("events.db"))
            .env("LOG_FORMAT", "json")
            .envs(args.set.iter().cloned())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            // Ctrl-C is for us alone, so that what was measured can still be checked.
            .process_group(0)
            .spawn()
            .with_context(|| format!("start {}", binary.display()))?;
        let stderr = process.stderr.take().expect("it is piped");
        let (log, address) = Log::follow(stderr);
        let mut server = Self { process, address: String::new(), log, folder };
        server.address = address
            .recv_timeout(PATIENCE)
            .map_err(|_| anyhow!("the server does not listen; its last words: {}", server.log.last_words()))?;
        Ok(server)
    }

    fn stop(mut self) -> anyhow::Result<Vec<String>> {
        let pid = Pid::from_child(&self.process);
        kill_process(pid, Signal::TERM).context("stop the server")?;
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            match self.process.try_wait().context("wait for the server to end")? {
                Some(status) => break status,
                None if Instant::now() > deadline => bail!("the server does not end"),
                None => thread::sleep(Duration::from_millis(5)),
            }
        };
        ensure!(status.success(), "the server ended with {status}: {}", self.log.last_words());
        Ok(self.log.warnings())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It has ended already, unless something went wrong here.
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = fs::remove_dir_all(&self.folder.0);
    }
}

/// A folder of our own on a disk.
struct Folder(PathBuf);

impl Folder {
    fn new(parent: &Path) -> anyhow::Result<Self> {
        /// The kind of a volume in memory, as `statfs` gives it.
        const TMPFS: i64 = 0x0102_1994;
        let parent = parent.canonicalize().with_context(|| format!("find {}", parent.display()))?;
        let volume = rustix::fs::statfs(&parent).with_context(|| format!("look at {}", parent.display()))?;
        ensure!(volume.f_type as i64 != TMPFS, "{} is in memory, not on a disk; choose a --folder", parent.display());
        let folder = parent.join(format!("loadtest-{}", process::id()));
        DirBuilder::new().mode(0o700).create(&folder).with_context(|| format!("create {}", folder.display()))?;
        Ok(Self(folder))
    }
}

/// The server's log, followed by a thread so that the server never waits for its reader.
struct Log(Arc<Mutex<Kept>>);

#[derive(Default)]
struct Kept {
    last: VecDeque<String>,
    warnings: Vec<String>,
}

impl Log {
    /// The log, and the address once the server listens.
    fn follow(stderr: ChildStderr) -> (Self, mpsc::Receiver<String>) {
        let (found, address) = mpsc::channel();
        let log = Self(Arc::default());
        let kept = log.0.clone();
        // It ends when the server does.
        thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let entry: Value = serde_json::from_str(&line).unwrap_or_default();
                if entry["fields"]["message"] == "listening"
                    && let Some(address) = entry["fields"]["address"].as_str()
                {
                    // Nobody waits for it any more after a timeout.
                    let _ = found.send(address.to_owned());
                }
                let mut kept = kept.lock().expect("nobody panics while holding it");
                if matches!(entry["level"].as_str(), Some("WARN" | "ERROR")) && kept.warnings.len() < WARNINGS_MAX {
                    kept.warnings.push(line.clone());
                }
                if kept.last.len() == WARNINGS_MAX {
                    kept.last.pop_front();
                }
                kept.last.push_back(line);
            }
        });
        (log, address)
    }

    fn last_words(&self) -> String {
        let kept = self.0.lock().expect("nobody panics while holding it");
        kept.last.iter().map(String::as_str).collect::<Vec<_>>().join(" / ")
    }

    fn warnings(&self) -> Vec<String> {
        self.0.lock().expect("nobody panics while holding it").warnings.clone()
    }
}
