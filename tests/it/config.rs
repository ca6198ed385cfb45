//! Settings: their precedence, and one line that names an invalid one.

use std::path::Path;

use event_pipeline::config::SETTINGS;
use serde_json::{Value, json};

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
        ("API_KEY", "sixteen letters!"),
        ("LOG_LEVEL", "INFO"),
        ("RATE_LIMIT_QUERY", "200 per minute"),
    ]);
    server.get("/stats").refusal(401);
    assert_eq!(server.call("GET", "/stats", &[("X-API-Key", "sixteen letters!")], b"").status, 200);
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
fn the_settings_are_logged_only_at_debug_and_without_secrets() {
    let is_setting = |line: &&String| line.contains("\"setting\"");
    let settings = [("API_KEY", "very secret"), ("MAX_QUEUE_SIZE", "4321")];
    let server = Server::with(&[&settings[..], &[("LOG_LEVEL", "debug")]].concat());
    let log = server.log();
    assert_eq!(log.iter().filter(is_setting).count(), SETTINGS.len());
    let queue = log.iter().find(|line| line.contains("MAX_QUEUE_SIZE")).unwrap();
    assert!(queue.contains("4321") && queue.contains("environment MAX_QUEUE_SIZE"), "{queue}");
    assert!(log.iter().all(|line| !line.contains("very secret")));

    let server = Server::with(&settings);
    assert!(!server.log().iter().any(|line| is_setting(&line) || line.contains("very secret")));
}

/// The block that a server logs once it listens, without the time and with `PORT` for its port.
fn greeting(folder: &Path, environment: &[(&str, &str)]) -> String {
    let mut serve = command(folder);
    let environment = [("LOG_FORMAT", "text"), ("DATABASE_PATH", "data/events.db")].iter().chain(environment).copied();
    let process = Process::watch(serve.arg("serve").envs(environment));
    process.log.wait_for("  access  ");
    let lines = process.log.lines();
    let begin = lines.iter().position(|line| line.contains("is ready")).unwrap();
    let first = lines[begin].split("server: ").nth(1).unwrap().to_owned();
    let block = [&[first], &lines[begin + 1..begin + 5]].concat().join("\n");
    let port: String = block.split("://localhost:").nth(1).unwrap().chars().take_while(char::is_ascii_digit).collect();
    assert!(port.parse::<u16>().is_ok_and(|port| port > 0), "{block}");
    block.replace(&format!(":{port}"), ":PORT")
}

#[test]
fn a_start_says_where_to_open_it_where_the_data_is_and_who_may_connect() {
    let mut server = Server::start();
    server.publish_lines(&ticks("s", 1234));
    server.stop();
    let check = |folder: &Path, environment: &[(&str, &str)], data: &str, access: &str| {
        let expected = format!(
            "event-pipeline {} is ready\n  \
             open    http://localhost:PORT/ and http://localhost:PORT/docs\n  \
             listen  0.0.0.0:PORT, all IPv4 addresses of this machine\n  \
             data    {}: {data}\n  access  {access}",
            env!("CARGO_PKG_VERSION"),
            database(folder).display(),
        );
        assert_eq!(
            greeting(folder, &[&[("HOST", "0.0.0.0"), ("ALLOW_UNAUTHENTICATED", "true")], environment].concat()),
            expected
        );
    };
    let empty = tempfile::tempdir().unwrap();
    check(
        empty.path(),
        &[],
        "empty",
        "everyone who can reach this machine, without a key; web pages of this machine only",
    );
    check(
        server.folder(),
        &[("REQUIRE_AUTH", "true"), ("API_KEY", "sixteen letters!"), ("CORS_ORIGINS", "https://school.example")],
        "1,234 events, last id evt_0000000004d2",
        "everyone who can reach this machine, with the API_KEY; web pages only from https://school.example",
    );
}

