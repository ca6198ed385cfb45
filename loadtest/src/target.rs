//! The server under test: one of ours started from here, one that runs already, or one of another kind.

use std::collections::BTreeMap;
use std::env;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, ensure};
use clap::Args;
use event_pipeline::client::{Address, Client, Security, Trust};
use event_pipeline::config::Config;
use serde_json::Value;

use crate::answer;
use crate::dial::Dial;
use crate::disk::Disk;
use crate::process::{Folder, Process};
use crate::usage::{Watched, listener};

#[derive(Args, Debug, Clone)]
#[command(next_help_heading = "Server")]
pub struct TargetArgs {
    /// A running server, to which no other program publishes; without it one is started: the event-pipeline beside this
    /// program
    #[arg(long, global = true, value_name = "URL")]
    url: Option<String>,
    /// Key to show to a running server
    #[arg(long, global = true, value_name = "KEY", requires = "url")]
    api_key: Option<String>,
    /// Certificates in PEM that vouch for a running server, instead of those that this machine trusts
    #[arg(long, global = true, value_name = "FILE", requires = "url")]
    ca: Option<PathBuf>,
    /// Accept every certificate of a running server
    #[arg(long, global = true, requires = "url", conflicts_with = "ca")]
    insecure: bool,
    /// Process number of a running server, to measure its CPU time, memory and writes [default: the process on this
    /// machine that listens there, if we may look into it]
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

/// Which server was measured.
#[derive(Debug, Clone)]
pub struct Subject {
    /// Its name and version.
    pub name: String,
    /// What its acknowledgements promise.
    pub acknowledged_means: String,
}

/// Where requests go.
pub struct Target {
    pub subject: Subject,
    /// `host:port`
    pub authority: String,
    pub security: Security,
    pub heads: Heads,
    /// The same as one URL, with what is trusted.
    url: String,
    trust: Trust,
    api_key: Option<String>,
    /// The process to measure, if it is on this machine and known.
    pub watched: Option<Watched>,
    /// The server if it was started here.
    process: Option<Process>,
    /// Whether it ends with status 0 on SIGTERM, as ours does; others are ended by the signal.
    ends_well: bool,
    /// Whether its events can be read page by page.
    pub has_pages: bool,
    /// The settings that it was started with here.
    settings: BTreeMap<String, String>,
}

/// The head of a request to a server: what is the same in each.
#[derive(Debug, Clone)]
pub struct Heads {
    /// What every path begins with, without a slash at its end.
    pub prefix: String,
    /// The lines that every head needs.
    pub headers: String,
}

impl Heads {
    fn new(authority: &str, prefix: &str, api_key: Option<&str>) -> Self {
        let key = api_key.map_or(String::new(), |key| format!("X-API-Key: {key}\r\n"));
        Self { prefix: prefix.to_owned(), headers: format!("Host: {authority}\r\n{key}") }
    }

    /// The head of a request with this path, with these lines more in it, each with its end.
    pub fn request(&self, method: &str, path: &str, more: &str) -> String {
        let Self { prefix, headers } = self;
        format!("{method} {prefix}{path} HTTP/1.1\r\n{headers}{more}\r\n")
    }

    /// A whole request that reads something.
    pub fn get(&self, path: &str) -> String {
        self.request("GET", path, "")
    }
}

impl Target {
    /// Starts a server of our own, unless a running one is named.
    pub async fn new(args: &TargetArgs) -> anyhow::Result<Self> {
        match &args.url {
            Some(url) => Self::running(url, args).await,
            None => Self::ours(args).await,
        }
    }

    /// A server of another kind that was started from here. It may not understand what [`stored`](Self::stored)
    /// and [`newest`](Self::newest) ask.
    pub fn of_process(authority: String, subject: Subject, process: Process) -> Self {
        Self {
            subject,
            security: Security::default(),
            heads: Heads::new(&authority, "", None),
            url: format!("http://{authority}"),
            trust: Trust::System,
            authority,
            api_key: None,
            watched: Some(Watched { pid: process.pid(), disk: Disk::of(process.folder()) }),
            process: Some(process),
            ends_well: false,
            has_pages: false,
            settings: BTreeMap::new(),
        }
    }

