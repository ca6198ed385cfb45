//! Configuration files: an accepted one is shown as text that reads back as the same, and some values are computed a second
//! time. A refused one gives one line that shows no secret.

use std::time::Duration;

use event_pipeline::config::{Config, LoadedConfig};

const SECRET: &str = "opensesame";
/// The settings that are shown as `set` or `not set`.
const SECRETS: [&str; 2] = ["API_KEY", "JWT_SECRET"];

/// The text of a TOML file.
pub fn config(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    let mut loaded = LoadedConfig::default();
    if let Err(error) = loaded.apply(text, "some.toml") {
        let error = error.to_string();
        assert!(!error.contains(['\n', '\r']), "{error}");
        assert!(error.contains("some.toml"), "{error}");
        let is_of_secret = SECRETS.iter().any(|name| error.starts_with(&format!("{} in", name.to_lowercase())));
        assert!(!is_of_secret || error.contains("(not shown)"), "{error}");
        return;
    }
    let config = loaded.config();
    if text.matches(SECRET).count() == 1 && (config.api_key.contains(SECRET) || config.jwt_secret.contains(SECRET)) {
        assert!(!format!("{:?} {config:?}", shown(&loaded).collect::<Vec<_>>()).contains(SECRET));
    }
    let readable =
        |loaded: &LoadedConfig| shown(loaded).filter(|(name, _)| !SECRETS.contains(name)).collect::<Vec<_>>();
    let spelled = readable(&loaded)
        .iter()
        .map(|(name, value)| format!("{} = {}\n", name.to_lowercase(), toml::Value::from(&**value)))
        .collect::<String>();
    let mut again = LoadedConfig::default();
    again.apply(&spelled, "shown.toml").expect("what is shown is allowed");
    assert_eq!(readable(&again), readable(&loaded));
    worked_out_again(config, &text.parse().unwrap());
}

fn shown(loaded: &LoadedConfig) -> impl Iterator<Item = (&'static str, String)> {
    loaded.settings().map(|effective| (effective.setting.name, effective.value))
}

fn worked_out_again(config: &Config, file: &toml::Table) {
    let text = |name: &str| match file.get(name)? {
        toml::Value::String(text) => Some(text.trim().to_owned()),
        toml::Value::Float(number) => Some(serde_json::json!(number).to_string()),
        other => Some(other.to_string()),
    };
    if let Some(size) = text("max_body_bytes") {
        let size = size.to_ascii_lowercase();
        let (number, factor) = match size.strip_suffix('b') {
            None => (&*size, 1),
            Some(number) => match number.strip_suffix("ki").or(number.strip_suffix("mi")).or(number.strip_suffix("gi"))
            {
                None => (number, 1),
                Some(rest) => (rest, 1u128 << (10 * (1 + "kmg".find(&number[rest.len()..][..1]).unwrap()))),
            },
        };
        assert_eq!(config.max_body_bytes as u128, number.trim().parse::<u128>().unwrap() * factor);
        assert!((1..=256 << 20).contains(&config.max_body_bytes));
    }
    if let Some(seconds) = text("keepalive_seconds") {
        let seconds: f64 = seconds.parse().unwrap();
        assert!((0.01..=86_400.0).contains(&seconds));
        assert!(config.keepalive_interval.abs_diff(Duration::from_secs_f64(seconds)) <= Duration::from_nanos(1));
    }
    if let Some(port) = text("port") {
        assert_eq!(config.port, port.parse::<u16>().unwrap());
    }
    if let Some(rate) = text("rate_limit_publish") {
        match config.rate_limit_publish {
            None => assert!(rate.is_empty(), "{rate}"),
            Some(known) => {
                let (count, unit) = rate.split_once('/').unwrap();
                assert_eq!(known.count.get(), count.trim().parse::<u32>().unwrap());
                let seconds = match unit.trim().to_ascii_lowercase().trim_end_matches('s') {
                    "second" => 1,
                    "minute" => 60,
                    "hour" => 3_600,
                    "day" => 86_400,
                    other => panic!("{other}"),
                };
                assert_eq!(known.per.as_secs(), seconds);
            }
        }
    }
}
