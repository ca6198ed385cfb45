//! `event-pipeline config check`.

use std::fs;
use std::io::{self, BufWriter, Write};
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use clap::Args;
use event_pipeline::auth::{API_KEY_BYTES_MIN, JWT_SECRET_BYTES_MIN, KeysFile, Tokens};
use event_pipeline::config::{Config, CorsOrigins, Durability, Hosts, LoadedConfig, SetBy};
use event_pipeline::event::Timestamp;
use serde_json::json;

use super::printer::plain;

/// Name what is dangerous or contradictory in the configuration
///
/// Takes the flags of serve, and reads what serve would read: the environment, the TOML file, and the files of keys. It
/// changes nothing. Each finding is a line with the setting and what to do. A danger is something that most servers should
/// not have, a warning something to know of.
#[derive(Args)]
#[command(
    override_usage = "event-pipeline config check [OPTIONS] [OPTIONS OF SERVE]",
    after_help = "Examples:
  event-pipeline config check --config /etc/event-pipeline.toml
  event-pipeline config check --json | jq '.findings[] | select(.severity == \"danger\")'

Exit codes: 0 nothing found, 1 something found, 2 the configuration cannot be used."
)]
pub struct Check {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Severity {
    Danger,
    Warning,
}
use Severity::{Danger, Warning};

impl Severity {
    fn name(self) -> &'static str {
        match self {
            Danger => "danger",
            Warning => "warning",
        }
    }
}

struct Finding {
    severity: Severity,
    setting: &'static str,
    what: String,
    remedy: &'static str,
}

impl Check {
    /// Whether nothing was found.
    ///
    /// # Errors
    /// The configuration cannot be used, or a bare [`io::Error`] comes from stdout.
    pub fn run(&self, loaded: &LoadedConfig) -> anyhow::Result<bool> {
        let mut findings = Findings::of(loaded)?;
        findings.sort_by_key(|finding| finding.severity);
        let mut out = BufWriter::new(io::stdout().lock());
        if self.json {
            let findings: Vec<_> = findings.iter().map(object).collect();
            writeln!(out, "{:#}", json!({ "findings": findings }))?;
        } else if findings.is_empty() {
            writeln!(out, "Nothing found.")?;
        } else {
            for Finding { severity, setting, what, remedy } in &findings {
                writeln!(out, "{}: {setting}: {}; {remedy}", severity.name(), plain(what))?;
            }
        }
        out.flush()?;
        Ok(findings.is_empty())
    }
}

/// One finding. Each has the same members.
fn object(finding: &Finding) -> serde_json::Value {
    let Finding { severity, setting, what, remedy } = finding;
    json!({ "severity": severity.name(), "setting": setting, "what": what, "remedy": remedy })
}

struct Findings<'c> {
    config: &'c Config,
    loaded: &'c LoadedConfig,
    keys: Option<KeysFile>,
    has_tokens: bool,
    found: Vec<Finding>,
}

impl<'c> Findings<'c> {
    fn of(loaded: &'c LoadedConfig) -> anyhow::Result<Vec<Finding>> {
        let config = loaded.config();
        let path = config.keys_path();
        let is_there = config.keys_file.is_some() || path.exists();
        let keys = is_there.then(|| KeysFile::read(&path)).transpose()?;
        let has_tokens = Tokens::new(config)?.are_accepted();
        let mut findings = Self { config, loaded, keys, has_tokens, found: Vec::new() };
        findings.network();
        findings.authentication();
        findings.pages();
        findings.tokens();
        findings.files();
        findings.storage();
        Ok(findings.found)
    }

    fn add(&mut self, is_so: bool, severity: Severity, setting: &'static str, what: &str, remedy: &'static str) {
        if is_so {
            self.found.push(Finding { severity, setting, what: what.to_owned(), remedy });
        }
    }

    /// Whether clients have to show a key.
    fn is_authenticated(&self) -> bool {
        self.config.require_auth.unwrap_or(self.keys.is_some() || self.has_tokens)
    }

    fn is_public(&self) -> bool {
        !self.config.host.to_canonical().is_loopback()
    }