    async fn ours(args: &TargetArgs) -> anyhow::Result<Self> {
        let binary = env::current_exe().context("find this program")?.with_file_name("event-pipeline");
        ensure!(
            binary.exists(),
            "there is no server at {}; build it beside this program: cargo build --release --workspace",
            binary.display()
        );
        if cfg!(debug_assertions) {
            eprintln!("loadtest: a build without optimisation measures nothing: cargo build --release --workspace");
        }
        let folder = args.folder()?;
        let mut command = Command::new(&binary);
        command
            .arg("serve")
            // Neither a configuration file nor a variable of our environment may change what is measured.
            .current_dir(folder.path())
            .env_clear()
            .env("HOST", "127.0.0.1")
            .env("PORT", "0")
            .env("DATABASE_PATH", folder.path().join("events.db"))
            .env("LOG_FORMAT", "json")
            .envs(args.set.iter().cloned());
        let process = Process::start(&mut command, folder)?;
        let (authority, is_tls) = process.wait_for(|line| {
            let entry: Value = serde_json::from_str(line).ok()?;
            let fields = entry.get("fields").filter(|fields| fields["message"] == "listening")?;
            let is_tls = fields["url"].as_str()?.starts_with("https:");
            Some((fields["address"].as_str()?.to_owned(), is_tls))
        })?;
        let acknowledged_means = match args.set.iter().rev().find(|(name, _)| name == "DURABILITY") {
            Some((_, level)) if !level.eq_ignore_ascii_case("full") => format!("committed, at the durability {level}"),
            _ => "synced to disk".to_owned(),
        };
        let mut target = Self::of_process(authority, Subject { name: String::new(), acknowledged_means }, process);
        (target.ends_well, target.has_pages) = (true, true);
        if is_tls {
            // It was started here, so nobody is in between.
            (target.url, target.trust) = (format!("https://{}", target.authority), Trust::Anything);
            target.security = Security::new(&Address::parse(&target.url)?, &target.trust)?;
        }
        target.settings = args.set.iter().cloned().collect();
        target.subject.name = target.name().await?;
        Ok(target)
    }

    async fn running(url: &str, args: &TargetArgs) -> anyhow::Result<Self> {
        let address = Address::parse(url)?;
        let trust = match &args.ca {
            _ if args.insecure => Trust::Anything,
            Some(file) => Trust::File(file.clone()),
            None => Trust::System,
        };
        let acknowledged_means = "what its settings say; synced to disk by default".to_owned();
        let mut target = Self {
            subject: Subject { name: String::new(), acknowledged_means },
            security: Security::new(&address, &trust)?,
            heads: Heads::new(&address.authority, &address.prefix, args.api_key.as_deref()),
            url: url.to_owned(),
            trust,
            authority: address.authority,
            api_key: args.api_key.clone(),
            watched: None,
            process: None,
            ends_well: false,
            has_pages: true,
            settings: BTreeMap::new(),
        };
        target.subject.name = target.name().await?;
        // A port of another machine is none of ours.
        let port = target.authority.parse().ok().filter(|address: &SocketAddr| address.ip().is_loopback());
        let pid = args.pid.or_else(|| listener(port?.port()));
        target.watched = pid.map(|pid| Watched { pid, disk: Disk::of_process(pid) });
        Ok(target)
    }

