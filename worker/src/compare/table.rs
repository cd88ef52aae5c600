//! One table at both ends, at one barrier: the sums of all rows that did not change meanwhile, then the rows that did,
//! one by one; where sums differ, the keys that make the difference.

use std::collections::{BTreeMap, BTreeSet};

use futures::future::try_join;

use super::cell::Cell;
use super::changes::{Delta, Key, Last, TableChanges};
use super::side::{Awaited, HashedRow, Locked, Side, Unsettled};
use super::subject::{Buckets, Hashing, Subject};
use super::sums::Sums;
use super::verdict::{Difference, Kind, TableResult, Values, Verdict};

/// Rows that are fetched with their hashes to search them for differences.
const SEARCH_ROWS_MAX: u64 = 20_000;
/// Buckets that are searched when there is more.
const SEARCH_BUCKETS_MAX: usize = 64;
/// Bits of a hash after which no bucket is told apart further.
const BITS_MAX: u32 = 56;
/// Changed rows that are compared at a time.
const ROWS_AT_A_TIME: usize = 500;

/// Both ends, at one barrier.
pub(super) struct Ends<'a> {
    pub(super) source: &'a Side,
    pub(super) sink: &'a Side,
    pub(super) hashing: Hashing,
    /// Rows that are named.
    pub(super) limit: usize,
    pub(super) has_values: bool,
    /// Where the barrier is.
    pub(super) position: String,
    /// The sink table has partitions; the source's.
    pub(super) is_sink_partitioned: bool,
    pub(super) is_source_partitioned: bool,
}

/// Both ends of a table that is locked, and what is found out about it.
struct Comparing<'a> {
    subject: &'a Subject,
    source: Locked<'a>,
    sink: Locked<'a>,
    hashing: Hashing,
    limit: usize,
    has_values: bool,
    result: TableResult,
    differences: Vec<Difference>,
}

/// Compares a table.
pub(super) async fn compare(
    ends: &Ends<'_>,
    subject: &Subject,
    changes: TableChanges,
) -> Result<(TableResult, Vec<Difference>), Unsettled> {
    if let Some(why) = changes.void {
        return Err(Unsettled::Later(why));
    }
    let rows = changes.rows.len().max(changes.deltas.len()) as u64;
    compare_with(ends, subject, rows, async |comparing| {
        comparing.run(ends, &changes.rows, &changes.deltas).await
    })
    .await
}

