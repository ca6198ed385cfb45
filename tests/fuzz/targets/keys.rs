//! Keys: what a client shows is read as three parts that give the same text again, or refused; a keys file that is read can be
//! written and read again as the same. A refused one gives one line.

use event_pipeline::auth::{KeysFile, Shown};

/// A key, a line break, and the text of a keys file.
pub fn keys(data: &[u8]) {
    let end = data.iter().position(|byte| *byte == b'\n').unwrap_or(data.len());
    let (key, file) = data.split_at(end);
    if let Shown::Named(named) = Shown::read(key) {
        let text = str::from_utf8(key).expect("a key is ASCII");
        let parts: Vec<_> = [3, 12, 56].iter().map(|start| &text[*start..]).collect();
        assert!(text.starts_with("ep_") && parts[0].starts_with(named.id) && &parts[0][8..9] == "_");
        assert!(&parts[1][43..44] == "_" && parts[2].bytes().all(|byte| byte.is_ascii_alphanumeric()));
        for n in 0..key.len() {
            let mut typo = key.to_vec();
            typo[n] = if typo[n] == b'x' { b'y' } else { b'x' };
            assert!(!matches!(Shown::read(&typo), Shown::Named(_)), "a typo is noticed");
        }
    }
    let Ok(text) = str::from_utf8(file) else { return };
    match KeysFile::parse(text, "keys.toml".to_owned()) {
        Err(error) => assert!(!error.to_string().contains(['\n', '\r']), "{error}"),
        Ok(read) => {
            let written = toml::to_string(&read).expect("keys have a TOML form");
            let again = KeysFile::parse(&written, "again.toml".to_owned()).expect("what is written can be read");
            assert_eq!(toml::to_string(&again).unwrap(), written);
            for key in &again.keys {
                assert_eq!(
                    key.pins().is_some(),
                    !(key.event_types.is_empty()
                        && key.session_id.is_empty()
                        && key.user_id.is_empty()
                        && key.source.is_empty())
                );
            }
        }
    }
}
