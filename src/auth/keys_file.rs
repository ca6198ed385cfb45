//! The file of the named keys (`KEYS_FILE`): a block for each key, without its secret.

use std::collections::HashSet;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use super::key::Digest;
use super::principal::Scope;
use crate::config::fault_in_toml;
use crate::event::{Field, Filter, Timestamp};

/// What the file holds of one key.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyRecord {
    /// The part of the key that is no secret.
    pub id: String,
    /// What people call it. Two keys may have the same name, while one replaces the other.
    pub name: String,
    /// The SHA-256 of its secret.
    pub sha256: Digest,
    pub scopes: Vec<Scope>,
    /// Where the names of its subscriptions and its idempotency keys belong, if that is not its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub space: Option<String>,
    /// The key is for events with one of these values only; empty: with any.
    #[serde(default, deserialize_with = "some_values", skip_serializing_if = "Vec::is_empty")]
    pub event_types: Vec<String>,
    #[serde(default, deserialize_with = "some_values", skip_serializing_if = "Vec::is_empty")]
    pub session_id: Vec<String>,
    #[serde(default, deserialize_with = "some_values", skip_serializing_if = "Vec::is_empty")]
    pub user_id: Vec<String>,
    #[serde(default, deserialize_with = "some_values", skip_serializing_if = "Vec::is_empty")]
    pub source: Vec<String>,
    #[serde(with = "time", default, skip_serializing_if = "Option::is_none")]
    pub created: Option<Timestamp>,
    #[serde(with = "time", default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Timestamp>,
}

impl KeyRecord {
    /// Which events the key is for; `None`: all.
    pub fn pins(&self) -> Option<Filter> {
        let lists = [&self.event_types, &self.session_id, &self.user_id, &self.source];
        let fields = [Field::Type, Field::Session, Field::User, Field::Source].into_iter().zip(lists);
        let pinned = |pins: Option<Filter>, (field, values): (Field, &Vec<String>)| match values.is_empty() {
            true => pins,
            false => Some(pins.unwrap_or_default().with(field, values.iter().map(String::as_str))),
        };
        fields.fold(None, pinned)
    }

    /// Where the names of its subscriptions and its idempotency keys belong.
    pub fn space(&self) -> &str {
        self.space.as_deref().unwrap_or(&self.name)
    }

    /// # Errors
    /// A sentence.
    pub fn check(&self) -> Result<(), String> {
        let Self { id, name, .. } = self;
        let is_name =
            |text: &str| (1..=NAME_CHARS_MAX).contains(&text.chars().count()) && !text.contains(char::is_control);
        if id.is_empty() || !id.bytes().all(|b| b.is_ascii_alphanumeric()) {
            return Err(format!("the id {id:?} has other characters than letters and digits"));
        }
        if !is_name(name) {
            return Err(format!("the name of key {id} is not 1 to {NAME_CHARS_MAX} characters"));
        }
        if self.space.as_deref().is_some_and(|space| !space.is_empty() && !is_name(space)) {
            return Err(format!(
                "the space of key {id} is longer than {NAME_CHARS_MAX} characters, or has control characters"
            ));
        }
        if self.scopes.is_empty() {
            return Err(format!("key {id} has no scope"));
        }
        let pins = [&self.event_types, &self.session_id, &self.user_id, &self.source];
        if pins.iter().any(|values| values.iter().any(String::is_empty)) {
            return Err(format!("key {id} is for an empty value, which no event has"));
        }
        Ok(())
    }
}

const NAME_CHARS_MAX: usize = 100;

/// All keys of a file.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeysFile {
    #[serde(default)]
    pub keys: Vec<KeyRecord>,
}

/// Why a keys file cannot be used, in one line.
#[derive(Debug, thiserror::Error)]
pub enum KeysFileError {
    #[error("the keys file {0} cannot be read: {1}")]
    Unreadable(String, io::Error),
    #[error("the keys file {0}, line {1}: {2}")]
    Syntax(String, usize, String),
    #[error("the keys file {0}: {1}")]
    Invalid(String, String),
    #[error("the keys file {0} cannot be written: {1}")]
    Unwritable(String, io::Error),
}

