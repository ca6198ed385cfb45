//! The interface documents are complete and agree with each other, their examples work, and served files are sent as HTTP
//! says. Every test that sees an answer checks that the server keeps to the documents ([`crate::support::interface`]).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read;

use event_pipeline::http::{Endpoint, Guard, PREFIX, ROUTES, Route};
use event_pipeline::wire::refusal::CLOSE_CODES;
use hyper::Method;
use ring::digest::{SHA256, digest};
use serde_json::{Value, json};

use crate::support::interface::{ASYNCAPI, Document, OPENAPI, sent_on};
use crate::support::*;

/// The pointer to the operation of a route.
fn operation(route: &Route) -> String {
    let path = route.template.replace('/', "~1");
    format!("/paths/{path}/{}", route.method.as_str().to_ascii_lowercase())
}

fn names<'a>(list: impl IntoIterator<Item = &'a Value>) -> BTreeSet<&'a str> {
    list.into_iter().map(|name| name.as_str().unwrap()).collect()
}

/// Each parameter of an operation.
fn parameters(operation: &str) -> Vec<&'static Value> {
    let list = OPENAPI.at(operation).get("parameters").and_then(Value::as_array);
    let follow = |parameter: &'static Value| match parameter.get("$ref") {
        Some(target) => OPENAPI.at(target.as_str().unwrap().strip_prefix('#').unwrap()),
        None => parameter,
    };
    list.map_or(Vec::new(), |list| list.iter().map(follow).collect())
}

#[test]
fn openapi_json_has_every_route_and_no_other() {
    let routes: BTreeSet<_> =
        ROUTES.iter().map(|route| (route.template, route.method.as_str().to_ascii_lowercase())).collect();
    let paths = OPENAPI.json["paths"].as_object().unwrap().iter();
    let described: BTreeSet<_> = paths
        .flat_map(|(path, methods)| {
            methods.as_object().unwrap().keys().map(move |method| (path.as_str(), method.clone()))
        })
        .collect();
    assert_eq!(described, routes);
}

#[test]
fn openapi_json_has_the_parameters_answers_and_key_of_every_route() {
    for route in &ROUTES {
        let operation = operation(route);
        let described = OPENAPI.at(&operation);

        let of_query: BTreeSet<_> = parameters(&operation)
            .into_iter()
            .filter(|parameter| parameter["in"] == "query")
            .map(|parameter| parameter["name"].as_str().unwrap())
            .collect();
        let known = route.parameters.iter().copied().flatten();
        let known: BTreeSet<_> = known.map(|name| if name.ends_with('.') { "payload.KEY" } else { *name }).collect();
        assert_eq!(of_query, known, "{operation}");

        let of_path: Vec<_> =
            parameters(&operation).into_iter().filter(|parameter| parameter["in"] == "path").collect();
        let variable = route.template.split_once('{').map(|(_, rest)| rest.trim_end_matches('}'));
        assert_eq!(of_path.iter().map(|parameter| parameter["name"].as_str().unwrap()).next(), variable);
        assert!(of_path.iter().all(|parameter| parameter["required"] == true && parameter.get("example").is_some()));

        let responses = described["responses"].as_object().unwrap();
        let fine: Vec<_> = responses.keys().filter(|status| !status.starts_with(['4', '5'])).collect();
        assert!(fine.contains(&&route.status.to_string()), "{operation}: {fine:?}");
        let content = format!("{operation}/responses/{}/content", route.status);
        let media_types: BTreeSet<_> = OPENAPI.members(&content).into_iter().map(|(name, _)| name).collect();
        assert_eq!(media_types, route.media_types.iter().copied().collect(), "{operation}");

        let security = described.get("security").unwrap_or(&OPENAPI.json["security"]).as_array().unwrap();
        let ways: Vec<_> = security.iter().flat_map(|way| way.as_object().unwrap().keys()).collect();
        let (expected, scope): (&[&str], _) = match route.guard {
            Guard::Open => (&[], None),
            Guard::AnyKey => (&["header", "bearer"], None),
            Guard::Key(scope) => (&["header", "bearer"], Some(scope)),
            Guard::KeyInUrl(scope) => (&["header", "bearer", "query"], Some(scope)),
        };
        assert_eq!(ways, expected, "{operation}");
        let scopes = security.iter().flat_map(|way| way.as_object().unwrap().values());
        let scope_names: Vec<_> = scope.into_iter().map(|scope| scope.name()).collect();
        assert!(scopes.into_iter().all(|scopes| *scopes == json!(scope_names)), "{operation}: {security:?}");
        for status in ["401", "429"] {
            assert_eq!(responses.contains_key(status), !expected.is_empty(), "{status} of {operation}");
        }
        assert_eq!(responses.contains_key("403"), scope.is_some(), "{operation}: keys of other scopes");
    }
}

