//! From flags, environment, file and defaults to a [`Config`], with what has set each value.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use clap::{Arg, ArgMatches};

use super::fields::Config;
use super::table::{InvalidValue, SETTINGS, SetBy, Setting};

/// The file that is read if it exists and no other file is named.
const DEFAULT_FILE: &str = "event-pipeline.toml";

/// Every setting with its value and what has set it. One function changes both together, so they never contradict each
/// other.
pub struct LoadedConfig {
    config: Config,
    /// What has set each setting, in the order of the table.
    set_by: [SetBy; SETTINGS.len()],
}

/// One setting as it is in effect.
pub struct Effective<'a> {
    pub setting: &'static Setting,
    /// Of a secret only `set` or `not set`.
    pub value: String,
    pub set_by: &'a SetBy,
}

impl Effective<'_> {
    /// What has set it, in a word, and where; the default is nowhere.
    pub fn source(&self) -> (&'static str, Option<String>) {
        match self.set_by {
            SetBy::Default => ("default", None),
            SetBy::File(path) => ("file", Some(path.clone())),
            SetBy::Environment => ("environment", Some(self.setting.name.to_owned())),
            SetBy::Flag => ("flag", Some(format!("--{}", self.setting.flag()))),
        }
    }

    /// The same for people: `default`, or for example `environment PORT`.
    pub fn source_in_words(&self) -> String {
        match self.source() {
            (word, None) => word.to_owned(),
            (word, Some(place)) => format!("{word} {place}"),
        }
    }
}

impl LoadedConfig {
    /// The configuration that flags, environment, file and defaults give, in this order of precedence.
    /// The file is `--config`, else `CONFIG_FILE`, else `event-pipeline.toml` where it exists.
    ///
    /// # Errors
    /// One line that names the setting, where it was set, its value and what is allowed.
    pub fn load(flags: &ArgMatches) -> Result<Self, ConfigError> {
        Self::load_from(flags, |name| std::env::var_os(name), Path::new(DEFAULT_FILE))
    }

    fn load_from(
        flags: &ArgMatches,
        env: impl Fn(&str) -> Option<OsString>,
        default_file: &Path,
    ) -> Result<Self, ConfigError> {
        let mut loaded = Self::default();
        let named =
            flags.get_one::<String>("config").map(PathBuf::from).or_else(|| env("CONFIG_FILE").map(PathBuf::from));
        match named {
            Some(path) => loaded.apply_file(&path)?,
            None if default_file.exists() => loaded.apply_file(default_file)?,
            None => {}
        }
        for (index, setting) in SETTINGS.iter().enumerate() {
            if let Some(value) = env(setting.name) {
                let value = value.into_string().map_err(|_| ConfigError::NotUtf8(setting.name))?;
                loaded.assign(index, &value, SetBy::Environment)?;
            }
        }
        for (index, setting) in SETTINGS.iter().enumerate() {
            // A command may take some of the flags only.
            if let Ok(Some(value)) = flags.try_get_one::<String>(setting.name) {
                loaded.assign(index, value, SetBy::Flag)?;
            }
        }
        Ok(loaded)
    }

