//! Where in the source's write-ahead log something stands.

use std::fmt;
use std::str::FromStr;

/// A byte address in the source's write-ahead log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

/// Text that is not `X/Y` in hexadecimal.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a log sequence number: it is written as two hexadecimal numbers, for example 0/16B3748"
)]
pub struct InvalidLsn(String);

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl FromStr for Lsn {
    type Err = InvalidLsn;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidLsn(text.to_owned());
        let (high, low) = text.split_once('/').ok_or_else(invalid)?;
        let part = |digits: &str| u32::from_str_radix(digits, 16).map_err(|_| invalid());
        Ok(Self(u64::from(part(high)?) << 32 | u64::from(part(low)?)))
    }
}

/// The exact place of a settled change: unlike a bare LSN it is unique per event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// Address of the transaction's COMMIT record.
    pub commit_lsn: Lsn,
    /// Transaction id.
    pub xid: u32,
    /// Changes of the transaction that are settled, from 1; a checkpoint always stands after the last.
    pub ordinal: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lsn_is_read_as_it_is_written() {
        for text in ["0/0", "0/16B3748", "1A/FFFFFFFF", "FFFFFFFF/1"] {
            assert_eq!(text.parse::<Lsn>().unwrap().to_string(), text);
        }
        for bad in ["", "16B3748", "0/", "/0", "0/G", "0/1FFFFFFFF", "-1/0"] {
            assert!(bad.parse::<Lsn>().is_err(), "{bad}");
        }
    }

    #[test]
    fn positions_order_by_commit_then_transaction_then_ordinal() {
        let at = |lsn, xid, ordinal| Position { commit_lsn: Lsn(lsn), xid, ordinal };
        assert!(at(1, 9, 9) < at(2, 1, 1));
        assert!(at(2, 1, 9) < at(2, 2, 1));
        assert!(at(2, 2, 1) < at(2, 2, 2));
    }
}
