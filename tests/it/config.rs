//! Settings: their precedence, and one line that names an invalid one.

use std::path::Path;

use serde_json::json;

use crate::support::*;

/// Starts the server, which must refuse with exit code 2 and a single line that names the setting.
fn refuse(what: &str, setting: &str, environment: &[(&str, &str)], arguments: &[&str], toml: Option<&str>) {
    let folder = tempfile::tempdir().unwrap();
    let mut arguments = arguments.to_vec();
    let path = folder.path().join("settings.toml");
    if let Some(toml) = toml {
        std::fs::write(&path, toml).unwrap();
        arguments.extend(["--config", path.to_str().unwrap()]);
    }
    let mut serve = command(folder.path());
    let serve = Run::start(serve.arg("serve").envs(environment.iter().copied()).args(&arguments), "").finish();
    let complaint = serve.stderr;
    assert_eq!(serve.code, Some(2), "{what}: {complaint}");
    assert_eq!(complaint.trim_end().lines().count(), 1, "{what}: {complaint}");
    let named = complaint.to_lowercase().replace('-', "_").contains(&setting.to_lowercase());
    assert!(named, "{what}: the line does not name {setting}: {complaint}");
    assert!(!folder.path().join("data").exists(), "{what}: nothing was opened before the settings were valid");
}

const BAD: [(&str, &[&str]); 22] = [
    ("HOST", &["nonsense value", "999.1.1.1"]),
    ("PORT", &["70000", "-1", "http", "80.5"]),
    ("REQUIRE_AUTH", &["perhaps", "2"]),
    ("LOG_FORMAT", &["xml"]),
    ("LOG_LEVEL", &["=== nonsense ==="]),
    ("MAX_QUEUE_SIZE", &["0", "-1", "many", "1.5", "99999999999999999999999"]),
    ("MAX_SUBSCRIBERS", &["-1", "all"]),
    ("MAX_WS_MESSAGE_BYTES", &["-1", "99999999999", "1MB?"]),
    ("MAX_WS_CONNECTIONS_PER_IP", &["-1", "few"]),
    ("MAX_PAYLOAD_KEYS", &["-1", "fifty"]),
    ("MAX_PAYLOAD_BYTES", &["-1", "64 thousand"]),
    ("MAX_BODY_BYTES", &["-1", "x"]),
    ("MAX_IN_FLIGHT", &["0", "x"]),
    ("RATE_LIMIT_PUBLISH", &["fast", "10/fortnight", "0/minute", "-1/minute", "/minute", "10/"]),
    ("RATE_LIMIT_QUERY", &["fast"]),
    ("RATE_LIMIT_ADMIN", &["10"]),
    ("DURABILITY", &["probably"]),
    ("NETWORK_THREADS", &["0", "x"]),
    ("SUBSCRIBE_TIMEOUT_SECONDS", &["-1", "soon", "NaN", "inf"]),
    ("KEEPALIVE_SECONDS", &["-0.5", "never"]),
    ("FREE_SPACE_MIN_BYTES", &["-1", "x"]),
    ("EVENT_TYPES", &["Not A Name=description"]),
];

#[test]
fn an_invalid_environment_variable_stops_the_start() {
    for (setting, values) in BAD {
        for value in values {
            refuse(&format!("{setting}={value}"), setting, &[(setting, value)], &[], None);
        }
    }
}

#[test]
fn an_invalid_flag_stops_the_start() {
    for (setting, values) in BAD.iter().filter(|(setting, _)| *setting != "EVENT_TYPES") {
        let flag = format!("--{}={}", setting.to_lowercase().replace('_', "-"), values[0]);
        refuse(&flag, setting, &[], &[&flag], None);
    }
}

#[test]
fn an_invalid_file_stops_the_start() {
    for (setting, values) in BAD.iter().filter(|(setting, _)| *setting != "EVENT_TYPES") {
        let toml = format!("{} = {}\n", setting.to_lowercase(), json!(values[0]));
        refuse(&toml, setting, &[], &[], Some(&toml));
    }
    refuse("an unknown key", "max_queue_siez", &[], &[], Some("max_queue_siez = 5\n"));
    refuse("a wrong type", "max_queue_size", &[], &[], Some("max_queue_size = [1]\n"));
    refuse("no TOML", "settings.toml", &[], &[], Some("max_queue_size = = 5\n"));
    refuse("a bad type name", "event_types", &[], &[], Some("[event_types]\n\"Not A Name\" = \"x\"\n"));
    refuse("a missing file", "absent.toml", &[], &["--config", "absent.toml"], None);
    refuse("a missing file", "absent.toml", &[("CONFIG_FILE", "absent.toml")], &[], None);
}