impl KeysFile {
    /// # Errors
    /// Also if there is none.
    pub fn read(path: &Path) -> Result<Self, KeysFileError> {
        let file = path.display().to_string();
        let text = read_regular(path).map_err(|error| KeysFileError::Unreadable(file.clone(), error))?;
        Self::parse(&text, file)
    }

    /// # Errors
    /// With the line, or the key, and what is wrong.
    pub fn parse(text: &str, file: String) -> Result<Self, KeysFileError> {
        let read: Self = toml::from_str(text).map_err(|error| {
            let (line, what) = fault_in_toml(text, &error);
            KeysFileError::Syntax(file.clone(), line, what)
        })?;
        let mut ids = HashSet::new();
        for key in &read.keys {
            let unique = ids.insert(&*key.id).then_some(()).ok_or_else(|| format!("the key {} is there twice", key.id));
            key.check().and(unique).map_err(|why| KeysFileError::Invalid(file.clone(), why))?;
        }
        Ok(read)
    }

    /// Changes the file, or makes one that only its owner can read. Of several programs that do so at one time each sees
    /// what the one before it has written.
    ///
    /// # Errors
    /// Those of the change. `Unwritable`: then the former file is there still.
    pub fn change<T, E: From<KeysFileError>>(
        path: &Path,
        change: impl FnOnce(&mut Self) -> Result<T, E>,
    ) -> Result<T, E> {
        let failed = |error| KeysFileError::Unwritable(path.display().to_string(), error);
        // Behind a link: else the link would become a file of its own.
        let path = &fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::create_dir_all(folder).map_err(failed)?;
        let folder = fs::File::open(folder).map_err(failed)?;
        flock(&folder, FlockOperation::LockExclusive).map_err(|error| failed(error.into()))?;
        let mut file = Self::read_or_none(path)?;
        let changed = change(&mut file)?;
        file.write(path)?;
        // Else a power cut could bring back a key that was revoked.
        folder.sync_all().map_err(failed)?;
        Ok(changed)
    }

    /// Without a file there is no key.
    ///
    /// # Errors
    /// The file is there, and cannot be used.
    pub fn read_or_none(path: &Path) -> Result<Self, KeysFileError> {
        match Self::read(path) {
            Err(KeysFileError::Unreadable(_, error)) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            read => read,
        }
    }

    /// Replaces the file, or makes one that only its owner can read. A reader sees the former file or the new one.
    fn write(&self, path: &Path) -> Result<(), KeysFileError> {
        let failed = |error| KeysFileError::Unwritable(path.display().to_string(), error);
        let text = format!("{HEAD}{}", toml::to_string(self).expect("keys have a TOML form"));
        let beside = path.with_extension("toml.new");
        let written = (|| {
            let former = fs::metadata(path).ok();
            let mode = former.as_ref().map_or(0o600, |former| former.permissions().mode() & 0o777);
            let _ = fs::remove_file(&beside);
            let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside)?;
            // The server may run as another user, to whom the file was given, or its folder.
            let owned = former.or_else(|| fs::metadata(path.parent()?).ok());
            if let Some(owned) = owned {
                let _ = std::os::unix::fs::fchown(&file, Some(owned.uid()), Some(owned.gid()));
            }
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&beside, path)
        })();
        written.inspect_err(|_| drop(fs::remove_file(&beside))).map_err(failed)
    }
}

const HEAD: &str =
    "# The API keys of event-pipeline, without their secrets. Written by `event-pipeline keys add` and `keys revoke`,
# which keep no other comments. The server reads the file again when it changes.\n\n";

/// The text of a file. Of anything else, such as a pipe, reading could wait for ever.
fn read_regular(path: &Path) -> io::Result<String> {
    let mut file =
        fs::OpenOptions::new().read(true).custom_flags(rustix::fs::OFlags::NONBLOCK.bits() as i32).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file"));
    }
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    Ok(text)
}

/// A list that is there has values: an empty one would mean any.
fn some_values<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let values = Vec::<String>::deserialize(deserializer)?;
    match values.is_empty() {
        true => Err(D::Error::custom("a list of values that a key is for is not empty")),
        false => Ok(values),
    }
}

