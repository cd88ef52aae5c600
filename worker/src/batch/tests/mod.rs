mod history;
mod model;
mod rules;
mod size;

use bytes::Bytes;

use super::{Batch, Limits, TableTraits};
use crate::change::{Change, OldRow, RelationId, Row, Value};

const TABLE: RelationId = RelationId(1);
const OTHER: RelationId = RelationId(2);
const UNLIMITED: Limits = Limits { max_rows: usize::MAX, max_bytes: usize::MAX };

fn keyed() -> TableTraits {
    TableTraits { key: vec![0], order_matters: false }
}

fn ordered() -> TableTraits {
    TableTraits { key: vec![0], order_matters: true }
}

fn keyless() -> TableTraits {
    TableTraits { key: vec![], order_matters: true }
}

fn value(text: &str) -> Value {
    match text {
        "null" => Value::Null,
        "unchanged" => Value::Unchanged,
        _ => Value::Binary(Bytes::copy_from_slice(text.as_bytes())),
    }
}

/// Values from words; `null` and `unchanged` mean themselves.
fn row(words: &str) -> Row {
    Row(words.split_whitespace().map(value).collect())
}

fn insert(words: &str) -> Change {
    Change::Insert { relation: TABLE, new: row(words) }
}

fn update(words: &str) -> Change {
    Change::Update { relation: TABLE, old: None, new: row(words) }
}

fn update_from(old: &str, words: &str) -> Change {
    Change::Update { relation: TABLE, old: Some(OldRow::Key(row(old))), new: row(words) }
}

fn update_full(old: &str, words: &str) -> Change {
    Change::Update { relation: TABLE, old: Some(OldRow::Full(row(old))), new: row(words) }
}

fn delete(old: &str) -> Change {
    Change::Delete { relation: TABLE, old: OldRow::Key(row(old)) }
}

fn truncate(relations: &[RelationId]) -> Change {
    Change::Truncate { relations: relations.to_vec(), cascade: false, restart_identity: false }
}

fn on(relation: RelationId, change: Change) -> Change {
    match change {
        Change::Insert { new, .. } => Change::Insert { relation, new },
        Change::Update { old, new, .. } => Change::Update { relation, old, new },
        Change::Delete { old, .. } => Change::Delete { relation, old },
        truncate @ Change::Truncate { .. } => truncate,
    }
}

fn batch_of(traits: &TableTraits, changes: impl IntoIterator<Item = Change>) -> Batch {
    let mut batch = Batch::new(UNLIMITED);
    for change in changes {
        batch.push(traits, change).unwrap();
    }
    batch
}
