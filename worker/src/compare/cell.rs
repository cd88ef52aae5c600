//! A value as it is compared: short ones as they are, long ones by length and digest, so that memory stays bounded
//! whatever the values are. Pure.

use sha2::{Digest as _, Sha256};

use super::subject::TEXT_KEPT_MAX;

/// A value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Cell {
    /// SQL NULL.
    Null,
    /// What the type's output function writes.
    Text(Box<str>),
    /// The same of a long value: bytes, SHA-256 in hexadecimal.
    Digest(u64, Box<str>),
    /// A value that an UPDATE did not touch and the stream did not repeat: the row's value in the snapshot.
    Unchanged,
}

impl Cell {
    /// Of a text as the stream sends it.
    pub(super) fn of(text: &str) -> Self {
        if text.len() <= TEXT_KEPT_MAX {
            return Self::Text(text.into());
        }
        Self::Digest(text.len() as u64, hex::encode(Sha256::digest(text)).into())
    }

    /// Of what `Subject::lookup_sql` selects.
    pub(super) fn read(written: Option<&str>) -> Option<Self> {
        let Some(written) = written else { return Some(Self::Null) };
        match written.split_at_checked(1)? {
            ("t", text) => Some(Self::Text(text.into())),
            ("d", digest) => {
                let (length, hash) = digest.split_once(':')?;
                Some(Self::Digest(length.parse().ok()?, hash.into()))
            }
            _ => None,
        }
    }

    /// Bytes it keeps in memory.
    pub(super) fn size(&self) -> usize {
        size_of::<Self>()
            + match self {
                Self::Null | Self::Unchanged => 0,
                Self::Text(text) | Self::Digest(_, text) => text.len(),
            }
    }

    /// For people.
    pub(super) fn shown(&self) -> Option<String> {
        match self {
            Self::Null | Self::Unchanged => None,
            Self::Text(text) => Some(text.to_string()),
            Self::Digest(length, hash) => Some(format!("({length} bytes, SHA-256 {hash})")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_values_are_told_apart_by_their_digests() {
        let long = "ü".repeat(TEXT_KEPT_MAX);
        let Cell::Digest(512, hash) = Cell::of(&long) else { panic!("{:?}", Cell::of(&long)) };
        assert_eq!(Cell::read(Some(&format!("d512:{hash}"))), Some(Cell::of(&long)));
        assert_ne!(Cell::of(&long), Cell::of(&long.replacen('ü', "u ", 1)));
        assert_eq!(Cell::read(Some("tshort")), Some(Cell::of("short")));
        assert_eq!(Cell::read(Some("t")), Some(Cell::of("")));
        assert_eq!(Cell::read(None), Some(Cell::Null));
        for bad in ["", "x", "d", "d7", "dx:00"] {
            assert_eq!(Cell::read(Some(bad)), None, "{bad}");
        }
    }
}