    fn apply_file(&mut self, path: &Path) -> Result<(), ConfigError> {
        let file = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|error| ConfigError::Unreadable(file.clone(), error))?;
        self.apply(&text, &file)
    }

    /// Applies the settings of a TOML text; `file` is its name in errors and in [`SetBy::File`].
    ///
    /// # Errors
    /// One line, as for [`LoadedConfig::load`]. The settings before the invalid one are applied.
    pub fn apply(&mut self, text: &str, file: &str) -> Result<(), ConfigError> {
        let table: toml::Table = text.parse().map_err(|error| {
            let (line, what) = fault_in_toml(text, &error);
            ConfigError::Syntax(file.to_owned(), line, what)
        })?;
        for (key, value) in &table {
            let index = SETTINGS.iter().position(|setting| setting.key() == *key);
            let index = index.ok_or_else(|| ConfigError::Unknown(file.to_owned(), key.clone()))?;
            let text = match value {
                toml::Value::String(text) => text.clone(),
                // Else a list would become a key that no client sends.
                _ if SETTINGS[index].is_secret() => {
                    return Err(ConfigError::NotAString(file.to_owned(), key.clone()));
                }
                other => serde_json::to_string(other).expect("a TOML value has a JSON form"),
            };
            self.assign(index, &text, SetBy::File(file.to_owned()))?;
        }
        Ok(())
    }

    /// Sets the setting at this index of the table.
    fn assign(&mut self, index: usize, text: &str, set_by: SetBy) -> Result<(), InvalidValue> {
        SETTINGS[index].set(&mut self.config, text, &set_by)?;
        self.set_by[index] = set_by;
        Ok(())
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    pub fn into_config(self) -> Config {
        self.config
    }

    /// Every setting as it is in effect, in the order of the table.
    pub fn settings(&self) -> impl Iterator<Item = Effective<'_>> {
        self.config.shown().zip(&self.set_by).map(|((setting, value), set_by)| Effective { setting, value, set_by })
    }
}

impl Default for LoadedConfig {
    /// The defaults.
    fn default() -> Self {
        Self { config: Config::default(), set_by: [const { SetBy::Default }; SETTINGS.len()] }
    }
}

impl Config {
    /// Every setting with its value. Of a secret only `set` or `not set`.
    fn shown(&self) -> impl Iterator<Item = (&'static Setting, String)> + use<> {
        let mut copy = self.clone();
        SETTINGS.iter().map(move |setting| (setting, setting.show(&mut copy)))
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.shown().map(|(setting, value)| (setting.name, value))).finish()
    }
}

/// The arguments of `serve`: one flag for each setting, and `--config`.
pub fn args() -> impl IntoIterator<Item = Arg> {
    let file = Arg::new("config")
        .long("config")
        .value_name("FILE")
        .help(format!("TOML file with settings\n[env: CONFIG_FILE] [default: {DEFAULT_FILE} where it exists]"));
    std::iter::once(file).chain(SETTINGS.iter().map(Setting::arg))
}

/// In which line of a TOML text something is wrong, and what, without line breaks.
pub fn fault_in_toml(text: &str, error: &toml::de::Error) -> (usize, String) {
    let line = error.span().map_or(1, |span| 1 + text[..span.start].matches('\n').count());
    (line, error.message().replace('\n', ", "))
}

