//! Sums of hashes per bucket, and where two ends differ. Pure.

use std::collections::{BTreeMap, BTreeSet};

/// Rows and sum of their hashes, by bucket. A sum and not an exclusive or: a row that is there twice counts twice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Sums(BTreeMap<i64, (i64, i128)>);

impl Sums {
    /// Adds rows (or takes them away) to a bucket.
    pub(super) fn add(&mut self, bucket: i64, rows: i64, sum: i128) {
        let entry = self.0.entry(bucket).or_default();
        *entry = (entry.0 + rows, entry.1 + sum);
    }

    /// All rows.
    pub(super) fn rows(&self) -> u64 {
        self.0.values().map(|(rows, _)| u64::try_from(*rows).unwrap_or_default()).sum()
    }

    /// Buckets in which the two differ, with the rows that the larger one has there.
    pub(super) fn differing(&self, other: &Self) -> Vec<(i64, u64)> {
        let buckets: BTreeSet<&i64> = self.0.keys().chain(other.0.keys()).collect();
        let at = |sums: &Self, bucket: &i64| sums.0.get(bucket).copied().unwrap_or_default();
        let rows = |bucket: &i64| at(self, bucket).0.max(at(other, bucket).0);
        buckets
            .into_iter()
            .filter(|bucket| at(self, bucket) != at(other, bucket))
            .map(|bucket| (*bucket, u64::try_from(rows(bucket)).unwrap_or_default()))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_add_up_and_a_doubled_row_differs() {
        let (mut one, mut other) = (Sums::default(), Sums::default());
        one.add(1, 2, i128::from(i64::MAX));
        one.add(1, 1, i128::from(i64::MAX));
        other.add(1, 3, 2 * i128::from(i64::MAX));
        assert_eq!((one.differing(&other), one.rows()), (vec![], 3));
        other.add(1, 2, 0);
        other.add(9, 1, 5);
        assert_eq!(one.differing(&other), [(1, 5), (9, 1)]);
        other.add(9, -1, -5);
        assert_eq!(one.differing(&other), [(1, 5)], "what came and went again is nothing");
    }
}