#[test]
fn a_start_is_one_structured_line_in_json() {
    let server = Server::with(&[("REQUIRE_AUTH", "true"), ("API_KEY", "sixteen letters!")]);
    let url = format!("http://localhost:{}/", server.addr.port());
    let expected = json!({
        "message": "listening",
        "address": server.addr.to_string(),
        "version": env!("CARGO_PKG_VERSION"),
        "url": url,
        "docs": format!("{url}docs"),
        "database": database(server.folder()).to_str().unwrap(),
        "events": 0,
        "last_event": id_of(0),
        "access": "key",
        "origins": "*",
    });
    let log = server.log();
    let told = log.iter().map(|line| serde_json::from_str::<Value>(line).unwrap()["fields"].clone());
    let told: Vec<_> = told.filter(|fields| fields["message"] == "listening").collect();
    assert_eq!(told, [expected]);
}

/// Runs `config show`, which must succeed.
fn shown(folder: &Path, environment: &[(&str, &str)], arguments: &[&str]) -> String {
    let mut show = command(folder);
    let show = show.args(["config", "show"]).args(arguments).envs(environment.iter().copied());
    let finished = Run::start(show, "").finish();
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    finished.stdout
}

#[test]
fn config_show_tells_every_setting_with_what_has_set_it() {
    let folder = tempfile::tempdir().unwrap();
    let file = "max_queue_size = 5\nmax_body_bytes = 4096\nport = 1\n";
    std::fs::write(folder.path().join("event-pipeline.toml"), file).unwrap();
    let environment = [("MAX_BODY_BYTES", "8 KiB"), ("API_KEY", "very secret"), ("CONFIG_FILE", "event-pipeline.toml")];
    let flags = ["--port", "9000", "--require-auth"];

    let text = shown(folder.path(), &environment, &flags);
    assert!(text.starts_with("Listening\n  HOST "), "{text}");
    assert!(!text.contains("very secret"), "{text}");
    let row = |name: &str| {
        let row = text.lines().find(|line| line.trim_start().starts_with(name)).unwrap();
        row.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect::<Vec<_>>()
    };
    assert_eq!(row("HOST "), ["HOST", "127.0.0.1", "environment HOST"]);
    assert_eq!(row("PORT "), ["PORT", "9000", "flag --port"]);
    assert_eq!(row("MAX_QUEUE_SIZE "), ["MAX_QUEUE_SIZE", "5", "file event-pipeline.toml"]);
    assert_eq!(row("MAX_BODY_BYTES "), ["MAX_BODY_BYTES", "8 KiB", "environment MAX_BODY_BYTES"]);
    assert_eq!(row("MAX_QUEUE_BYTES "), ["MAX_QUEUE_BYTES", "64 MiB", "default"]);
    assert_eq!(row("API_KEY "), ["API_KEY", "set", "environment API_KEY"]);

    let told = shown(folder.path(), &environment, &[&flags[..], &["--json"]].concat());
    assert!(!told.contains("very secret"), "{told}");
    let told: Value = serde_json::from_str(&told).unwrap();
    let settings = told["settings"].as_array().unwrap();
    let names: Vec<_> = settings.iter().map(|setting| setting["name"].as_str().unwrap()).collect();
    assert_eq!(names, SETTINGS.iter().map(|setting| setting.name).collect::<Vec<_>>());
    let setting = |name: &str| settings.iter().find(|setting| setting["name"] == name).unwrap().clone();
    let expected = |name: &str, heading: &str, value: &str, set_by: &str, place: Option<&str>| {
        let secret = name == "API_KEY";
        json!({"name": name, "heading": heading, "value": value, "secret": secret, "set_by": set_by, "where": place})
    };
    assert_eq!(setting("PORT"), expected("PORT", "Listening", "9000", "flag", Some("--port")));
    assert_eq!(setting("REQUIRE_AUTH"), expected("REQUIRE_AUTH", "Access", "true", "flag", Some("--require-auth")));
    assert_eq!(setting("API_KEY"), expected("API_KEY", "Access", "set", "environment", Some("API_KEY")));
    let queue = expected("MAX_QUEUE_SIZE", "Limits", "5", "file", Some("event-pipeline.toml"));
    assert_eq!(setting("MAX_QUEUE_SIZE"), queue);
    assert_eq!(setting("DURABILITY"), expected("DURABILITY", "Storage", "full", "default", None));
    assert!(!folder.path().join("data").exists(), "it opens no database");
}