#[test]
fn every_example_fits_its_schema() {
    fn visit(document: &Document, pointer: &str, seen: &mut usize) {
        let value = document.at(pointer);
        match value {
            Value::Object(members) => {
                // The examples of a media type, of a message, and of a schema.
                if let (Some(Value::Object(examples)), true) = (members.get("examples"), members.contains_key("schema"))
                {
                    for (name, example) in examples {
                        fits(document, &format!("{pointer}/schema"), &example["value"], &format!("{pointer}: {name}"));
                        *seen += 1;
                    }
                }
                if let (Some(Value::Array(examples)), true) = (members.get("examples"), members.contains_key("payload"))
                {
                    for example in examples {
                        fits(document, &format!("{pointer}/payload"), &example["payload"], &example.to_string());
                        *seen += 1;
                    }
                } else if let Some(Value::Array(examples)) = members.get("examples") {
                    for example in examples {
                        fits(document, pointer, example, pointer);
                        *seen += 1;
                    }
                }
                for name in members.keys().filter(|name| !matches!(name.as_str(), "examples" | "example" | "value")) {
                    visit(document, &format!("{pointer}/{}", name.replace('~', "~0").replace('/', "~1")), seen);
                }
            }
            Value::Array(items) => (0..items.len()).for_each(|n| visit(document, &format!("{pointer}/{n}"), seen)),
            _ => {}
        }
    }
    fn fits(document: &Document, schema: &str, value: &Value, what: &str) {
        let problems = document.problems(schema, value);
        assert!(problems.is_empty(), "{what}: {problems:?}");
    }
    for document in [&*OPENAPI, &*ASYNCAPI] {
        let mut seen = 0;
        visit(document, "", &mut seen);
        assert!(seen > 15, "only {seen} examples");
    }
    for route in &ROUTES {
        for parameter in parameters(&operation(route)) {
            let list = format!("{}/parameters", operation(route));
            let position = parameters(&operation(route)).iter().position(|other| *other == parameter).unwrap();
            let own = &OPENAPI.at(&list)[position];
            let pointer = own.get("$ref").map_or(format!("{list}/{position}"), |target| {
                target.as_str().unwrap().trim_start_matches('#').to_owned()
            });
            fits(&OPENAPI, &format!("{pointer}/schema"), &parameter["example"], &pointer);
        }
    }
}