    fn network(&mut self) {
        let (config, is_public, is_authenticated) = (self.config, self.is_public(), self.is_authenticated());
        let is_open = is_public && !is_authenticated;
        self.add(
            is_open && !config.allow_unauthenticated,
            Danger,
            "HOST",
            "other machines reach this address and no client is asked for a key, so the server does not start",
            "make a key with `event-pipeline keys add`, or listen on 127.0.0.1",
        );
        self.add(
            is_open && config.allow_unauthenticated,
            Danger,
            "ALLOW_UNAUTHENTICATED",
            "everyone who reaches HOST may read, publish and delete",
            "make a key with `event-pipeline keys add`, and remove the setting",
        );
        self.add(
            config.allow_unauthenticated && !is_open,
            Warning,
            "ALLOW_UNAUTHENTICATED",
            "it changes nothing now, and admits everybody once the keys file is lost or HOST is another",
            "remove the setting",
        );
        let proxies = &config.trusted_proxies;
        let (severity, what) = match proxies.is_empty() {
            true => (Danger, "keys and events cross the network without encryption"),
            false => {
                (Warning, "keys and events cross the network between the proxy and this server without encryption")
            }
        };
        self.add(
            is_public && !config.serves_tls(),
            severity,
            "TLS_CERT",
            what,
            "set TLS_CERT and TLS_KEY, or put a proxy with TLS in front and listen where only the proxy reaches the server",
        );
        self.add(
            is_public && config.tls_self_signed,
            Warning,
            "TLS_SELF_SIGNED",
            "no client can tell this server from another one, unless it is given the certificate",
            "set TLS_CERT and TLS_KEY to a certificate that your clients trust",
        );
        // Two networks for documentation have nothing in common but the network of all addresses.
        let far = [["192.0.2.1", "203.0.113.1"], ["2001:db8::1", "fd00::1"]];
        let trusts = |text: &&str| text.parse::<IpAddr>().is_ok_and(|address| proxies.contains(address));
        self.add(
            far.iter().any(|both| both.iter().all(trusts)),
            Danger,
            "TRUSTED_PROXIES",
            "every client is believed when it says which address it comes from, so limits by address can be evaded",
            "list the addresses of your proxies only",
        );
        let rates = [
            ("RATE_LIMIT_PUBLISH", config.rate_limit_publish.is_none()),
            ("RATE_LIMIT_QUERY", config.rate_limit_query.is_none()),
            ("RATE_LIMIT_ADMIN", config.rate_limit_admin.is_none()),
        ];
        for (setting, is_unlimited) in rates {
            self.add(
                is_public && is_unlimited,
                Warning,
                setting,
                "one client may send as many requests as the server can answer",
                "set a rate such as 600/minute",
            );
        }
    }

    fn authentication(&mut self) {
        let (config, is_authenticated) = (self.config, self.is_authenticated());
        let (has_named, has_api_key) = (self.keys.is_some(), !config.api_key.is_empty());
        let has_keys = self.keys.as_ref().is_some_and(|file| !file.keys.is_empty());
        self.add(
            has_api_key && !is_authenticated,
            Danger,
            "API_KEY",
            "it is set, and no client is asked for it",
            "set REQUIRE_AUTH=true, or remove it",
        );
        self.add(
            is_authenticated && has_api_key && is_weak(&config.api_key, API_KEY_BYTES_MIN),
            Danger,
            "API_KEY",
            "it is short or repeats few characters, so it can be guessed",
            "take 32 random characters, or a named key (`event-pipeline keys add`)",
        );
        self.add(
            config.require_auth == Some(false) && (has_named || self.has_tokens),
            Danger,
            "REQUIRE_AUTH",
            "there are keys or tokens, and no client is asked for them",
            "remove the setting, or the keys",
        );
        self.add(
            is_authenticated && !has_api_key && !has_keys && !self.has_tokens,
            Danger,
            "REQUIRE_AUTH",
            "authentication is on and there is no key, so no client is admitted",
            "make a key with `event-pipeline keys add`",
        );
        let expired = self.keys.iter().flat_map(|file| &file.keys);
        let expired = expired.filter(|key| key.expires.is_some_and(|end| end <= Timestamp::now()));
        let expired: Vec<_> = expired.map(|key| format!("the key {} ({}) has expired", key.id, key.name)).collect();
        for what in expired {
            self.add(true, Warning, "KEYS_FILE", &what, "remove it with `event-pipeline keys revoke`");
        }
    }

    fn pages(&mut self) {
        let is_open = !self.is_authenticated();
        self.add(
            is_open && self.config.cors_origins == CorsOrigins::Any,
            Danger,
            "CORS_ORIGINS",
            "without authentication any web page that somebody opens on a machine that reaches the server may read and delete",
            "list the origins of your pages, or leave it at auto",
        );
        self.add(
            is_open && matches!(self.config.allowed_hosts, Hosts::Any),
            Danger,
            "ALLOWED_HOSTS",
            "without authentication any web page can reach the server by a name of its own (DNS rebinding)",
            "list the names of this server",
        );
    }