#[test]
fn config_show_refuses_what_serve_refuses() {
    let folder = tempfile::tempdir().unwrap();
    let finish = |words: &[&str]| Run::start(command(folder.path()).args(words).args(["--port", "x"]), "").finish();
    let (show, serve) = (finish(&["config", "show"]), finish(&["serve"]));
    assert_eq!((show.code, show.stderr, show.stdout), (Some(2), serve.stderr, String::new()));
    for usage in [&["config"][..], &["config", "show", "--faster"], &["config", "dance"]] {
        assert_eq!(Run::start(command(folder.path()).args(usage), "").finish().code, Some(2), "{usage:?}");
    }
}

/// Runs `config check` and gives its exit code and what it has found: the severity and the setting.
fn checked(folder: &Path, environment: &[(&str, &str)], arguments: &[&str]) -> (Option<i32>, Vec<String>) {
    let run = |more: &[&str]| {
        let mut check = command(folder);
        let check = check.args(["config", "check"]).args(arguments).args(more).envs(environment.iter().copied());
        Run::start(check, "").finish()
    };
    let (text, found) = (run(&[]), run(&["--json"]));
    assert_eq!(text.code, found.code);
    let found: Value = serde_json::from_str(&found.stdout).unwrap_or_default();
    let found = found["findings"].as_array().cloned().unwrap_or_default();
    let found = found.iter().map(|one| format!("{}: {}", text_of(&one["severity"]), text_of(&one["setting"])));
    let found: Vec<_> = found.collect();
    for (line, one) in text.stdout.lines().zip(&found) {
        assert!(line.starts_with(&format!("{one}: ")) && line.contains("; "), "{line}");
    }
    (text.code, found)
}

