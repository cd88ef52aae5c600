//! Masks: what is put in the place of a value. The result is text, the same in both formats.

use std::fmt::{self, Write as _};
use std::sync::Arc;

use bytes::Bytes;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::{Digest as _, Sha256};

use super::error::RowError;
use crate::change::{ColumnType, Definition, STABLE_OIDS_END, Value};

/// Shorter keys could be found by trying.
const KEY_BYTES_MIN: usize = 16;
/// What SHA-256 takes at a time.
const BLOCK: usize = 64;

/// The key of a hash.
#[derive(Clone, PartialEq, Eq)]
pub struct MaskKey(Vec<u8>);

impl MaskKey {
    /// `None`: it is too short.
    pub fn new(bytes: &[u8]) -> Option<Self> {
        (bytes.len() >= KEY_BYTES_MIN).then(|| Self(bytes.to_vec()))
    }

    /// HMAC-SHA-256 in hexadecimal.
    fn hash(&self, value: &[u8]) -> String {
        // A key of any length is taken; there is no other reason to refuse one.
        Hmac::<Sha256>::new_from_slice(&self.0)
            .map(|mut mac| {
                mac.update(value);
                hex::encode(mac.finalize().into_bytes())
            })
            .unwrap_or_default()
    }

    /// Tells keys apart without saying anything about them.
    fn fingerprint(&self) -> String {
        let mut digest = self.hash(b"penstock: which key this is");
        digest.truncate(32);
        digest
    }

    /// The key as RFC 2104 mixes it into the inner and the outer hash, in hexadecimal.
    pub(super) fn pads(&self) -> (String, String) {
        let mut block = if self.0.len() > BLOCK { Sha256::digest(&self.0).to_vec() } else { self.0.clone() };
        block.resize(BLOCK, 0);
        let pad = |with: u8| hex::encode(block.iter().map(|byte| byte ^ with).collect::<Vec<_>>());
        (pad(0x36), pad(0x5c))
    }
}

impl fmt::Debug for MaskKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MaskKey")
    }
}

/// How the values of a column are masked, and read for that; `None`: they are not.
pub(super) type ColumnMask = Option<(Arc<Mask>, Option<Input>)>;

/// What is put in the place of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Mask {
    /// A keyed hash, with the key of this Secret.
    Hash(String, MaskKey),
    /// This text.
    Redact(Bytes),
    /// So many of its first characters.
    Truncate(usize),
}

/// How the bytes of a value are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Input {
    /// They are text in both formats.
    Text,
    /// In binary a whole number, of 2, 4 or 8 bytes.
    Integer,
    /// In binary 16 bytes.
    Uuid,
}

impl Input {
    /// `None`: nothing but PostgreSQL knows how its binary format reads as text.
    pub(super) fn of(column_type: &ColumnType) -> Option<Self> {
        match column_type.made() {
            None if column_type.is_built_in() => Self::of_oid(column_type.oid),
            None => None,
            // The labels travel as they are. What an extension's type looks like in binary is its own affair, but such
            // columns travel as text.
            Some(made) => {
                let is_citext = made.name.name == "citext" && made.extension.as_deref() == Some("citext");
                (is_citext || matches!(made.definition, Definition::Enum(_))).then_some(Self::Text)
            }
        }
    }

    /// Of a built-in type.
    pub(super) fn of_oid(oid: u32) -> Option<Self> {
        match oid {
            // text, varchar, char(n)
            25 | 1043 | 1042 => Some(Self::Text),
            // smallint, integer, bigint
            21 | 23 | 20 => Some(Self::Integer),
            2950 => Some(Self::Uuid),
            _ => None,
        }
    }

    /// Whether an OID of the stream says by itself how values are read.
    pub(super) fn is_known_by_oid(oid: u32) -> bool {
        oid < STABLE_OIDS_END
    }
}

impl Mask {
    /// Whether columns can be masked like this whose values are read like that.
    pub(super) fn takes(&self, input: Option<Input>) -> bool {
        match self {
            Self::Hash(..) => input.is_some(),
            Self::Redact(_) => true,
            Self::Truncate(_) => input == Some(Input::Text),
        }
    }

    /// What it takes, for people.
    pub(super) fn takes_what(&self) -> &'static str {
        match self {
            Self::Hash(..) => {
                "hash takes text, varchar, char, citext, enums, smallint, integer, bigint and uuid"
            }
            Self::Redact(_) => "redact takes every type",
            Self::Truncate(_) => "truncate takes text, varchar, char, citext and enums",
        }
    }

    /// As it is kept beside the rows. Says the same exactly where the same comes of every value.
    pub(super) fn note(&self) -> String {
        match self {
            Self::Hash(_, key) => format!("hash {}", key.fingerprint()),
            Self::Redact(with) => format!("redact {}", String::from_utf8_lossy(with)),
            Self::Truncate(length) => format!("truncate {length}"),
        }
    }

    /// A value of the stream. NULL stays NULL, and what did not change stays unchanged.
    pub(super) fn value(&self, value: Value, input: Option<Input>) -> Result<Value, RowError> {
        match value {
            Value::Null | Value::Unchanged => Ok(value),
            Value::Text(bytes) => Ok(Value::Text(self.text(&bytes)?)),
            Value::Binary(bytes) => Ok(Value::Binary(self.binary(&bytes, input)?)),
        }
    }

    /// A value in its binary format.
    pub(super) fn binary(&self, bytes: &[u8], input: Option<Input>) -> Result<Bytes, RowError> {
        match (self, input) {
            (Self::Redact(with), _) => Ok(with.clone()),
            (_, None) => Err(RowError::UnknownType),
            (_, Some(Input::Text)) => self.text(bytes),
            (_, Some(Input::Integer)) => self.text(integer(bytes)?.to_string().as_bytes()),
            (_, Some(Input::Uuid)) => self.text(uuid(bytes)?.as_bytes()),
        }
    }

    /// What the type's output function wrote.
    pub(super) fn text(&self, text: &[u8]) -> Result<Bytes, RowError> {
        match self {
            Self::Hash(_, key) => Ok(key.hash(text).into()),
            Self::Redact(with) => Ok(with.clone()),
            Self::Truncate(length) => {
                let text = std::str::from_utf8(text).map_err(|_| RowError::NotText)?;
                let end = text.char_indices().nth(*length).map_or(text.len(), |(end, _)| end);
                Ok(Bytes::copy_from_slice(text.get(..end).unwrap_or(text).as_bytes()))
            }
        }
    }
}

fn integer(bytes: &[u8]) -> Result<i64, RowError> {
    if let Ok(bytes) = bytes.try_into() {
        return Ok(i64::from(i16::from_be_bytes(bytes)));
    }
    if let Ok(bytes) = bytes.try_into() {
        return Ok(i64::from(i32::from_be_bytes(bytes)));
    }
    bytes.try_into().map(i64::from_be_bytes).map_err(|_| RowError::OtherType)
}

/// As `uuid_out` writes it.
fn uuid(bytes: &[u8]) -> Result<String, RowError> {
    let bytes: [u8; 16] = bytes.try_into().map_err(|_| RowError::OtherType)?;
    let mut text = String::with_capacity(36);
    for (place, byte) in bytes.iter().enumerate() {
        if matches!(place, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        let _infallible = write!(text, "{byte:02x}");
    }
    Ok(text)
}