/// Why a configuration cannot be used, in one line.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error(transparent)]
    Value(#[from] InvalidValue),
    #[error("{0} (environment) is not UTF-8")]
    NotUtf8(&'static str),
    #[error("configuration file {0} cannot be read: {1}")]
    Unreadable(String, std::io::Error),
    #[error("{0}, line {1}: {2}")]
    Syntax(String, usize, String),
    #[error("{1} in {0} is (not shown): expected a string in quotes")]
    NotAString(String, String),
    #[error("{0} has the unknown setting {1:?}; event-pipeline serve --help lists all of them")]
    Unknown(String, String),
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::num::NonZeroU32;
    use std::time::Duration;

    use super::*;
    use crate::config::{CorsOrigins, Durability, LogFormat, Rate, reloadable};

    fn flags(args: &[&str]) -> ArgMatches {
        clap::Command::new("serve").no_binary_name(true).args(super::args()).get_matches_from(args)
    }

    fn load(args: &[&str], env: &[(&str, &str)], file: &str) -> Result<Config, ConfigError> {
        load_with_set_by(args, env, file).map(LoadedConfig::into_config)
    }

    fn load_with_set_by(args: &[&str], env: &[(&str, &str)], file: &str) -> Result<LoadedConfig, ConfigError> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("pipeline.toml");
        std::fs::write(&path, file).expect("a temporary file");
        let env = |name: &str| env.iter().find(|(n, _)| *n == name).map(|(_, value)| value.into());
        LoadedConfig::load_from(&flags(args), env, &path)
    }

    #[test]
    fn flags_beat_environment_beats_file_beats_defaults() {
        let check = |args: &[&str], env: &[(&str, &str)], file: &str, port: u16| {
            assert_eq!(load(args, env, file).expect("a valid configuration").port, port);
        };
        check(&[], &[], "", 8001);
        check(&[], &[], "port = 1", 1);
        check(&[], &[("PORT", "2")], "port = 1", 2);
        check(&["--port", "3"], &[("PORT", "2")], "port = 1", 3);
        check(&["--port=3"], &[], "", 3);
    }

    #[test]
    fn a_setting_knows_what_has_set_it() {
        let check = |args: &[&str], env: &[(&str, &str)], file: &str, expected: fn(&SetBy) -> bool| {
            let loaded = load_with_set_by(args, env, file).expect("a valid configuration");
            let set_by = |name| loaded.settings().find(|shown| shown.setting.name == name).expect("a setting").set_by;
            assert!(expected(set_by("PORT")), "{args:?} {env:?} {file:?}: {:?}", set_by("PORT"));
            assert_eq!(*set_by("HOST"), SetBy::Default);
        };
        check(&[], &[], "", |set_by| *set_by == SetBy::Default);
        // Also if it is the default that is set.
        check(&[], &[], "port = 8001", |set_by| matches!(set_by, SetBy::File(path) if path.ends_with("pipeline.toml")));
        check(&[], &[("PORT", "2")], "port = 1", |set_by| *set_by == SetBy::Environment);
        check(&["--port", "3"], &[("PORT", "2")], "port = 1", |set_by| *set_by == SetBy::Flag);
    }

    #[test]
    fn a_named_file_must_exist_and_replaces_the_default_one() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("own.toml");
        std::fs::write(&path, "port = 7").expect("a temporary file");
        let path = path.to_str().expect("a UTF-8 path");
        assert_eq!(load(&["--config", path], &[("CONFIG_FILE", "missing.toml")], "port = 1").expect("valid").port, 7);
        assert_eq!(load(&[], &[("CONFIG_FILE", path)], "port = 1").expect("valid").port, 7);
        let error = load(&[], &[("CONFIG_FILE", "missing.toml")], "").expect_err("no such file").to_string();
        assert!(error.starts_with("configuration file missing.toml cannot be read: "), "{error}");
    }

    #[test]
    fn every_spelling_of_a_value_is_read() {
        let config = load(
            &["--require-auth", "--network-threads", "3"],
            &[
                ("HOST", "localhost"),
                ("CORS_ORIGINS", r#"["https://a.example/", "http://localhost:3000"]"#),
                ("LOG_LEVEL", "WARNING,event_pipeline=debug"),
                ("RATE_LIMIT_PUBLISH", "200/minute"),
                ("RATE_LIMIT_QUERY", "5 per seconds"),
                ("RATE_LIMIT_ADMIN", ""),
                ("EVENT_TYPES", "coffee_break=Everybody left, bell = It rang"),
            ],
            r#"
            max_queue_bytes = "1 GiB"
            max_body_bytes = 4096
            max_ws_message_bytes = "64kib"
            write_timeout_seconds = 0.5
            header_timeout_seconds = "2"
            durability = "Normal"
            log_format = "json"
            rate_limit_admin = "1/day"
            cors_origins = ["https://overridden.example"]
            [event_types]
            overridden = "by the environment"
            "#,
        )
        .expect("a valid configuration");
        assert_eq!(config.host, Ipv4Addr::LOCALHOST);
        assert_eq!(config.require_auth, Some(true));
        assert_eq!(config.network_threads, 3);
        let origins = ["https://a.example", "http://localhost:3000"].map(str::to_owned);
        assert_eq!(config.cors_origins, CorsOrigins::List(origins.into()));
        assert_eq!(config.log_level, "warn,event_pipeline=debug");
        let rate =
            |count, seconds| NonZeroU32::new(count).map(|count| Rate { count, per: Duration::from_secs(seconds) });
        assert_eq!(config.rate_limit_publish, rate(200, 60));
        assert_eq!(config.rate_limit_query, rate(5, 1));
        assert_eq!(config.rate_limit_admin, None);
        assert_eq!(config.max_queue_bytes, 1 << 30);
        assert_eq!(config.max_body_bytes, 4096);
        assert_eq!(config.max_ws_message_bytes, 65_536);
        assert_eq!(config.write_timeout, Duration::from_millis(500));
        assert_eq!(config.header_timeout, Duration::from_secs(2));
        assert_eq!(config.durability, Durability::Normal);
        assert_eq!(config.log_format, LogFormat::Json);
        assert!(config.event_types.get("bell").is_some() && config.event_types.get("overridden").is_none());
    }

    #[test]
    fn event_types_come_from_a_table_of_the_file() {
        let config =
            load(&[], &[], "[event_types]\ncoffee_break = \"Everybody left, for tea = fine\"\n").expect("valid");
        let added = config.event_types.iter().find(|(name, _)| *name == "coffee_break");
        assert_eq!(added, Some(("coffee_break", "Everybody left, for tea = fine")));
        assert_eq!(config.event_types.iter().count(), 16);
    }

    #[test]
    fn a_value_reads_back_as_it_is_shown() {
        let mut defaults = Config::default();
        for setting in SETTINGS.iter().filter(|s| !s.is_secret()) {
            let shown = setting.show(&mut defaults);
            let mut config = Config::default();
            setting.set(&mut config, &shown, &SetBy::Flag).expect("what is shown is allowed");
            assert_eq!(setting.show(&mut config), shown, "{}", setting.name);
        }
        let types = |text| {
            let config = load(&[], &[("EVENT_TYPES", text)], "").expect("valid");
            config.shown().find(|(setting, _)| setting.name == "EVENT_TYPES").expect("it is a setting").1
        };
        let shown = types(r#"{"bell": "It rings, twice", "pause": ""}"#);
        assert_eq!(types(&shown), shown);
    }

    #[test]
    fn an_invalid_value_is_one_line_that_names_the_setting() {
        let check = |args: &[&str], env: &[(&str, &str)], file: &str, expected: &str| {
            let error = load(args, env, file).expect_err(expected).to_string();
            assert!(!error.contains('\n'), "{error}");
            assert!(error.contains(expected), "{error}\nlacks {expected}");
        };
        let env = |name, value, expected: &str| {
            check(&[], &[(name, value)], "", &format!("{name} (environment) is {value:?}: expected {expected}"));
        };
        env("HOST", "everywhere", "an IP address");
        env("PORT", "65536", "a whole number from 0 to 65535");
        env("PORT", "", "a whole number");
        env("DATABASE_PATH", ":memory:", "the path of a file");
        for origin in [
            "https://user:word@a.example",
            "https://a.example?x",
            "https://a.example#x",
            "http://[::1",
            "https://a.example:443",
            "HTTP://a.example:80",
        ] {
            env("CORS_ORIGINS", origin, "auto, *, or origins");
        }
        check(&[], &[], "api_key = [\"secret\"]", "is (not shown): expected a string in quotes");
        check(&[], &[], "api_key = 1979-05-27", "is (not shown): expected a string in quotes");
        env("CORS_ORIGINS", "localhost", "auto, *, or origins");
        env("CORS_ORIGINS", "[1]", "auto, *, or origins");
        env("CORS_ORIGINS", r#"["https://a.example,https://b.example"]"#, "auto, *, or origins");
        env("CORS_ORIGINS", r#"["[https://a.example"]"#, "auto, *, or origins");
        env("NETWORK_THREADS", "0", "a whole number from 1 to 256");
        env("REQUIRE_AUTH", "maybe", "true, false or auto");
        env("RATE_LIMIT_PUBLISH", "200/fortnight", "a rate such as 200/minute");
        env("RATE_LIMIT_QUERY", "0/minute", "a rate");
        env("RATE_LIMIT_ADMIN", "many", "a rate");
        env("DATABASE_PATH", "", "the path of a file");
        env("DURABILITY", "maximal", "full, normal or off");
        env("FREE_SPACE_MIN_BYTES", "-1", "a size from 0 to 1024 GiB");
        env("MAX_PAYLOAD_KEYS", "1.5", "a whole number");
        env("MAX_PAYLOAD_BYTES", "17 MiB", "a size from 2 to 16 MiB");
        env("MAX_BODY_BYTES", "1 parsec", "a size");
        env("MAX_QUEUE_SIZE", "0", "a whole number from 1 to 10000000");
        env("EVENT_TYPES", "Bad Name=x", "name=description pairs");
        env("EVENT_TYPES", "lonely", "name=description pairs");
        env("KEEPALIVE_SECONDS", "NaN", "seconds from 0.01 to 86400");
        env("HEADER_TIMEOUT_SECONDS", "0", "seconds");
        env("BODY_TIMEOUT_SECONDS", "soon", "seconds");
        env("LOG_LEVEL", "chatty", "trace, debug");
        env("LOG_LEVEL", "event_pipeline=loud", "trace, debug");
        env("LOG_FORMAT", "xml", "text or json");
        env("HOST", "two\nlines", "an IP address");
        check(&["--port", "x"], &[], "", "--port is \"x\": expected a whole number");
        check(&[], &[], "port = true", "pipeline.toml is \"true\": expected a whole number");
        check(&[], &[], "max_queue_sizes = 5", "pipeline.toml has the unknown setting \"max_queue_sizes\"");
        check(&[], &[], "[storage]\nport = 5", "unknown setting \"storage\"");
        check(&[], &[], "port = 5\nhost = \n", "pipeline.toml, line 2: ");
        check(&[], &[], "[event_types]\nbell = 5", "event_types in ");
    }

    #[test]
    fn a_setting_that_is_built_in_at_the_start_is_not_reloadable() {
        let reloadable: Vec<_> = reloadable().collect();
        for name in ["PORT", "NETWORK_THREADS", "DATABASE_PATH", "MAX_QUEUE_BYTES", "EVENT_TYPES"] {
            assert!(!reloadable.contains(&name), "{name}");
        }
        for name in ["API_KEY", "RATE_LIMIT_PUBLISH", "MAX_SUBSCRIBERS", "WRITE_TIMEOUT_SECONDS", "LOG_LEVEL"] {
            assert!(reloadable.contains(&name), "{name}");
        }
    }

    #[test]
    fn the_key_is_never_shown() {
        let config = load(&[], &[("API_KEY", "opensesame")], "").expect("valid");
        assert_eq!(config.api_key, "opensesame");
        let shown = format!("{config:?}");
        assert!(shown.contains(r#""API_KEY": "set""#) && !shown.contains("opensesame"), "{shown}");
        assert!(format!("{:?}", Config::default()).contains(r#""API_KEY": "not set""#));
        let error = load(&[], &[("API_KEY", "open\nsesame")], "").expect_err("no header can carry it").to_string();
        assert!(!error.contains("sesame"), "{error}");
    }

    #[test]
    fn the_help_names_every_setting_with_its_default() {
        let help = clap::Command::new("serve").args(super::args()).render_help().to_string();
        for part in ["--max-queue-size <N>", "[env: MAX_QUEUE_BYTES] [default: 64 MiB]", "--config <FILE>", "Timeouts:"]
        {
            assert!(help.contains(part), "{help}");
        }
    }
}
