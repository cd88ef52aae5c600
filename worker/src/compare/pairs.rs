//! Which tables of the source are which of the sink, and which of them can be compared at all. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::changes::Streamed;
use super::subject::{Projection, Subject};
use super::verdict::TableResult;
use crate::change::table::{SourceColumn, SourceTable, TableName};
use crate::change::{RelationId, ReplicaIdentity, Steps};
use crate::sink::TableAtBarrier;
use crate::transform::Transforms;

/// `"char"` and its array, and the version since which bytes above 127 are written in another way.
const CHAR: [u32; 2] = [18, 1002];
const CHAR_OCTAL_SINCE: u32 = 16;

/// A table at both ends.
#[derive(Clone, Debug)]
pub(super) struct Pair {
    pub(super) subject: Subject,
    pub(super) streamed: Streamed,
    pub(super) is_source_partitioned: bool,
    pub(super) is_sink_partitioned: bool,
}

/// What besides the tables decides what can be compared.
#[derive(Clone, Copy, Debug)]
pub(super) struct Circumstances {
    /// Versions of the servers, on which the text of some values depends.
    pub(super) source_major: u32,
    pub(super) sink_major: u32,
    /// Columns may be missing in the sink.
    pub(super) may_leave_out: bool,
}

/// Matches the tables of the source with those of the shards. What cannot be compared says why.
pub(super) fn pair(
    tables: &[SourceTable],
    transforms: &Transforms,
    only: impl Fn(&TableName) -> bool,
    shards: &BTreeMap<u16, Vec<TableAtBarrier>>,
    circumstances: Circumstances,
) -> (BTreeMap<RelationId, Pair>, Vec<TableResult>) {
    let at_barrier: BTreeMap<&TableName, (u16, &TableAtBarrier)> = shards
        .iter()
        .flat_map(|(shard, tables)| tables.iter().map(move |table| (&table.source, (*shard, table))))
        .collect();
    let (mut pairs, mut unknown) = (BTreeMap::new(), Vec::new());
    for table in tables.iter().filter(|table| only(&table.name)) {
        match one(table, transforms, at_barrier.get(&table.name).copied(), circumstances) {
            Ok(pair) => {
                pairs.insert(table.id, pair);
            }
            Err(why) => {
                let sink =
                    at_barrier.get(&table.name).map_or_else(String::new, |(_, found)| found.sink.to_string());
                unknown.push(TableResult::unknown(table.name.to_string(), sink, why));
            }
        }
    }
    (pairs, unknown)
}

fn one(
    table: &SourceTable,
    transforms: &Transforms,
    found: Option<(u16, &TableAtBarrier)>,
    circumstances: Circumstances,
) -> Result<Pair, String> {
    let Some((shard, found)) = found else { return Err("the pipeline has not taken it in yet".into()) };
    if found.source_oid != table.id.0 {
        return Err("it was made anew at the source and is not copied yet".into());
    }
    if !found.is_followed {
        return Err("its rows are being copied, or are to be copied again".into());
    }
    let streamed: Vec<String> = in_stream(table).map(|column| column.name.clone()).collect();
    let steps = transforms.of(table.id);
    let nothing = Steps::default();
    let is_same = found.steps.as_ref().is_some_and(|was| {
        let now = steps.map_or(&nothing, |steps| steps.steps());
        was.do_the_same(now, table.columns.iter().map(|column| column.name.as_str()))
    });
    if !is_same {
        return Err(
            "its rows were brought with other transforms (or keys of masks) than the manifest has".into()
        );
    }
    let in_sink = transforms.table(table).map_err(|error| error.to_string())?;
    let carried: Vec<_> = in_stream(&in_sink).collect();
    let is_char = |oid: u32| CHAR.contains(&oid);
    let is_changed =
        (circumstances.source_major >= CHAR_OCTAL_SINCE) != (circumstances.sink_major >= CHAR_OCTAL_SINCE);
    if is_changed
        && let Some(column) =
            carried.iter().find(|column| column.column_type.all().iter().any(|part| is_char(part.oid)))
    {
        return Err(format!(
            "its column {} is of the type \"char\", which versions {} and {} write differently",
            column.name, circumstances.source_major, circumstances.sink_major
        ));
    }
    let there: BTreeSet<&String> = found.columns.iter().collect();
    let (columns, left_out): (Vec<String>, Vec<String>) =
        carried.iter().map(|column| column.name.clone()).partition(|name| there.contains(name));
    if !left_out.is_empty() && !circumstances.may_leave_out {
        return Err(format!("the sink table has no column {}", left_out.join(", ")));
    }
    let key = key(&in_sink, &columns);
    let is_key_built_in = key.iter().all(|name| {
        in_sink.columns.iter().any(|column| column.name == *name && column.column_type.is_built_in())
    });
    Ok(Pair {
        subject: Subject {
            name: table.name.clone(),
            sink: found.sink.clone(),
            shard,
            columns,
            projection: steps.map(|steps| {
                let is_carried = |column: &&String| steps.steps().of(column).is_some();
                let columns = streamed.iter().filter(is_carried).cloned().collect();
                Projection { steps: Arc::clone(steps), columns }
            }),
            left_out,
            key,
            is_key_built_in,
            estimated_rows: table.estimated_rows,
        },
        streamed: Streamed {
            columns: streamed,
            replica_identity: table.replica_identity,
            identity_columns: table.identity_columns.clone(),
        },
        is_source_partitioned: table.is_partitioned,
        is_sink_partitioned: found.is_partitioned,
    })
}

/// The columns that the stream carries.
fn in_stream(table: &SourceTable) -> impl Iterator<Item = &SourceColumn> {
    table.columns.iter().filter(|column| column.generated.is_none())
}

/// What names a row at both ends: the replica identity; where that is the whole row, the primary key. One that may be
/// broken within a transaction does not tell the stream's rows apart.
fn key(table: &SourceTable, carried: &[String]) -> Vec<String> {
    let key = match table.replica_identity {
        ReplicaIdentity::Default | ReplicaIdentity::Index => &table.identity_columns,
        ReplicaIdentity::Full | ReplicaIdentity::Nothing if !table.is_primary_key_deferrable => {
            &table.primary_key
        }
        ReplicaIdentity::Full | ReplicaIdentity::Nothing => return Vec::new(),
    };
    if key.iter().all(|column| carried.contains(column)) { key.clone() } else { Vec::new() }
}