/// Locks both ends of a table, and compares what is meant.
async fn compare_with(
    ends: &Ends<'_>,
    subject: &Subject,
    changed_rows: u64,
    run: impl AsyncFnOnce(&mut Comparing<'_>) -> Result<(), Unsettled>,
) -> Result<(TableResult, Vec<Difference>), Unsettled> {
    let awaited = Awaited::default();
    let source = ends
        .source
        .lock(&subject.name, ends.is_source_partitioned, subject.projection.as_ref(), &awaited)
        .await?;
    let sink = match ends.sink.lock(&subject.sink, ends.is_sink_partitioned, None, &awaited).await {
        Ok(sink) => sink,
        Err(why) => {
            source.unlock().await?;
            return Err(why);
        }
    };
    let result = TableResult {
        position: Some(ends.position.clone()),
        reason: None,
        left_out_columns: subject.left_out.clone(),
        changed_rows,
        ..TableResult::unknown(subject.name.to_string(), subject.sink.to_string(), String::new())
    };
    let mut comparing = Comparing {
        subject,
        source,
        sink,
        hashing: ends.hashing,
        limit: ends.limit,
        has_values: ends.has_values,
        result,
        differences: Vec::new(),
    };
    let mut compared = run(&mut comparing).await;
    if compared.is_ok() && comparing.result.differing_rows > 0 {
        for (side, name) in [(ends.source, &subject.name), (ends.sink, &subject.sink)] {
            if !side.is_as_at_snapshot(name).await? {
                compared = Err(Unsettled::Later("its columns or keys were changed meanwhile".into()));
            }
        }
    }
    let Comparing { source, sink, mut result, differences, .. } = comparing;
    source.unlock().await?;
    sink.unlock().await?;
    compared?;
    result.verdict = if result.differing_rows == 0 { Verdict::Equal } else { Verdict::Different };
    Ok((result, differences))
}

/// Compares the rows with these keys, as both ends have them now.
pub(super) async fn compare_keys(
    ends: &Ends<'_>,
    subject: &Subject,
    keys: &[Key],
) -> Result<(TableResult, Vec<Difference>), Unsettled> {
    compare_with(ends, subject, keys.len() as u64, async |comparing| comparing.judge_keys(keys).await).await
}

impl Comparing<'_> {
    /// One by one.
    async fn judge_keys(&mut self, keys: &[Key]) -> Result<(), Unsettled> {
        for keys in keys.chunks(ROWS_AT_A_TIME) {
            let (at_source, at_sink) =
                try_join(self.source.lookup(self.subject, keys), self.sink.lookup(self.subject, keys))
                    .await?;
            for key in keys {
                let rows = |found: &super::side::Found| found.get(key).cloned().unwrap_or_default();
                let (source, sink) = (rows(&at_source), rows(&at_sink));
                self.result.source_rows += source.len() as u64;
                self.result.sink_rows += sink.len() as u64;
                self.judge(key, &source, &sink);
            }
        }
        Ok(())
    }

    async fn run(
        &mut self,
        ends: &Ends<'_>,
        changed: &BTreeMap<Key, Last>,
        deltas: &[Delta],
    ) -> Result<(), Unsettled> {
        let hashes = ends.source.hash_rows(self.subject, self.hashing, deltas).await?;
        let deltas: Vec<(i64, i64)> =
            hashes.into_iter().zip(deltas).map(|(hash, delta)| (hash, delta.sign)).collect();
        let buckets = Buckets::for_rows(self.subject.estimated_rows);
        let excluded: Vec<&Key> = changed.keys().collect();
        let (source, sink) = self.sums(&buckets, &excluded, &deltas).await?;
        self.result.source_rows = source.rows();
        self.result.sink_rows = sink.rows();
        self.compare_changed(changed).await?;
        let differing = source.differing(&sink);
        if differing.is_empty() {
            return Ok(());
        }
        let named = self.result.differing_rows;
        self.search(buckets, differing, &excluded, &deltas).await?;
        if self.result.differing_rows == named {
            return Err(Unsettled::Later("its sums differed, and none of its rows".into()));
        }
        Ok(())
    }

    async fn sums(
        &self,
        buckets: &Buckets,
        excluded: &[&Key],
        deltas: &[(i64, i64)],
    ) -> Result<(Sums, Sums), Unsettled> {
        let (mut source, sink) = try_join(
            self.source.sums(self.subject, self.hashing, buckets, excluded),
            self.sink.sums(self.subject, self.hashing, buckets, excluded),
        )
        .await?;
        for (hash, sign) in deltas {
            if let Some(bucket) = buckets.bucket_of(*hash) {
                source.add(bucket, *sign, i128::from(*hash) * i128::from(*sign));
            }
        }
        Ok((source, sink))
    }

    /// Rows that changed between snapshot and barrier, one by one.
    async fn compare_changed(&mut self, changed: &BTreeMap<Key, Last>) -> Result<(), Unsettled> {
        let all: Vec<(&Key, &Last)> = changed.iter().collect();
        for some in all.chunks(ROWS_AT_A_TIME) {
            let keys: Vec<Key> = some.iter().map(|(key, _)| (*key).clone()).collect();
            let origins: BTreeSet<Key> = some.iter().filter_map(|(_, last)| last.needs()).cloned().collect();
            let origins: Vec<Key> = origins.into_iter().collect();
            let (before, found) =
                try_join(self.source.lookup(self.subject, &origins), self.sink.lookup(self.subject, &keys))
                    .await?;
            for (key, last) in some {
                let origin = last.needs().and_then(|origin| before.get(origin)?.first());
                let expected = last.whole(origin.map(Vec::as_slice)).ok_or_else(|| {
                    Unsettled::Later("a value that the stream did not repeat is not in the snapshot".into())
                })?;
                let found = found.get(*key).map_or(&[][..], Vec::as_slice);
                self.result.source_rows += expected.len() as u64;
                self.result.sink_rows += found.len() as u64;
                self.judge(key, &expected, found);
            }
        }
        Ok(())
    }

    /// Compares what one key has at both ends; says whether it is the same.
    fn judge(&mut self, key: &Key, source: &[Vec<Cell>], sink: &[Vec<Cell>]) -> bool {
        let (kind, rows) = match (source, sink) {
            ([], []) => return true,
            ([source], [sink]) if source == sink => return true,
            ([_], [_]) => (Kind::Differs, 1),
            _ if source.len() > sink.len() => (Kind::MissingInSink, source.len() - sink.len()),
            _ => (Kind::ExtraInSink, sink.len().saturating_sub(source.len()).max(1)),
        };
        self.result.differing_rows += 1;
        if self.differences.len() >= self.limit {
            return false;
        }
        let none = Vec::new();
        let (source, sink) = (source.first().unwrap_or(&none), sink.first().unwrap_or(&none));
        let at = |cells: &[Cell], place: usize| cells.get(place).and_then(Cell::shown);
        let differing: Vec<usize> = (0..self.subject.columns.len())
            .filter(|place| kind == Kind::Differs && source.get(*place) != sink.get(*place))
            .collect();
        let name = |place: &usize| self.subject.columns.get(*place).cloned();
        let values = |place: &usize| {
            Some(Values { column: name(place)?, source: at(source, *place), sink: at(sink, *place) })
        };
        let shown: Vec<usize> =
            if kind == Kind::Differs { differing.clone() } else { (0..self.subject.columns.len()).collect() };
        self.differences.push(Difference {
            table: self.subject.name.to_string(),
            key: self.subject.key.iter().cloned().zip(key.iter().cloned()).collect(),
            place: None,
            kind,
            rows: rows as u64,
            columns: differing.iter().filter_map(name).collect(),
            values: if self.has_values { shown.iter().filter_map(values).collect() } else { Vec::new() },
        });
        false
    }

    /// Down from buckets to keys.
    async fn search(
        &mut self,
        mut buckets: Buckets,
        mut differing: Vec<(i64, u64)>,
        excluded: &[&Key],
        deltas: &[(i64, i64)],
    ) -> Result<(), Unsettled> {
        let too_many =
            |differing: &[(i64, u64)]| differing.iter().map(|(_, rows)| *rows).sum::<u64>() > SEARCH_ROWS_MAX;
        while too_many(&differing) {
            self.result.is_at_least |= differing.len() > SEARCH_BUCKETS_MAX;
            differing.truncate(SEARCH_BUCKETS_MAX);
            if !too_many(&differing) || buckets.bits >= BITS_MAX {
                break;
            }
            buckets = buckets.finer(differing.iter().map(|(bucket, _)| *bucket).collect());
            let (source, sink) = self.sums(&buckets, excluded, deltas).await?;
            differing = source.differing(&sink);
        }
        let buckets = buckets.only(differing.iter().map(|(bucket, _)| *bucket).collect());
        let (source, sink) = try_join(
            self.source.rows(self.subject, self.hashing, &buckets),
            self.sink.rows(self.subject, self.hashing, &buckets),
        )
        .await?;
        if self.subject.has_key() {
            let excluded: BTreeSet<&Key> = excluded.iter().copied().collect();
            self.name_keys(&source, &sink, &excluded).await
        } else {
            let deltas = deltas.iter().filter(|(hash, _)| buckets.bucket_of(*hash).is_some());
            self.name_places(source, sink, deltas);
            Ok(())
        }
    }

    async fn name_keys(
        &mut self,
        source: &[HashedRow],
        sink: &[HashedRow],
        excluded: &BTreeSet<&Key>,
    ) -> Result<(), Unsettled> {
        let mut hashes: BTreeMap<&Key, (Vec<i64>, Vec<i64>)> = BTreeMap::new();
        for row in source.iter().filter(|row| !excluded.contains(&row.name)) {
            hashes.entry(&row.name).or_default().0.push(row.hash);
        }
        for row in sink.iter().filter(|row| !excluded.contains(&row.name)) {
            hashes.entry(&row.name).or_default().1.push(row.hash);
        }
        let differing: Vec<Key> = hashes
            .into_iter()
            .filter(|(_, (source, sink))| !is_same_set(source, sink))
            .map(|(key, _)| key.clone())
            .collect();
        let named = self.limit.saturating_sub(self.differences.len()).min(differing.len());
        let (named, rest) = differing.split_at(named);
        self.result.differing_rows += rest.len() as u64;
        let (at_source, at_sink) =
            try_join(self.source.lookup(self.subject, named), self.sink.lookup(self.subject, named)).await?;
        for key in named {
            let rows = |found: &super::side::Found| found.get(key).cloned().unwrap_or_default();
            let is_same = self.judge(key, &rows(&at_source), &rows(&at_sink));
            // The hashes differ, and so do the rows.
            self.result.differing_rows += u64::from(is_same);
        }
        Ok(())
    }

    /// Rows without a key: how often each hash is there.
    fn name_places<'b>(
        &mut self,
        source: Vec<HashedRow>,
        sink: Vec<HashedRow>,
        deltas: impl Iterator<Item = &'b (i64, i64)>,
    ) {
        let mut counts: BTreeMap<i64, (i64, i64, Option<String>)> = BTreeMap::new();
        let place = |row: &HashedRow, end: &str| Some(format!("ctid {} of the {end}", row.name.first()?));
        for row in source {
            let entry = counts.entry(row.hash).or_default();
            entry.0 += row.count;
            entry.2 = place(&row, "source");
        }
        for (hash, sign) in deltas {
            counts.entry(*hash).or_default().0 += sign;
        }
        for row in sink {
            let entry = counts.entry(row.hash).or_default();
            entry.1 += row.count;
            entry.2 = place(&row, "sink");
        }
        for (source, sink, place) in counts.into_values().filter(|(source, sink, _)| source != sink) {
            let rows = source.abs_diff(sink);
            self.result.differing_rows += rows;
            if self.differences.len() >= self.limit {
                continue;
            }
            self.differences.push(Difference {
                table: self.subject.name.to_string(),
                key: BTreeMap::new(),
                place: Some(place.unwrap_or_else(|| "a row that is new at the source".into())),
                kind: if source > sink { Kind::MissingInSink } else { Kind::ExtraInSink },
                rows,
                columns: Vec::new(),
                values: Vec::new(),
            });
        }
    }
}