/// A time as text.
mod time {
    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer, Serializer};

    use crate::event::Timestamp;

    pub fn serialize<S: Serializer>(time: &Option<Timestamp>, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&time.unwrap_or_default())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Timestamp>, D::Error> {
        Timestamp::parse_floor(&String::deserialize(deserializer)?).map(Some).map_err(D::Error::custom)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    const HASH: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn parse(text: &str) -> Result<KeysFile, String> {
        KeysFile::parse(&text.replace("HASH", HASH), "keys.toml".into()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_bad_file_is_refused_whole_with_the_line() {
        let good = "[[keys]]\nid = 'a'\nname = 'one'\nsha256 = 'HASH'\nscopes = ['query']\n";
        assert_eq!(parse(good).unwrap().keys[0].space(), "one");
        assert_eq!(parse("").unwrap().keys.len(), 0);
        for (text, expected) in [
            (format!("{good}expire = 'x'\n"), "keys.toml, line 6: unknown field `expire`"),
            (format!("{good}expires = 'soon'\n"), "keys.toml, line 6: not a time"),
            (good.replace("HASH", "abc"), "keys.toml, line 4: a SHA-256 has 64 hexadecimal digits"),
            (good.replace("query", "all"), "keys.toml, line 5: unknown variant `all`"),
            (good.replace("'query'", ""), "keys.toml: key a has no scope"),
            (format!("{good}user_id = []\n"), "keys.toml, line 6: a list of values"),
            (format!("{good}source = ['a', '']\n"), "keys.toml: key a is for an empty value"),
            (good.replace("'a'", "'a_b'"), "keys.toml: the id \"a_b\" has other characters"),
            (good.replace("'one'", "''"), "keys.toml: the name of key a is not 1 to 100 characters"),
            (format!("{good}{good}"), "keys.toml: the key a is there twice"),
            ("keys".to_owned(), "keys.toml, line 1: "),
        ] {
            let error = parse(&text).unwrap_err();
            assert!(error.contains(expected), "{error}\n{text}");
        }
    }

    #[test]
    fn a_file_that_root_makes_belongs_to_the_owner_of_its_folder() {
        let folder = tempfile::tempdir().unwrap();
        let is_root = std::os::unix::fs::chown(folder.path(), Some(4_321), Some(4_321)).is_ok();
        let path = folder.path().join("keys.toml");
        KeysFile::change(&path, |_| Ok::<_, KeysFileError>(())).unwrap();
        let owner = if is_root { 4_321 } else { fs::metadata(folder.path()).unwrap().uid() };
        assert_eq!(fs::metadata(&path).unwrap().uid(), owner);
    }

    #[test]
    fn a_file_is_read_back_as_it_was_written_and_only_its_owner_can_read_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/keys.toml");
        let file = parse(
            "[[keys]]\nid = 'a'\nname = 'one'\nsha256 = 'HASH'\nscopes = ['publish', 'metrics']\nspace = ''\n\
             session_id = ['s', 't']\nexpires = 2026-01-15T10:30:00Z",
        );
        assert!(file.unwrap_err().contains("line 8"), "a time is a text, as everywhere else");
        let file = parse(
            "[[keys]]\nid = 'a'\nname = 'one'\nsha256 = 'HASH'\nscopes = ['publish', 'metrics']\nspace = ''\n\
             session_id = ['s', 't']\nexpires = '2026-01-15T10:30:00Z'",
        )
        .unwrap();
        fs::create_dir(path.parent().unwrap()).unwrap();
        file.write(&path).unwrap();
        let written = fs::read_to_string(&path).unwrap();
        let back = KeysFile::read(&path).unwrap();
        assert_eq!(toml::to_string(&back).unwrap(), toml::to_string(&file).unwrap());
        assert_eq!(back.keys[0].pins(), Some(Filter::default().with(Field::Session, ["s", "t"])));
        assert_eq!(back.keys[0].space(), "");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600, "{written}");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        file.write(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640, "as its owner has set it");
        let nowhere = KeysFile::change(Path::new("/proc/keys.toml"), |_| Ok::<_, KeysFileError>(()));
        assert!(matches!(nowhere, Err(KeysFileError::Unwritable(..))));
    }
}
