//! The query of a URL: it is decoded a second time, and a refusal is valid JSON.

use event_pipeline::http::Parameters;
use event_pipeline::wire::Refusal;
use event_pipeline::wire::request::{Start, Subscribe};
use hyper::Uri;

/// The query, and in a second line the `Last-Event-ID` of a browser.
pub fn url(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    let (query, last_event_id) = text.split_once('\n').map_or((text, None), |(query, id)| (query, Some(id)));
    let Ok(uri) = format!("/events?{query}").parse::<Uri>() else { return };
    // A fragment is not sent.
    let query = uri.query().unwrap();
    let parameters = Parameters::of(&uri);
    let pairs: Vec<_> = query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(name, value)| (decoded(name), decoded(value)))
        .collect();
    for (name, _) in &pairs {
        let last = pairs.iter().rfind(|(other, _)| other == name).unwrap();
        assert_eq!(parameters.get(name), Some(&*last.1));
    }
    let filter = parameters.filter();
    check(filter.as_ref().err());
    let subscribe = parameters.subscription(None);
    check(subscribe.as_ref().err());
    if let Ok(Subscribe { filters, .. }) = &subscribe {
        assert_eq!(Ok(&filters.filter), filter.as_ref());
    }
    if let Some(id) = last_event_id {
        let resumed = parameters.subscription(Some(id));
        check(resumed.as_ref().err());
        match resumed {
            // An empty `Last-Event-ID` is none.
            Ok(resumed) if id.is_empty() => assert_eq!(Some(resumed), subscribe.ok()),
            Ok(Subscribe { start, snapshot, .. }) => {
                assert_eq!((start, snapshot), (Start::After(id.to_owned()), None));
            }
            Err(_) => {}
        }
    }
}

/// A refusal is a 4xx with a problem as its body.
pub fn check(refusal: Option<&Refusal>) {
    let Some(refusal) = refusal else { return };
    assert!((400..500).contains(&refusal.status()), "{refusal:?}");
    let problem: serde_json::Value = serde_json::from_slice(&refusal.problem()).unwrap();
    assert_eq!(problem["status"], refusal.status());
}

fn decoded(text: &str) -> String {
    let (mut bytes, mut rest) = (Vec::new(), text.as_bytes());
    while let Some((&byte, after)) = rest.split_first() {
        let escaped = after.get(..2).filter(|digits| byte == b'%' && digits.iter().all(u8::is_ascii_hexdigit));
        let escaped = escaped.map(|digits| u8::from_str_radix(str::from_utf8(digits).unwrap(), 16).unwrap());
        bytes.push(escaped.unwrap_or(if byte == b'+' { b' ' } else { byte }));
        rest = &after[if escaped.is_some() { 2 } else { 0 }..];
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
