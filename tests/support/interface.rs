//! Checks what the server sends against the interface documents, `docs/openapi.json` and `docs/asyncapi.json`. The clients
//! of the tests check each answer, each WebSocket message and each block of an event stream that they see.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex};

use event_pipeline::http::PREFIX;
use jsonschema::{Registry, Validator};
use serde_json::{Value, json};

use super::event_stream::Block;
use super::http::Response;

/// Method and target of a request that was answered.
#[derive(Debug, Clone)]
pub struct RequestLine {
    pub method: String,
    /// The path and the query.
    pub target: String,
}

/// An interface document, and the validators of its schemas, each made when it is first needed.
pub struct Document {
    pub json: Value,
    name: &'static str,
    registry: Registry<'static>,
    validators: Mutex<HashMap<String, Arc<Validator>>>,
}

pub static OPENAPI: LazyLock<Document> = LazyLock::new(|| Document::read("urn:openapi", "docs/openapi.json"));
pub static ASYNCAPI: LazyLock<Document> = LazyLock::new(|| Document::read("urn:asyncapi", "docs/asyncapi.json"));

impl Document {
    fn read(name: &'static str, file: &str) -> Document {
        let text = std::fs::read_to_string(file).unwrap();
        let json: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{file}: {error}"));
        let registry = Registry::new().add(name, json.clone()).unwrap().prepare().unwrap();
        Document { json, name, registry, validators: Mutex::default() }
    }

    /// The JSON pointer to the end of a chain of references; the same pointer, if there is no reference at it.
    fn followed(&self, pointer: &str) -> String {
        match self.at(pointer).get("$ref") {
            Some(target) => self.followed(target.as_str().unwrap().strip_prefix('#').unwrap()),
            None => pointer.to_owned(),
        }
    }

    pub fn at(&self, pointer: &str) -> &Value {
        self.json.pointer(pointer).unwrap_or_else(|| panic!("{} has no {pointer}", self.name))
    }

    /// The members of an object, each with the JSON pointer to it. References are followed.
    pub fn members<'d>(&'d self, pointer: &str) -> Vec<(&'d str, String)> {
        let Some(object) = self.json.pointer(pointer).and_then(Value::as_object) else { return Vec::new() };
        let pointer_to = |name: &str| self.followed(&format!("{pointer}/{}", escaped(name)));
        object.keys().map(|name| (name.as_str(), pointer_to(name))).collect()
    }

    /// How a value breaks the schema at a JSON pointer; empty if it fits.
    pub fn problems(&self, schema: &str, value: &Value) -> Vec<String> {
        let validator = self.validators.lock().unwrap().get(schema).cloned();
        let validator = validator.unwrap_or_else(|| {
            let fragment = schema.replace('{', "%7B").replace('}', "%7D");
            let reference = json!({ "$ref": format!("{}#{fragment}", self.name) });
            let options = jsonschema::draft202012::options().with_registry(&self.registry);
            let made = Arc::new(options.build(&reference).unwrap_or_else(|error| panic!("{schema}: {error}")));
            self.validators.lock().unwrap().insert(schema.to_owned(), Arc::clone(&made));
            made
        });
        validator.iter_errors(value).map(|error| format!("{error} at {}", error.instance_path())).collect()
    }
}

/// A name as a step of a JSON pointer.
fn escaped(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}

/// The JSON pointer to the path in `openapi.json` that a target matches; if two match, the one without a variable.
fn path_of(target: &str) -> Option<String> {
    let path = target.split(['?', '#']).next().unwrap();
    let path = path.strip_prefix(PREFIX).unwrap_or(path);
    let fits = |template: &str| match template.split_once('{') {
        None => template == path,
        Some((before, _)) => path.strip_prefix(before).is_some_and(|rest| !rest.is_empty() && !rest.contains('/')),
    };
    let mut fitting: Vec<_> = OPENAPI.members("/paths").into_iter().filter(|(template, _)| fits(template)).collect();
    fitting.sort_by_key(|(template, _)| template.contains('{'));
    fitting.into_iter().next().map(|(_, pointer)| pointer)
}

/// The JSON pointer to the description of the answer to a request: that of its operation, else that of any request.
fn described(asked: &RequestLine, status: u16) -> String {
    let method = asked.method.replace("HEAD", "GET").to_ascii_lowercase();
    let of_path = path_of(&asked.target).map(|path| format!("{path}/{method}/responses/{status}"));
    let found = of_path.into_iter().chain([format!("/x-any-request/responses/{status}")]);
    let found = found.into_iter().find(|pointer| OPENAPI.json.pointer(pointer).is_some());
    found
        .map(|pointer| OPENAPI.followed(&pointer))
        .unwrap_or_else(|| panic!("openapi.json has no {status} to {asked:?}"))
}

/// Whether hyper itself has refused the request, because it is not HTTP or too large. Such an answer has only a status.
fn is_bare(response: &Response) -> bool {
    matches!(response.status, 400 | 414 | 431) && response.header("content-type").is_none()
}