    /// How to connect the client with this number: from one of this machine's many addresses, where the server is on it
    /// too.
    pub fn dial(&self, number: usize) -> Dial {
        /// Loopback addresses that connections come from: each has some 28,000 ports, and a closed port stays in use
        /// for a minute.
        const SOURCES: usize = 32;
        let server = self.authority.parse::<SocketAddr>().ok();
        let is_here = server.is_some_and(|server| server.is_ipv4() && server.ip().is_loopback());
        let source = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 1 + (number % SOURCES) as u8));
        Dial { source: is_here.then_some(source), receive_buffer_bytes: None }
    }

    /// How many events are stored.
    pub async fn stored(&self) -> anyhow::Result<u64> {
        let stats = self.get("/stats").await?;
        stats["total_events"].as_u64().with_context(|| format!("no total_events in {stats}"))
    }

    /// The sequence number of the newest event; 0 if there is none.
    pub async fn newest(&self) -> anyhow::Result<u64> {
        let newest = self.get("/events?limit=1").await?;
        match &newest[0]["id"] {
            Value::Null => Ok(0),
            id => id.as_str().and_then(|id| answer::sequence(id.as_bytes())).with_context(|| format!("{id} is no id")),
        }
    }

    /// How many new events were acknowledged at this level.
    pub async fn acknowledged_at(&self, level: &str) -> anyhow::Result<u64> {
        let stats = self.get("/stats").await?;
        let counts = &stats["router"]["acknowledged"];
        counts[level].as_u64().with_context(|| format!("no acknowledged events at the level {level} in {stats}"))
    }

    /// How many subscribers are connected.
    pub async fn subscribers(&self) -> anyhow::Result<u64> {
        let stats = self.get("/stats").await?;
        stats["router"]["active_subscribers"].as_u64().with_context(|| format!("no active_subscribers in {stats}"))
    }

    /// The resident memory of the server, if its process is known.
    pub fn memory(&self) -> anyhow::Result<Option<u64>> {
        self.watched.as_ref().map(|watched| Ok(watched.usage()?.memory_bytes)).transpose()
    }

    /// What it says it is.
    async fn name(&self) -> anyhow::Result<String> {
        let health = self.get("/health").await?;
        let [service, version] = ["service", "version"].map(|field| health[field].as_str().unwrap_or("unknown"));
        Ok(format!("{service} {version}"))
    }

    async fn get(&self, path: &str) -> anyhow::Result<Value> {
        let client = Client::new(&self.url, self.api_key.as_deref(), &self.trust)?;
        Ok(serde_json::from_slice(&client.get(path).await?)?)
    }

    /// Ends a server that was started here.
    pub fn stop(self) -> anyhow::Result<Stopped> {
        let mut warnings = Vec::new();
        if let Some(process) = self.process {
            let (status, log) = process.stop()?;
            ensure!(!self.ends_well || status.success(), "the server ended with {status}: {}", log.last_words());
            warnings = log.warnings();
        }
        Ok(Stopped { subject: self.subject, settings: self.settings, warnings })
    }
}

/// What is known of a target after its end.
#[derive(Clone)]
pub struct Stopped {
    pub subject: Subject,
    pub settings: BTreeMap<String, String>,
    /// The warnings of a server that was started here.
    pub warnings: Vec<String>,
}

impl TargetArgs {
    /// The same, but a server that is started has slots for this many subscribers and other connections, unless its
    /// settings are given.
    pub fn with_slots(&self, subscribers: usize, others: usize) -> Self {
        let defaults = Config::default();
        let needed = [
            ("MAX_SUBSCRIBERS", subscribers, defaults.max_subscribers),
            ("MAX_CONNECTIONS", subscribers + others, defaults.max_connections),
        ];
        let needed = needed.into_iter().filter(|(_, count, default)| count > default);
        let needed = needed.map(|(name, count, _)| (name.to_owned(), count.to_string()));
        // Later settings override earlier ones.
        Self { set: needed.chain(self.set.iter().cloned()).collect(), ..self.clone() }
    }

    /// The value of a setting of the server that is started, if it is given.
    pub fn setting(&self, name: &str) -> Option<&str> {
        self.set.iter().rev().find(|(set, _)| set == name).map(|(_, value)| value.as_str())
    }

    /// A new folder for a server that is started from here.
    pub fn folder(&self) -> anyhow::Result<Folder> {
        match (&self.folder, env::var_os("TMPDIR")) {
            (Some(folder), _) => Folder::new(folder),
            (None, Some(folder)) => Folder::new(folder.as_ref()),
            (None, None) => Folder::new(env::current_exe()?.parent().context("find the folder of this program")?),
        }
    }
}