    fn tokens(&mut self) {
        let (config, has_tokens) = (self.config, self.has_tokens);
        self.add(
            !config.jwt_secret.is_empty() && is_weak(&config.jwt_secret, JWT_SECRET_BYTES_MIN),
            Danger,
            "JWT_SECRET",
            "it is short or repeats few characters, so whoever has a token can find it by trying",
            "take 32 random bytes or more",
        );
        let claims = [
            ("JWT_AUDIENCE", &config.jwt_audience, "tokens that were made for other services are accepted"),
            ("JWT_ISSUER", &config.jwt_issuer, "tokens of every issuer that has the key are accepted"),
        ];
        for (setting, value, what) in claims {
            self.add(has_tokens && value.is_empty(), Warning, setting, what, "set what tokens for this server say");
            self.add(
                !has_tokens && !value.is_empty(),
                Warning,
                setting,
                "it changes nothing, because no token is accepted",
                "set JWT_SECRET or JWT_KEYS_FILE, or remove it",
            );
        }
    }

    /// Secrets that others on this machine can read or replace.
    fn files(&mut self) {
        let config = self.config;
        let loaded = self.loaded;
        for shown in loaded.settings().filter(|shown| shown.setting.is_secret() && shown.value == "set") {
            let name = shown.setting.name;
            match shown.set_by {
                SetBy::Flag => self.add(true, Danger, name, "process lists show it", "set it in the environment"),
                SetBy::File(path) => {
                    let what = format!("others can read {path}, which has it");
                    self.add(others_may(Path::new(path), 0o044), Danger, name, &what, "chmod 600 the file");
                }
                SetBy::Default | SetBy::Environment => {}
            }
        }
        let path = config.keys_path();
        let (read, write) = ("others can read the hashes of the keys", "others can write it, so they can make any key");
        self.add(others_may(&path, 0o044), Warning, "KEYS_FILE", read, "chmod 600 the file");
        self.add(others_may(&path, 0o022), Danger, "KEYS_FILE", write, "chmod 600 the file");
        if let Some(path) = &config.jwt_keys_file {
            self.add(others_may(path, 0o022), Danger, "JWT_KEYS_FILE", write, "chmod 644 the file");
            let has_secret = fs::read_to_string(path).is_ok_and(|text| text.contains("\"oct\""));
            let what = "others can read it, and it has a secret with which they can make any token";
            self.add(has_secret && others_may(path, 0o044), Danger, "JWT_KEYS_FILE", what, "chmod 600 the file");
        }
        if let Some(key) = &config.tls_key {
            let what = "others can read it, and so pass for this server";
            self.add(others_may(key, 0o044), Danger, "TLS_KEY", what, "chmod 600 the file");
        }
        if let (Some(path), Some(key)) = (&config.audit_file, config.audit_key_path()) {
            let read = "others can read who has done what";
            self.add(others_may(path, 0o044), Warning, "AUDIT_FILE", read, "chmod 600 the file");
            let what = "others can read its key, and so find out which values the hashes stand for";
            self.add(others_may(&key, 0o044), Danger, "AUDIT_FILE", what, "chmod 600 the key");
        }
    }

    fn storage(&mut self) {
        let config = self.config;
        let (severity, what) = match config.durability {
            Durability::Off => (Danger, "a power cut may damage the file and lose acknowledged events"),
            _ => (Warning, "a power cut may lose the last acknowledged events"),
        };
        self.add(config.durability != Durability::Full, severity, "DURABILITY", what, "set it to full");
        self.add(
            config.free_space_min_bytes == 0,
            Warning,
            "FREE_SPACE_MIN_BYTES",
            "events are stored until the disk is full, and SQLite may lack the space to recover",
            "set it to 1 MiB or more",
        );
    }
}

/// A text with fewer different characters than this is no random one.
const CHARACTERS_MIN: usize = 8;

fn is_weak(secret: &str, bytes_min: usize) -> bool {
    let characters: std::collections::HashSet<_> = secret.chars().collect();
    secret.len() < bytes_min || characters.len() < CHARACTERS_MIN
}

/// Whether the file is there, and its group or others have one of these rights.
fn others_may(path: &Path, rights: u32) -> bool {
    fs::metadata(path).is_ok_and(|file| file.permissions().mode() & rights != 0)
}