/// The number of payload keys that a server accepts with this configuration.
fn keys_allowed(file: Option<&str>, environment: Option<&str>, flag: Option<&str>) -> usize {
    let folder = tempfile::tempdir().unwrap();
    let mut settings = Vec::new();
    if let Some(keys) = file {
        // A file with this name is read without a flag.
        std::fs::write(folder.path().join("event-pipeline.toml"), format!("max_payload_keys = {keys}\n")).unwrap();
    }
    if let Some(keys) = environment {
        settings.push(("MAX_PAYLOAD_KEYS".to_string(), keys.to_string()));
    }
    let flag = flag.map(|keys| format!("--max-payload-keys={keys}"));
    let arguments: Vec<_> = ["serve"].into_iter().chain(flag.as_deref()).collect();
    let process = Process::spawn(folder.path(), &settings, &arguments);
    let addr = process.address();
    let accepted = |keys: usize| {
        let payload: serde_json::Map<_, _> = (0..keys).map(|n| (format!("k{n}"), json!(n))).collect();
        let event = json!({"event_type": "timer_tick", "source": "it", "payload": payload}).to_string();
        call(addr, "POST", "/events", &[JSON], event.as_bytes()).status == 201
    };
    (0..100).take_while(|keys| accepted(keys + 1)).count()
}

#[test]
fn flags_override_the_environment_which_overrides_the_file() {
    assert_eq!(keys_allowed(None, None, None), 50);
    assert_eq!(keys_allowed(Some("3"), None, None), 3);
    assert_eq!(keys_allowed(Some("3"), Some("5"), None), 5);
    assert_eq!(keys_allowed(Some("3"), Some("5"), Some("7")), 7);
    assert_eq!(keys_allowed(None, None, Some("7")), 7);
}

#[test]
fn the_file_can_add_event_types() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(
        folder.path().join("event-pipeline.toml"),
        "[event_types]\nhand_raised = \"A student raised a hand\"\n",
    )
    .unwrap();
    let server = Server::in_folder(folder, &[]);
    assert_eq!(server.get_json("/event-types")["hand_raised"], "A student raised a hand");
    server.publish(r#"{"event_type":"hand_raised","source":"it"}"#);
    assert_eq!(server.stored("event_type=hand_raised").len(), 1);
    server.subscriber(&json!({"event_types": ["hand_raised"]}));
}

#[test]
fn spellings_of_the_former_service_are_understood() {
    let server = Server::with(&[
        ("REQUIRE_AUTH", "True"),
        ("API_KEY", "k"),
        ("LOG_LEVEL", "INFO"),
        ("RATE_LIMIT_QUERY", "200 per minute"),
    ]);
    server.get("/stats").refusal(401);
    assert_eq!(server.call("GET", "/stats", &[("X-API-Key", "k")], b"").status, 200);
}

/// Runs `serve`, which must fail, and returns its output.
fn failure(folder: &Path, environment: &[(&str, &str)]) -> String {
    let serve = Run::start(command(folder).arg("serve").envs(environment.iter().copied()), "").finish();
    assert!(serve.code.is_some_and(|code| code > 0), "{environment:?}: {:?}", serve.code);
    assert!(!serve.stderr.contains("panicked"), "{}", serve.stderr);
    serve.stderr
}

#[test]
fn a_port_in_use_stops_the_start_and_is_named() {
    let server = Server::start();
    let folder = tempfile::tempdir().unwrap();
    let words = failure(folder.path(), &[("PORT", &server.addr.port().to_string())]);
    assert!(words.contains(&server.addr.port().to_string()), "{words}");
}

#[test]
fn a_database_that_cannot_be_created_stops_the_start_and_is_named() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("plain-file"), "").unwrap();
    let words = failure(folder.path(), &[("DATABASE_PATH", "plain-file/events.db")]);
    assert!(words.contains("plain-file"), "{words}");
}

#[test]
fn the_effective_settings_are_logged_without_secrets() {
    let server = Server::with(&[("API_KEY", "very secret"), ("MAX_QUEUE_SIZE", "4321")]);
    server.await_log("4321");
    assert!(server.log().iter().all(|line| !line.contains("very secret")));
}