impl Last {
    /// Key of the snapshot's row whose values are needed.
    fn needs(&self) -> Option<&Key> {
        match self {
            Self::Row { cells, origin } if cells.contains(&Cell::Unchanged) => origin.as_ref(),
            Self::Row { .. } | Self::Gone => None,
        }
    }

    /// The row with the values of the snapshot's row where they did not change; none, if it is gone. `None`: there is
    /// no such row in the snapshot.
    fn whole(&self, before: Option<&[Cell]>) -> Option<Vec<Vec<Cell>>> {
        let Self::Row { cells, .. } = self else { return Some(Vec::new()) };
        let cell = |(place, cell): (usize, &Cell)| match cell {
            Cell::Unchanged => before?.get(place).cloned(),
            Cell::Null | Cell::Text(_) | Cell::Digest(..) => Some(cell.clone()),
        };
        cells.iter().enumerate().map(cell).collect::<Option<Vec<_>>>().map(|row| vec![row])
    }
}

/// A key may be there more than once at an end where nothing forbids it.
fn is_same_set(one: &[i64], other: &[i64]) -> bool {
    let sorted = |hashes: &[i64]| {
        let mut hashes = hashes.to_vec();
        hashes.sort_unstable();
        hashes
    };
    one == other || sorted(one) == sorted(other)
}