/// A server with the session and the group that the examples name.
fn server_with_a_class() -> Server {
    let server = Server::start();
    server.publish(r#"{"event_type":"session_created","source":"web","session_id":"exam-08"}"#);
    let mut grader = server.subscriber(&json!({ "group": "graders" }));
    grader.send(r#"{"type":"ping"}"#);
    assert_eq!(grader.json()["type"], "pong");
    server
}

fn query(parameters: impl IntoIterator<Item = (String, String)>) -> String {
    let pairs = parameters.into_iter().map(|(name, value)| format!("{}={}", encode(&name), encode(&value)));
    pairs.collect::<Vec<_>>().join("&")
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// The parameters of a query that an example stands for.
fn pairs(name: &str, example: &Value) -> Vec<(String, String)> {
    match example {
        Value::Object(members) => members.iter().map(|(name, value)| (name.clone(), plain(value))).collect(),
        value => vec![(name.to_owned(), plain(value))],
    }
}

#[test]
fn every_example_of_a_request_is_accepted() {
    let server = server_with_a_class();
    let mut accepted = 0;
    let answered = ROUTES.iter().filter(|route| route.status != 101 && route.endpoint != Endpoint::EventStream);
    let mut routes: Vec<_> = answered.collect();
    // Deletions last: they remove what other examples need.
    routes.sort_by_key(|route| route.method == Method::DELETE);
    for route in routes {
        let operation = operation(route);
        let described = OPENAPI.at(&operation);
        let variable = parameters(&operation).into_iter().find(|parameter| parameter["in"] == "path");
        let path = match (route.template.split_once('{'), variable) {
            (Some((before, _)), Some(parameter)) => format!("{before}{}", encode(&plain(&parameter["example"]))),
            _ => route.template.to_owned(),
        };
        let mut check = |target: &str, headers: &[(&str, &str)], body: &[u8]| {
            let response = server.call(route.method.as_str(), target, headers, body);
            assert!(response.status < 400, "{} {target}: {}", route.method, response.text());
            accepted += 1;
        };
        let of_query = |name: &str| described["x-example"]["parameters"].get(name);
        let required: Vec<_> = parameters(&operation)
            .into_iter()
            .filter(|parameter| parameter["in"] == "query" && parameter.get("required") == Some(&json!(true)))
            .flat_map(|parameter| pairs(parameter["name"].as_str().unwrap(), &parameter["example"]))
            .collect();
        if let Some(parameters) = described["x-example"]["parameters"].as_object() {
            let all = parameters.iter().flat_map(|(name, value)| pairs(name, value));
            check(&format!("{path}?{}", query(all)), &[], b"");
        }
        match described.get("requestBody") {
            Some(body) => {
                for (media_type, content) in body["content"].as_object().unwrap() {
                    for (example_name, example) in content["examples"].as_object().unwrap() {
                        let text = plain(&example["value"]);
                        check(&path, &[("Content-Type", media_type)], text.as_bytes());
                        for parameter in parameters(&operation) {
                            let (name, value) = (parameter["name"].as_str().unwrap(), plain(&parameter["example"]));
                            let with = format!("{path}?{}", query([(name.to_owned(), value.clone())]));
                            match parameter["in"].as_str().unwrap() {
                                "query" => check(&with, &[("Content-Type", media_type)], text.as_bytes()),
                                // A key of the request and one of an event exclude each other.
                                _ if text.contains("idempotency_key") || media_type.contains("cloudevents") => {}
                                _ => {
                                    let key = format!("{value}-{example_name}");
                                    check(&path, &[("Content-Type", media_type), (name, &key)], text.as_bytes());
                                }
                            }
                        }
                    }
                }
            }
            // A deletion without parameters would take the events that other examples need.
            None if route.endpoint == Endpoint::DeleteEvents => {}
            None => check(&format!("{path}?{}", query(required.clone())), &[], b""),
        }
        for parameter in parameters(&operation).into_iter().filter(|parameter| parameter["in"] == "query") {
            let name = parameter["name"].as_str().unwrap();
            // A second deletion of the same name finds nothing.
            if described.get("requestBody").is_some() || ["wait", "space"].contains(&name) || of_query(name).is_some() {
                continue;
            }
            if route.endpoint == Endpoint::DeleteEvents && name.starts_with("exclude_") {
                continue;
            }
            let all = required.iter().cloned().chain(pairs(name, &parameter["example"]));
            check(&format!("{path}?{}", query(all)), &[], b"");
        }
    }
    assert!(accepted > 50, "{accepted}");
}

#[test]
fn every_parameter_of_an_event_stream_is_accepted() {
    let server = server_with_a_class();
    let operation = "/paths/~1events~1stream/get";
    for parameter in parameters(operation) {
        let (name, example) = (parameter["name"].as_str().unwrap(), &parameter["example"]);
        if parameter["in"] == "header" {
            EventStream::resume(server.addr, "", &[(name, &plain(example))]);
            continue;
        }
        let beside: &[(&str, &str)] = match name {
            "conflate" => &[("interval_ms", "250")],
            "interval_ms" | "skipped" => &[("conflate", "session_id"), ("interval_ms", "250")],
            "until" => &[("last", "1")],
            _ => &[],
        };
        let beside = beside.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let all: BTreeMap<_, _> =
            beside.chain(pairs(name, example)).chain([("strict".into(), "true".into())]).collect();
        EventStream::open(server.addr, &query(all));
    }
}

#[test]
fn every_example_of_a_message_is_understood() {
    let server = server_with_a_class();
    let mut publisher = server.publisher();
    for (name, message) in ASYNCAPI.members("/channels/publish/messages") {
        for example in
            ASYNCAPI.at(&message)["examples"].as_array().unwrap().iter().filter(|_| name.starts_with("publish"))
        {
            let answer = publisher.ask(&example["payload"].to_string());
            assert_eq!(answer["status"], "ok", "{example}: {answer}");
        }
    }
    for example in ASYNCAPI.at("/components/messages/subscribe/examples").as_array().unwrap() {
        let mut socket = Socket::open(server.addr, "/ws/subscribe");
        assert_eq!(socket.ask(&example["payload"].to_string())["status"], "subscribed", "{example}");
    }
    let mut socket = server.subscriber(&json!({ "name": "grader" }));
    for (message, answer) in [("updateFilters", "filters_updated"), ("ping", "pong"), ("ack", "")] {
        for example in ASYNCAPI.at(&format!("/components/messages/{message}/examples")).as_array().unwrap() {
            socket.send(&example["payload"].to_string());
            if !answer.is_empty() {
                let said = socket.json();
                assert!(said["status"] == answer || said["type"] == answer, "{said}");
            }
        }
    }
    // Neither an answer nor an error came for the confirmation: the next message is the pong.
    socket.send(r#"{"type":"ping"}"#);
    assert_eq!(socket.json()["type"], "pong");
}

#[test]
fn asyncapi_json_is_valid_asyncapi_3() {
    let schema = std::fs::read_to_string("tests/support/asyncapi-3.0.0.schema.json").unwrap();
    let schema: Value = serde_json::from_str(&schema).unwrap();
    let validator = jsonschema::draft7::new(&schema).unwrap();
    let problems: Vec<_> = validator.iter_errors(&ASYNCAPI.json).map(|error| error.to_string()).collect();
    assert!(problems.is_empty(), "{problems:#?}");
}

#[test]
fn every_message_is_used_on_a_channel() {
    let channels = ["/ws/publish", "/ws/subscribe", "/events/stream"];
    let addresses = ASYNCAPI.members("/channels").into_iter().map(|(_, channel)| &ASYNCAPI.at(&channel)["address"]);
    assert_eq!(names(addresses), channels.into());
    let mut used: BTreeSet<String> = channels.into_iter().flat_map(sent_on).collect();
    for (_, operation) in ASYNCAPI.members("/operations") {
        if ASYNCAPI.at(&operation)["action"] == "receive" {
            let count = ASYNCAPI.at(&operation)["messages"].as_array().unwrap().len();
            let message = |n: usize| ASYNCAPI.members(&format!("{operation}/messages/{n}")).len();
            assert!((0..count).all(|n| message(n) == 1), "messages are references");
            let lists = ASYNCAPI.at(&operation)["messages"].as_array().unwrap().iter();
            used.extend(lists.map(|message| {
                let of_channel = message["$ref"].as_str().unwrap().trim_start_matches('#').to_owned();
                let target = &ASYNCAPI.at(&of_channel)["$ref"];
                target.as_str().unwrap().trim_start_matches('#').to_owned()
            }));
        }
    }
    let all: BTreeSet<_> = ASYNCAPI.members("/components/messages").into_iter().map(|(_, message)| message).collect();
    assert_eq!(used, all);
}

/// A reader of one document must not be told otherwise by the other.
#[test]
fn both_interface_documents_agree_on_shared_schemas_version_and_close_codes() {
    let shared = |document: &Document, name: &str| document.json["components"]["schemas"].get(name).cloned();
    for (name, _) in ASYNCAPI.members("/components/schemas").iter().filter(|(name, _)| *name != "NewEvent") {
        if let Some(other) = shared(&OPENAPI, name) {
            assert_eq!(shared(&ASYNCAPI, name), Some(other), "{name}");
        }
    }
    for document in [&OPENAPI, &ASYNCAPI] {
        assert_eq!(document.json["info"]["version"], env!("CARGO_PKG_VERSION"));
    }
    let codes = ASYNCAPI.json["x-close-codes"].as_array().unwrap().iter();
    let codes: Vec<_> = codes.map(|row| row["code"].as_u64().unwrap()).collect();
    assert_eq!(codes, CLOSE_CODES.map(|(code, _)| u64::from(code)));
}

#[test]
fn served_files_are_revalidated_and_compressed_and_need_no_key() {
    let server =
        Server::with(&[("REQUIRE_AUTH", "true"), ("API_KEY", "sixteen letters!"), ("RATE_LIMIT_QUERY", "1/day")]);
    for (path, media_type) in [
        ("/docs", "text/html; charset=utf-8"),
        ("/openapi.json", "application/json"),
        ("/asyncapi.json", "application/json"),
        ("/assets/home.css", "text/css; charset=utf-8"),
    ] {
        for path in [path.to_owned(), format!("{PREFIX}{path}")] {
            let whole = server.get(&path);
            assert_eq!((whole.status, whole.header("content-type")), (200, Some(media_type)), "{path}");
            let tag = whole.header("etag").unwrap().to_owned();
            let ask = |headers: &[(&str, &str)]| server.call("GET", &path, headers, b"");

            for same in [&*tag, &format!("W/{tag}"), &format!("\"other\", {tag}"), "*"] {
                let answer = ask(&[("If-None-Match", same)]);
                assert_eq!((answer.status, answer.header("etag"), answer.body.len()), (304, Some(&*tag), 0), "{same}");
            }
            for other in ["\"other\"", "", tag.trim_matches('"')] {
                assert_eq!(ask(&[("If-None-Match", other)]).status, 200, "{other}");
            }

            let packed = ask(&[("Accept-Encoding", "br, gzip;q=0.5")]);
            assert_eq!(packed.header("content-encoding"), Some("gzip"));
            assert_ne!(packed.header("etag"), Some(&*tag));
            let mut unpacked = Vec::new();
            flate2::read::GzDecoder::new(&*packed.body).read_to_end(&mut unpacked).unwrap();
            assert!(unpacked == whole.body, "{path}");
            assert!(packed.header("vary").unwrap().contains("Accept-Encoding"));
            assert_eq!(ask(&[("Accept-Encoding", "gzip;q=0, br")]).header("content-encoding"), None);

            let part = ask(&[("Range", "bytes=0-3")]);
            assert_eq!((part.status, part.body.len()), (200, whole.body.len()), "a range is ignored");
            assert_eq!(ask(&[("Accept", "image/png")]).status, 406);
            assert_eq!(ask(&[("Accept", "image/png, */*;q=0.1")]).status, 200);
            let head = server.call("HEAD", &path, &[], b"");
            assert_eq!((head.status, head.header("etag"), head.body.len()), (200, Some(&*tag), 0));
            assert_eq!(server.call("POST", &path, &[], b"").status, 405);
        }
    }
    assert_eq!(server.get("/assets/nothing.js").status, 404);
    assert_eq!(server.get("/assets/").status, 401, "an unknown path counts and asks for the key");
}

#[test]
fn web_pages_load_nothing_from_elsewhere() {
    let server = Server::start();
    for path in ["/", "/docs"] {
        let page = server.call("GET", path, &[("Accept", "text/html")], b"");
        let policy = page.header("content-security-policy").unwrap();
        for rule in
            ["default-src 'none'", "script-src 'self'", "frame-ancestors 'none'", "require-trusted-types-for 'script'"]
        {
            assert!(policy.contains(rule), "{policy}");
        }
        assert!(!policy.contains("unsafe"), "{policy}");
    }
    let other = server.get("/health");
    assert_eq!(other.header("content-security-policy"), Some("default-src 'self'"), "compat");
}

#[test]
fn the_root_path_is_a_web_page_for_browsers_and_json_for_programs() {
    let server = Server::start();
    let browser = server.call("GET", "/", &[("Accept", "text/html,application/xhtml+xml,*/*;q=0.8")], b"");
    assert!(browser.text().contains("href=\"docs\""), "{}", browser.text());
    for accept in ["*/*", "application/json", "image/png", "text/html;q=0", "application/json, text/html;q=0.1"] {
        let home = server.call("GET", "/", &[("Accept", accept)], b"").json();
        assert_eq!((&home["docs"], &home["service"]), (&json!("/docs"), &json!("event-pipeline")));
    }
}

#[test]
fn redoc_and_unknown_paths_lead_to_the_docs() {
    let server = Server::start();
    for (path, target) in [("/redoc", "docs"), ("/docs/", "../docs"), ("/redoc/", "../docs")] {
        for path in [path.to_owned(), format!("{PREFIX}{path}")] {
            let answer = server.get(&path);
            assert_eq!((answer.status, answer.header("location")), (307, Some(target)), "{path}");
        }
    }
    let lost = server.get("/swagger").refusal(404);
    assert!(lost.as_str().unwrap().contains("/docs"), "{lost}");
}

/// Also the files of other projects, in `vendor`.
#[test]
fn every_style_sheet_and_script_is_served_byte_for_byte() {
    let server = Server::start();
    let mut served = 0;
    for folder in ["src/web", "src/web/docs", "src/web/vendor"] {
        for file in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            let kind = file.extension().and_then(|extension| extension.to_str());
            if !matches!(kind, Some("js" | "css")) {
                continue;
            }
            let path = format!("/assets/{}", file.file_name().unwrap().to_str().unwrap());
            assert!(server.get(&path).body == fs::read(&file).unwrap(), "{path} is {}", file.display());
            served += 1;
        }
    }
    assert!(served > 5, "{served}");
}

#[test]
fn vendored_files_are_as_they_were_published() {
    let list: toml::Table = fs::read_to_string("src/web/vendor/VENDORED.toml").unwrap().parse().unwrap();
    let mut listed = BTreeSet::from(["VENDORED.toml".to_owned()]);
    for package in list["package"].as_array().unwrap() {
        assert!(package["integrity"].as_str().unwrap().starts_with("sha512-") && package.get("licence").is_some());
        for file in package["files"].as_array().unwrap() {
            let name = file["path"].as_str().unwrap();
            let digest = digest(&SHA256, &fs::read(format!("src/web/vendor/{name}")).unwrap());
            let digest: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(digest, file["sha256"].as_str().unwrap(), "{name}");
            listed.insert(name.to_owned());
        }
    }
    let entries = fs::read_dir("src/web/vendor").unwrap();
    let there: BTreeSet<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(there, listed);
}

/// 60 kB in all: small enough for a phone on a school's network.
#[test]
fn all_assets_together_have_at_most_60_kb_in_gzip() {
    let sizes = event_pipeline::web::files().iter().filter(|file| !file.path.ends_with(".json"));
    let bytes: usize = sizes.map(|file| file.gzip().bytes.len()).sum();
    assert!(bytes <= 60_000, "{bytes} bytes in gzip");
}
