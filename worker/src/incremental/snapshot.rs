//! Which transactions a snapshot of the source sees.

use std::collections::BTreeSet;

/// A snapshot as `pg_current_snapshot()` shows it: `xmin:xmax:xip,…`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Every transaction before it has ended.
    xmin: u64,
    /// None from it on had begun.
    xmax: u64,
    /// Those in between that were running.
    running: BTreeSet<u64>,
}

/// Text that is no snapshot.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a snapshot")]
pub struct InvalidSnapshot(String);

impl std::str::FromStr for Snapshot {
    type Err = InvalidSnapshot;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidSnapshot(text.to_owned());
        let mut parts = text.split(':');
        let mut number = || parts.next().and_then(|part| part.parse().ok()).ok_or_else(invalid);
        let (xmin, xmax) = (number()?, number()?);
        let list = parts.next().ok_or_else(invalid)?;
        let running =
            list.split(',').filter(|xid| !xid.is_empty()).map(|xid| xid.parse().map_err(|_| invalid()));
        Ok(Self { xmin, xmax, running: running.collect::<Result<_, _>>()? })
    }
}

impl Snapshot {
    /// Whether it sees a committed transaction, by the low half of its id, which is what the stream says.
    pub fn sees(&self, xid: u32) -> bool {
        let xid = self.widen(xid);
        xid < self.xmin || (xid < self.xmax && !self.running.contains(&xid))
    }

    /// The id with that low half that is nearest: all ids that matter are within two thousand million of each other.
    fn widen(&self, low: u32) -> u64 {
        const HALF: u64 = 1 << 31;
        let same_epoch = (self.xmax & !u64::from(u32::MAX)) | u64::from(low);
        if same_epoch > self.xmax.saturating_add(HALF) {
            same_epoch.saturating_sub(1 << 32)
        } else if same_epoch.saturating_add(HALF) < self.xmax {
            same_epoch.saturating_add(1 << 32)
        } else {
            same_epoch
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sees_what_had_ended_and_nothing_else() {
        let snapshot: Snapshot = "10:20:10,14".parse().unwrap();
        let seen: Vec<u32> = (5..25).filter(|xid| snapshot.sees(*xid)).collect();
        assert_eq!(seen, [5, 6, 7, 8, 9, 11, 12, 13, 15, 16, 17, 18, 19]);
        assert!("7:7:".parse::<Snapshot>().unwrap().sees(6));
        for bad in ["", "1", "1:2", "a:2:", "1:2:x", "1:2:3,,y"] {
            assert!(bad.parse::<Snapshot>().is_err(), "{bad}");
        }
    }

    #[test]
    fn ids_that_wrapped_around_are_told_apart() {
        // Just after the wrap to the fourth epoch: 4294967290 of the third is seen, 5 is running.
        let epoch = 3_u64 << 32;
        let snapshot: Snapshot = format!("{}:{}:{}", epoch + 5, epoch + 8, epoch + 5).parse().unwrap();
        assert!(snapshot.sees(4_294_967_290) && snapshot.sees(4) && snapshot.sees(7));
        assert!(!snapshot.sees(5) && !snapshot.sees(8));
        // Just before it: 3 belongs to the next epoch and had not begun.
        let snapshot: Snapshot = format!("{}:{}:", epoch - 2, epoch - 2).parse().unwrap();
        assert!(!snapshot.sees(3) && snapshot.sees(4_294_967_293));
    }
}