#[test]
fn config_check_names_what_is_dangerous_or_contradictory() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let secret = "0123456789abcdef0123456789abcdef";
    let check = |environment: &[(&str, &str)], expected: &[&str]| {
        let (code, found) =
            checked(folder, &[&[("DURABILITY", "full"), ("FREE_SPACE_MIN_BYTES", "1 MiB")], environment].concat(), &[]);
        assert_eq!(found, expected, "{environment:?}");
        assert_eq!(code, Some(i32::from(!expected.is_empty())), "{environment:?}");
    };
    check(&[], &[]);
    check(&[("API_KEY", secret)], &["danger: API_KEY"]);
    check(&[("API_KEY", secret), ("REQUIRE_AUTH", "true")], &[]);
    check(&[("API_KEY", "aaaaaaaaaaaaaaaaaaaaaaaa"), ("REQUIRE_AUTH", "true")], &["danger: API_KEY"]);
    check(&[("REQUIRE_AUTH", "true")], &["danger: REQUIRE_AUTH"]);
    check(&[("CORS_ORIGINS", "*"), ("ALLOWED_HOSTS", "*")], &["danger: CORS_ORIGINS", "danger: ALLOWED_HOSTS"]);
    check(&[("TRUSTED_PROXIES", "0.0.0.0/0")], &["danger: TRUSTED_PROXIES"]);
    check(&[("TRUSTED_PROXIES", "10.0.0.0/8,2001:db8::/32")], &[]);
    check(
        &[("DURABILITY", "normal"), ("FREE_SPACE_MIN_BYTES", "0")],
        &["warning: DURABILITY", "warning: FREE_SPACE_MIN_BYTES"],
    );
    check(&[("DURABILITY", "off")], &["danger: DURABILITY"]);
    check(&[("JWT_SECRET", secret)], &["warning: JWT_AUDIENCE", "warning: JWT_ISSUER"]);
    check(&[("JWT_SECRET", "short"), ("JWT_AUDIENCE", "a"), ("JWT_ISSUER", "i")], &["danger: JWT_SECRET"]);
    check(&[("JWT_AUDIENCE", "a")], &["warning: JWT_AUDIENCE"]);
    check(&[("ALLOW_UNAUTHENTICATED", "true")], &["warning: ALLOW_UNAUTHENTICATED"]);
    let rates = ["warning: RATE_LIMIT_PUBLISH", "warning: RATE_LIMIT_QUERY", "warning: RATE_LIMIT_ADMIN"];
    let public = |first: &[&'static str]| [first, &rates].concat();
    check(&[("HOST", "0.0.0.0")], &public(&["danger: HOST", "danger: TLS_CERT"]));
    let open = [("HOST", "::"), ("ALLOW_UNAUTHENTICATED", "true")];
    check(&open, &public(&["danger: ALLOW_UNAUTHENTICATED", "danger: TLS_CERT"]));
    let limited = ["RATE_LIMIT_PUBLISH", "RATE_LIMIT_QUERY", "RATE_LIMIT_ADMIN"].map(|setting| (setting, "1/second"));
    let behind =
        [("HOST", "192.0.2.1"), ("TRUSTED_PROXIES", "192.0.2.2"), ("REQUIRE_AUTH", "true"), ("API_KEY", secret)];
    check(&[&behind[..], &limited].concat(), &["warning: TLS_CERT"]);
    let trial = [("HOST", "192.0.2.1"), ("TLS_SELF_SIGNED", "true"), ("REQUIRE_AUTH", "true"), ("API_KEY", secret)];
    check(&[&trial[..], &limited].concat(), &["warning: TLS_SELF_SIGNED"]);

    // Files with secrets, and keys that have ended.
    let mode = |path: &Path, mode| {
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    };
    let keys = folder.join("data/keys.toml");
    std::fs::create_dir_all(folder.join("data")).unwrap();
    let digest = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    let key = format!("[[keys]]\nid = 'a'\nname = 'one'\nsha256 = '{digest}'\nscopes = ['query']\n");
    std::fs::write(&keys, format!("{key}expires = '2020-01-01T00:00:00Z'\n")).unwrap();
    mode(&keys, 0o646);
    check(&[], &["danger: KEYS_FILE", "warning: KEYS_FILE", "warning: KEYS_FILE"]);
    std::fs::write(&keys, key).unwrap();
    mode(&keys, 0o600);
    check(&[], &[]);
    check(&[("REQUIRE_AUTH", "false")], &["danger: REQUIRE_AUTH"]);
    let audit = folder.join("audit.jsonl");
    for file in [&audit, &audit.with_added_extension("key")] {
        std::fs::write(file, "").unwrap();
        mode(file, 0o644);
    }
    check(&[("AUDIT_FILE", audit.to_str().unwrap())], &["danger: AUDIT_FILE", "warning: AUDIT_FILE"]);
    let tls_key = folder.join("tls.key");
    std::fs::write(&tls_key, "").unwrap();
    mode(&tls_key, 0o644);
    let tls = tls_key.to_str().unwrap();
    check(&[("TLS_CERT", tls), ("TLS_KEY", tls)], &["danger: TLS_KEY"]);
    let toml = folder.join("event-pipeline.toml");
    std::fs::write(&toml, format!("jwt_secret = '{secret}'\njwt_audience = 'a'\njwt_issuer = 'i'\n")).unwrap();
    mode(&toml, 0o644);
    check(&[("CONFIG_FILE", toml.to_str().unwrap())], &["danger: JWT_SECRET"]);
    mode(&toml, 0o600);
    check(&[("CONFIG_FILE", toml.to_str().unwrap())], &[]);
    let (code, found) = checked(folder, &[], &["--api-key", secret]);
    assert_eq!((code, found), (Some(1), vec!["danger: API_KEY".to_owned()]));

    // What cannot be used is no finding.
    for environment in [("PORT", "x"), ("KEYS_FILE", "/nowhere/keys.toml"), ("JWT_KEYS_FILE", "/nowhere/keys.pem")] {
        assert_eq!(checked(folder, &[environment], &[]), (Some(2), Vec::new()), "{environment:?}");
    }
}