/// Checks status, headers and media type of an answer.
pub fn check_head(asked: &RequestLine, response: &Response) {
    let described = described(asked, response.status);
    if is_bare(response) {
        return;
    }
    for (name, header) in OPENAPI.members(&format!("{described}/headers")) {
        let is_required = OPENAPI.at(&header).get("required") == Some(&json!(true));
        match response.header(name) {
            None => assert!(!is_required, "{} to {asked:?} has no {name}", response.status),
            Some(value) => {
                let problems = OPENAPI.problems(&format!("{header}/schema"), &value.into());
                assert!(problems.is_empty(), "{name} of {} to {asked:?}: {problems:?}", response.status);
            }
        }
    }
    let media_types = OPENAPI.members(&format!("{described}/content"));
    match media_type(response) {
        None => assert!(media_types.is_empty(), "{} to {asked:?} has no content type", response.status),
        Some(own) => {
            let is_known = media_types.iter().any(|(known, _)| *known == own);
            assert!(is_known, "{} to {asked:?} is {own}, not one of {media_types:?}", response.status);
        }
    }
}

fn media_type(response: &Response) -> Option<&str> {
    response.header("content-type").map(|value| value.split(';').next().unwrap())
}

/// Checks the body of an answer whose head was checked.
pub fn check_body(asked: &RequestLine, response: &Response) {
    let Some(media_type) = media_type(response) else {
        let status = response.status;
        return assert!(response.body.is_empty(), "{status} to {asked:?} has a body without a content type");
    };
    if response.header("content-encoding").is_some() {
        return;
    }
    let content = format!("{}/content/{}", described(asked, response.status), escaped(media_type));
    let check = |schema: &str, text: &[u8]| {
        let value: Value = serde_json::from_slice(text)
            .unwrap_or_else(|error| panic!("{error} in {} to {asked:?}", String::from_utf8_lossy(text)));
        let problems = OPENAPI.problems(&format!("{content}/{schema}"), &value);
        assert!(problems.is_empty(), "{} to {asked:?}: {problems:?} in {value}", response.status);
        value
    };
    match media_type {
        "application/x-ndjson" => {
            for line in response.body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
                check("x-item-schema", line);
            }
        }
        "application/problem+json" => check_problem(&check("schema", &response.body)),
        json if json.ends_with("json") => drop(check("schema", &response.body)),
        _ => {}
    }
}

/// Checks that a problem has a type that is described, with the status and title of that type.
fn check_problem(problem: &Value) {
    let slug = problem["type"].as_str().unwrap().rsplit('/').next().unwrap();
    let mut types = OPENAPI.json["x-problem-types"].as_array().unwrap().iter();
    let of_slug = types.find(|known| known["slug"] == slug).unwrap_or_else(|| panic!("{slug} is not described"));
    for member in ["status", "title"] {
        assert_eq!(problem[member], of_slug[member], "{problem}");
    }
}

/// The JSON pointers to the messages that the server sends on the channel with this address.
pub fn sent_on(address: &str) -> Vec<String> {
    let channels = ASYNCAPI.members("/channels");
    let (channel, pointer) = channels.iter().find(|(_, pointer)| ASYNCAPI.at(pointer)["address"] == address).unwrap();
    let channel = json!({ "$ref": format!("#/channels/{channel}") });
    let of_channel = ASYNCAPI.members("/operations").into_iter().filter(|(_, o)| ASYNCAPI.at(o)["channel"] == channel);
    let mut sent = Vec::new();
    for (_, operation) in of_channel {
        let list = match ASYNCAPI.at(&operation)["action"].as_str().unwrap() {
            "send" => format!("{operation}/messages"),
            _ => format!("{operation}/reply/messages"),
        };
        match ASYNCAPI.json.pointer(&list).and_then(Value::as_array) {
            Some(messages) => {
                sent.extend((0..messages.len()).map(|n| ASYNCAPI.followed(&format!("{list}/{n}"))));
            }
            None if list.ends_with("reply/messages") => {}
            None => {
                sent.extend(ASYNCAPI.members(&format!("{pointer}/messages")).into_iter().map(|(_, message)| message))
            }
        }
    }
    sent
}

/// Checks that a text is a message that the server sends on the channel of a WebSocket.
pub fn check_message(target: &str, text: &str) {
    static SENT: LazyLock<Mutex<HashMap<String, Arc<Vec<String>>>>> = LazyLock::new(Mutex::default);
    let address = target.split('?').next().unwrap();
    let address = address.strip_prefix(PREFIX).unwrap_or(address);
    let sent = Arc::clone(SENT.lock().unwrap().entry(address.to_owned()).or_insert_with(|| sent_on(address).into()));
    let value: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error} in {text}"));
    let problems = |message: &String| ASYNCAPI.problems(&format!("{message}/payload"), &value);
    if !sent.iter().any(|message| problems(message).is_empty()) {
        let each: Vec<_> = sent.iter().map(|message| (message, problems(message))).collect();
        panic!("{text} is not a message of {address}: {each:#?}");
    }
}

/// Checks a block of an event stream.
pub fn check_block(block: &Block) {
    let Some(data) = &block.data else { return };
    let name = block.event.as_deref();
    let sent = sent_on("/events/stream");
    let message = sent.iter().find(|message| ASYNCAPI.at(message).get("x-event").and_then(Value::as_str) == name);
    let message = message.unwrap_or_else(|| panic!("no message of the event stream is called {name:?}"));
    let value: Value = serde_json::from_str(data).unwrap_or_else(|error| panic!("{error} in {data}"));
    let problems = ASYNCAPI.problems(&format!("{message}/payload"), &value);
    assert!(problems.is_empty(), "{message}: {problems:?} in {data}");
}
