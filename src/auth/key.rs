//! One API key: how it is spelled, made, and compared.
//!
//! A named key is `ep_<id>_<secret>_<checksum>`. The id is public: the key is looked up and logged by it. The secret is 256
//! random bits, of which the server keeps only the SHA-256; a slow hash protects what people choose, and nobody chose
//! these. The checksum, as in the tokens of GitHub, tells a typo from a wrong key, and lets a scanner for secrets recognise
//! a key without asking anyone.

use std::fmt;

use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine as _};
use ring::digest::{SHA256, digest};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use subtle::ConstantTimeEq;

const PREFIX: &str = "ep_";
const ID_CHARS: usize = 8;
/// 32 bytes in base64url. That alphabet has the underscore, so the parts are cut by their length.
const SECRET_CHARS: usize = 43;
/// Digits of the CRC-32 of everything before, in base 62.
const CHECKSUM_CHARS: usize = 6;
const KEY_CHARS: usize = PREFIX.len() + ID_CHARS + 1 + SECRET_CHARS + 1 + CHECKSUM_CHARS;

/// A text that a client shows as a key.
#[derive(Debug, PartialEq, Eq)]
pub enum Shown<'t> {
    Named(NamedKey<'t>),
    /// It looks like a named key, and is none: something was left out or mistyped.
    Mistyped,
    /// It can only be the `API_KEY`.
    Other,
}

/// A named key, of which nobody knows yet whether it is the right one.
#[derive(PartialEq, Eq)]
pub struct NamedKey<'t> {
    pub id: &'t str,
    secret: &'t str,
}

impl<'t> Shown<'t> {
    pub fn read(text: &'t [u8]) -> Self {
        let Some(text) = str::from_utf8(text).ok().filter(|text| text.starts_with(PREFIX)) else { return Self::Other };
        NamedKey::read(text).map_or(Self::Mistyped, Self::Named)
    }
}

impl<'t> NamedKey<'t> {
    fn read(text: &'t str) -> Option<Self> {
        if text.len() != KEY_CHARS || !text.is_ascii() {
            return None;
        }
        let (checked, sum) = text.split_at(KEY_CHARS - CHECKSUM_CHARS);
        let (id, secret) = checked[PREFIX.len()..checked.len() - 1].split_at(ID_CHARS);
        let secret = secret.strip_prefix('_')?;
        (checked.ends_with('_') && sum == checksum(checked)).then_some(Self { id, secret })
    }

    pub fn digest(&self) -> Digest {
        Digest::of(self.secret.as_bytes())
    }
}

/// Never shows the secret.
impl fmt::Debug for NamedKey<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NamedKey").field("id", &self.id).finish_non_exhaustive()
    }
}

/// A new key: its id, the text that its client sends, and what the server keeps of it.
pub struct NewKey {
    pub id: String,
    pub text: String,
    pub digest: Digest,
}

impl NewKey {
    /// Made of bytes that nobody can foresee.
    ///
    /// # Errors
    /// The system has none to give.
    pub fn random() -> std::io::Result<Self> {
        Ok(Self::of(&random()?))
    }

    fn of(random: &[u8; 37]) -> Self {
        /// 32 of them, so five bits choose one. Without the four that people mistake for others.
        const LETTERS: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";
        let (for_id, for_secret) = random.split_at(5);
        let bits = for_id.iter().fold(0_u64, |bits, byte| bits << 8 | u64::from(*byte));
        let id: String = (0..ID_CHARS).map(|n| char::from(LETTERS[(bits >> (5 * n)) as usize % 32])).collect();
        let secret = BASE64_URL_SAFE_NO_PAD.encode(for_secret);
        let checked = format!("{PREFIX}{id}_{secret}_");
        let text = format!("{checked}{}", checksum(&checked));
        Self { id, text, digest: Digest::of(secret.as_bytes()) }
    }
}

/// Bytes that nobody can foresee.
pub(super) fn random<const N: usize>() -> std::io::Result<[u8; N]> {
    let mut random = [0; N];
    let mut filled = 0;
    while filled < N {
        filled += rustix::rand::getrandom(&mut random[filled..], rustix::rand::GetRandomFlags::empty())?;
    }
    Ok(random)
}

/// The CRC-32 of a text, in base 62.
fn checksum(text: &str) -> String {
    const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let mut crc = flate2::Crc::new();
    crc.update(text.as_bytes());
    let digit = |place| char::from(DIGITS[(crc.sum() / 62_u32.pow(place)) as usize % 62]);
    (0..CHECKSUM_CHARS as u32).rev().map(digit).collect()
}

/// The SHA-256 of a secret.
#[derive(Clone, Copy)]
pub struct Digest([u8; 32]);

impl Digest {
    pub fn of(secret: &[u8]) -> Self {
        Self(digest(&SHA256, secret).as_ref().try_into().expect("a SHA-256 has 32 bytes"))
    }

    /// The one comparison of secrets. The time that it takes depends on neither of them.
    pub fn is(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Digest(..)")
    }
}

/// As 64 hexadecimal digits, which `printf %s SECRET | sha256sum` prints, too.
impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let mut bytes = [0; 32];
        let is_hex = text.len() == 2 * bytes.len() && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !is_hex {
            return Err(D::Error::custom("a SHA-256 has 64 hexadecimal digits"));
        }
        for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
            let digits = str::from_utf8(digits).map_err(D::Error::custom)?;
            *byte = u8::from_str_radix(digits, 16).map_err(D::Error::custom)?;
        }
        Ok(Self(bytes))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_key_has_the_documented_form() {
        let key = NewKey::of(&[0; 37]);
        // The checksum by Python: zlib.crc32 of all before it.
        assert_eq!(key.text, "ep_aaaaaaaa_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA_0s3jAB");
        assert_eq!(key.text.len(), KEY_CHARS);
        let (one, other) = (NewKey::random().unwrap(), NewKey::random().unwrap());
        assert!(one.id != other.id && one.text != other.text && !one.digest.is(&other.digest));
        let shown = NamedKey::read(&one.text).unwrap();
        assert!(!format!("{shown:?} {:?}", one.digest).contains(shown.secret));
    }

    proptest! {
        #[test]
        fn a_key_is_read_back_and_a_typo_in_it_is_noticed(
            random: [u8; 32], id: [u8; 5], at in 0..KEY_CHARS, with in "[A-Za-z0-9_-]"
        ) {
            let mut all = [0; 37];
            all[..5].copy_from_slice(&id);
            all[5..].copy_from_slice(&random);
            let key = NewKey::of(&all);
            let shown = NamedKey::read(&key.text).unwrap();
            prop_assert!(shown.id == key.id && shown.digest().is(&key.digest));
            let mut typo = key.text.clone();
            typo.replace_range(at..=at, &with);
            prop_assert!(typo == key.text || NamedKey::read(&typo).is_none(), "{}", typo);
            typo.remove(at);
            prop_assert!(NamedKey::read(&typo).is_none());
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(bytes: Vec<u8>, tail in "ep_.{0,80}") {
            Shown::read(&bytes);
            prop_assert!(!matches!(Shown::read(tail.as_bytes()), Shown::Other));
        }
    }
}
