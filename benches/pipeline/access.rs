use criterion::Criterion;
use event_pipeline::auth::{Access, KeyRecord, KeysFile, KeysFileError, NewKey, Scope, Verified};
use event_pipeline::config::Config;
use hyper::HeaderMap;
use hyper::header::HeaderValue;

/// What a request pays for its key, among a thousand named ones.
pub fn keys(c: &mut Criterion) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("keys.toml");
    let shown = KeysFile::change(&path, |file| {
        let keys = (0..1_000).map(|n| (n, NewKey::random().expect("random bytes")));
        let shown = keys.map(|(n, key)| {
            let text = key.text.clone();
            file.keys.push(record(n, key));
            text
        });
        Ok::<_, KeysFileError>(shown.last().expect("keys"))
    });
    let shown = shown.expect("a keys file");
    let api_key = "correct horse battery staple".to_owned();
    let config = Config { keys_file: Some(path), api_key: api_key.clone(), ..Config::default() };
    let access = Access::new(&config).expect("valid keys");
    let wrong = NewKey::random().expect("random bytes").text;
    let typo = format!("{}x", &shown[..shown.len() - 1]);
    let mut group = c.benchmark_group("key");
    for (name, key) in [("named", &shown), ("API_KEY", &api_key), ("wrong", &wrong), ("mistyped", &typo)] {
        let mut headers = HeaderMap::new();
        headers.insert("x-api-key", HeaderValue::try_from(key).expect("ASCII"));
        group.bench_function(name, |b| {
            b.iter(|| access.keys.authorize(&headers, None, &mut Verified::default()).is_ok())
        });
    }
    group.finish();
}

fn record(n: usize, key: NewKey) -> KeyRecord {
    let no = Vec::new;
    KeyRecord {
        id: key.id,
        name: format!("key {n}"),
        sha256: key.digest,
        scopes: vec![Scope::Publish],
        space: None,
        event_types: no(),
        session_id: no(),
        user_id: no(),
        source: no(),
        created: None,
        expires: None,
    }
}
