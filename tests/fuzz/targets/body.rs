//! Bodies of `POST /events` in every form. The input is headers, an empty line and the body. Each form is parsed by hand,
//! and its events are compared with the contract one by one.

use event_pipeline::event::{PAYLOAD_DEPTH_MAX, Parser};
use event_pipeline::http::Form;
use event_pipeline::wire::cloud_event;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};

use super::event::{LIMITS, TYPES, check_columns, expected};
use super::json::{Json, Value};
use super::url::check;

/// Headers, an empty line, the body.
pub fn body(data: &[u8]) {
    let end = data.windows(2).position(|pair| pair == b"\n\n");
    let (head, body) = end.map_or((&data[..0], data), |end| (&data[..end], &data[end + 2..]));
    let mut headers = HeaderMap::new();
    for line in head.split(|byte| *byte == b'\n') {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let (name, value) = (HeaderName::from_bytes(&line[..colon]), line[colon + 1..].trim_ascii());
        let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(value)) else { continue };
        headers.append(name, value);
    }
    let form = match Form::of(&headers) {
        Ok(form) => form,
        Err(refusal) => return check(Some(&refusal)),
    };
    let read = form.events(&headers, body, &mut Parser::new(TYPES.clone(), LIMITS));
    check(read.as_ref().err());
    let Ok(text) = str::from_utf8(body) else { return assert!(read.is_err()) };

    // The JSON that each event should be translated into; none if it has to be refused.
    let events: Option<Vec<String>> = match form {
        Form::Json => match Json::read(text) {
            Ok(Json { value: Value::List(items), .. }) => Some(items.iter().map(|item| item.raw.to_owned()).collect()),
            Ok(one) => Some(vec![one.raw.to_owned()]),
            Err(_) => None,
        },
        Form::Lines => {
            let lines = text.split('\n').map(|line| line.strip_suffix('\r').unwrap_or(line));
            Some(lines.filter(|line| !line.trim_ascii().is_empty()).map(str::to_owned).collect())
        }
        Form::CloudEvent => Json::read(text).ok().and_then(|event| Some(vec![of_cloud_event(&event)?])),
        Form::CloudEvents => match Json::read(text) {
            Ok(Json { value: Value::List(items), .. }) => items.iter().map(of_cloud_event).collect(),
            _ => None,
        },
        Form::BinaryCloudEvent => {
            // The unit tests check the translation of headers; here the result must at least be an event.
            let Ok((batch, false)) = &read else { return assert!(read.is_err()) };
            assert_eq!((batch.len(), batch.keyed().len()), (1, 1));
            let payload = str::from_utf8(batch.columns(0).payload).unwrap();
            let sent = if matches!(text.trim_ascii(), "" | "null") { "{}" } else { text };
            return assert!(Json::read(payload).unwrap().says_the_same(&Json::read(sent).unwrap()));
        }
    };
    let json: Option<Vec<_>> = events.as_ref().and_then(|events| {
        events.iter().map(|event| Json::read(event).ok().filter(|json| json.depth() <= PAYLOAD_DEPTH_MAX + 1)).collect()
    });
    let expected: Option<Vec<_>> = json.as_ref().and_then(|events| events.iter().map(|e| expected(e).ok()).collect());
    match (&read, expected.filter(|events| !events.is_empty())) {
        (Err(_), None) => {}
        (Ok((batch, many)), Some(expected)) => {
            let is_single = form == Form::CloudEvent || form == Form::Json && text.trim_ascii().starts_with('{');
            assert_eq!((*many, batch.len()), (!is_single, expected.len()));
            for (index, expected) in expected.iter().enumerate() {
                check_columns(&batch.columns(index), expected);
            }
            let keys: Vec<_> = expected.iter().filter_map(|event| event.idempotency_key).collect();
            assert_eq!(batch.keyed().iter().map(|keyed| &*keyed.key).collect::<Vec<_>>(), keys);
        }
        (read, expected) => panic!("{form:?}: {:?}, but {expected:?}", read.as_ref().map(|(batch, _)| batch.len())),
    }
    if let Ok((mut batch, _)) = read {
        goes_out_and_comes_in_again(&mut batch);
    }
}

/// The event of a structured CloudEvent, by the table in the contract.
fn of_cloud_event(json: &Json<'_>) -> Option<String> {
    let Value::Object(_) = json.value else { return None };
    let set = |name| json.get(name).filter(|value| !matches!(value.value, Value::Null));
    // Either a text or absent.
    let text = |name| set(name).map_or(Some(None), |value| value.text().map(Some));
    let filled = |name| text(name).filter(|text| text.is_none_or(|text| !text.is_empty()));
    if set("data_base64").is_some() || filled("specversion")?? != "1.0" {
        return None;
    }
    let (id, source, event_type) = (filled("id")??, filled("source")??, filled("type")??);
    let media_type = text("datacontenttype")?.unwrap_or("application/json").to_ascii_lowercase();
    let essence = media_type.split(';').next()?.trim_ascii();
    if essence != "application/json" && !essence.ends_with("+json") {
        return None;
    }
    filled("time")?;
    filled("dataschema")?;
    let subject = filled("subject")?;
    let spelled = |text: &str| serde_json::to_string(text).unwrap();
    let mut event = format!(r#"{{"event_type":{},"source":{}"#, spelled(event_type), spelled(source));
    for (name, value) in [("session_id", text("sessionid")?.or(subject)), ("user_id", text("userid")?)] {
        event += &value.map_or(String::new(), |value| format!(r#","{name}":{}"#, spelled(value)));
    }
    event += &set("data").map_or(String::new(), |data| format!(r#","payload":{}"#, data.raw));
    Some(format!(r#"{event},"idempotency_key":{}}}"#, spelled(&format!("{source}/{id}"))))
}

/// An accepted event is delivered as a CloudEvent, which is accepted again as the same event.
fn goes_out_and_comes_in_again(batch: &mut event_pipeline::wire::Batch) {
    use event_pipeline::event::{Seq, Timestamp, TimestampText};
    for index in 0..batch.len() {
        batch.stamp(index, Seq(1).plus(index), &TimestampText::default().render(Timestamp(0)));
    }
    let committed = std::mem::take(batch).committed(Seq(1));
    let mut sent = b"[".to_vec();
    for index in 0..committed.len() {
        sent.extend((index > 0).then_some(b','));
        cloud_event::of_event(&committed.json(index), &mut sent);
    }
    sent.push(b']');
    let mut headers = HeaderMap::new();
    headers.insert("content-type", HeaderValue::from_static(cloud_event::BATCH_MEDIA_TYPE));
    let form = Form::of(&headers).unwrap();
    let (again, many) = form.events(&headers, &sent, &mut Parser::new(TYPES.clone(), LIMITS)).unwrap();
    assert_eq!((again.len(), many), (committed.len(), true));
    for index in 0..again.len() {
        let (one, other) = (committed.columns(index), again.columns(index));
        assert_eq!((one.event_type, one.source, one.session_id), (other.event_type, other.source, other.session_id));
        assert_eq!((one.user_id, one.payload), (other.user_id, other.payload));
    }
}
