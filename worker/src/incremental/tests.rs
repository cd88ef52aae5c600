//! A source in miniature: transactions commit, become visible later, and are streamed in the order of their commits,
//! while a table is copied. At the end the sink must hold what the source holds.

use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::change::{RelationColumn, RelationId, ReplicaIdentity};

const T: RelationId = RelationId(1);

fn value(number: i64) -> Value {
    Value::Binary(Bytes::copy_from_slice(&number.to_be_bytes()))
}

fn row(id: i64, body: i64) -> Row {
    Row(vec![value(id), value(body)])
}

fn relation() -> Relation {
    let column =
        |name: &str, is_key| RelationColumn { name: name.into(), type_oid: 20, type_modifier: -1, is_key };
    Relation {
        id: T,
        schema: "public".into(),
        name: "t".into(),
        replica_identity: ReplicaIdentity::Default,
        columns: vec![column("id", true), column("body", false)],
    }
}

fn table(copied: Copied) -> Table {
    let key = vec![KeyColumn { name: "id".into(), type_sql: "bigint".into(), order: KeyOrder::Signed }];
    let mut table = Table::new(key, copied);
    table.describe(&relation()).unwrap();
    table
}

fn key(id: i64) -> Key {
    Key::new(table(Copied::Nothing).key(), &[Bytes::copy_from_slice(&id.to_be_bytes())])
}

fn snapshot(text: &str) -> Arc<Snapshot> {
    Arc::new(text.parse().unwrap())
}

fn insert(id: i64, body: i64) -> Change {
    Change::Insert { relation: T, new: row(id, body) }
}

fn key_row(id: i64) -> OldRow {
    OldRow::Key(Row(vec![value(id), Value::Null]))
}

fn update(id: i64, body: i64) -> Change {
    Change::Update { relation: T, old: None, new: row(id, body) }
}

fn read(rows: &[(i64, i64)], last: Option<i64>) -> Read {
    let rows = rows.iter().map(|(id, body)| row(*id, *body)).collect();
    Read { relation: relation(), rows, last: last.map(key) }
}

#[test]
fn keys_are_ordered_as_numbers() {
    let mut ids = [5, -3, 0, i64::MAX, i64::MIN, -4];
    ids.sort_by_key(|id| key(*id));
    assert_eq!(ids, [i64::MIN, -4, -3, 0, 5, i64::MAX]);
}

#[test]
fn a_change_that_the_snapshot_does_not_see_is_applied_on_top_of_the_rows() {
    let mut table = table(Copied::Nothing);
    table.opening();
    assert_eq!(table.take(7, update(1, 70)).unwrap(), Verdict::Leave);
    assert_eq!(table.take(9, update(1, 90)).unwrap(), Verdict::Leave);
    assert!(table.opened(&snapshot("9:10:9")));
    assert_eq!(table.take(8, update(1, 80)).unwrap(), Verdict::Leave);
    assert_eq!(table.take(12, insert(2, 120)).unwrap(), Verdict::Leave);
    let landed = table.land(read(&[(1, 80)], Some(1))).unwrap().unwrap();
    assert_eq!(landed, [row(1, 90)]);
    assert_eq!(table.take(13, update(1, 1)).unwrap(), Verdict::Apply(update(1, 1)));
    assert_eq!(table.take(13, update(2, 1)).unwrap(), Verdict::Leave);
}

#[test]
fn a_transaction_that_the_stream_passed_before_it_was_visible_is_waited_for() {
    let mut table = table(Copied::Nothing);
    assert_eq!(table.take(7, insert(1, 70)).unwrap(), Verdict::Leave);
    table.opening();
    assert!(!table.opened(&snapshot("7:9:7")), "7 was streamed, and is not seen");
    table.opening();
    assert!(table.opened(&snapshot("9:9:")));
}

#[test]
fn rows_that_are_not_what_was_changed_are_read_again() {
    let mut table = table(Copied::Nothing);
    table.opening();
    assert!(table.opened(&snapshot("5:5:")));
    table.take(6, update(1, 60)).unwrap();
    assert_eq!(table.land(read(&[], None)).unwrap(), None);
    table.opening();
    assert!(!table.opened(&snapshot("6:6:")), "6 was left out, and is not seen");
    table.opening();
    assert!(table.opened(&snapshot("7:7:")));
    assert_eq!(table.land(read(&[(1, 60)], None)).unwrap().unwrap(), [row(1, 60)]);
    assert_eq!(*table.copied(), Copied::Everything);
}

#[test]
fn an_unchanged_value_is_taken_from_the_row_that_was_read_or_sent() {
    let toast = |old| Change::Update { relation: T, old, new: Row(vec![value(1), Value::Unchanged]) };
    let mut copied = table(Copied::Nothing);
    copied.opening();
    assert!(copied.opened(&snapshot("5:5:")));
    copied.take(6, toast(None)).unwrap();
    assert_eq!(copied.land(read(&[(1, 10)], None)).unwrap().unwrap(), [row(1, 10)]);
    let mut followed = table(Copied::UpTo(key(10)));
    let verdict = followed.take(7, toast(Some(OldRow::Full(row(20, 5))))).unwrap();
    assert_eq!(verdict, Verdict::Apply(insert(1, 5)));
}

#[test]
fn an_old_row_that_is_not_whole_gives_no_value_to_one_that_is_unchanged() {
    let old = OldRow::Full(Row(vec![value(20), Value::Null]));
    let moved = Change::Update { relation: T, old: Some(old), new: Row(vec![value(1), Value::Unchanged]) };
    assert_eq!(table(Copied::UpTo(key(10))).take(7, moved).unwrap(), Verdict::CopyAgain);
}

#[test]
fn a_key_that_names_the_rows_no_longer_is_noticed() {
    let mut changed = relation();
    changed.columns[0].is_key = false;
    changed.columns[1].is_key = true;
    assert_eq!(table(Copied::Nothing).describe(&changed), Err(InvalidKey::Changed));
    let mut more = relation();
    more.columns[1].is_key = true;
    assert_eq!(table(Copied::Nothing).describe(&more), Err(InvalidKey::Changed));
    more.replica_identity = ReplicaIdentity::Full;
    assert_eq!(table(Copied::Nothing).describe(&more), Ok(()));
}

#[test]
fn a_range_that_is_opened_twice_remembers_what_was_left_out() {
    let mut table = table(Copied::Nothing);
    table.opening();
    assert!(table.opened(&snapshot("5:5:")));
    table.take(6, insert(1, 60)).unwrap();
    assert!(!table.opened(&snapshot("5:6:5")), "it is open already");
    table.opening();
    assert!(!table.opened(&snapshot("6:8:6")), "6 was left out, and is not seen");
    table.opening();
    assert!(table.opened(&snapshot("7:8:")));
}

#[test]
fn waiting_for_old_transactions_keeps_nothing_that_was_seen() {
    let mut table = table(Copied::Nothing);
    table.opening();
    for xid in 10..1000 {
        table.take(xid, update(1, 1)).unwrap();
    }
    table.seen(&snapshot("900:900:"));
    let Range::Opening(kept) = &table.range else { panic!("not opening") };
    assert_eq!((kept.xids.len(), kept.changes.len()), (100, 100));
}

#[test]
fn a_truncate_makes_the_rows_useless() {
    let mut table = table(Copied::Nothing);
    table.opening();
    assert!(table.opened(&snapshot("5:5:")));
    table.truncated();
    assert_eq!(table.land(read(&[(1, 1)], None)).unwrap(), None);
}

#[test]
fn rows_that_move_between_copied_and_uncopied_keys_are_inserted_or_removed() {
    let mut table = table(Copied::UpTo(key(10)));
    let moved = |from, to, body| Change::Update { relation: T, old: Some(key_row(from)), new: row(to, body) };
    let removed = Change::Delete { relation: T, old: key_row(1) };
    assert_eq!(table.take(1, moved(1, 20, 5)).unwrap(), Verdict::Apply(removed));
    assert_eq!(table.take(2, moved(20, 1, 5)).unwrap(), Verdict::Apply(insert(1, 5)));
    let mut toast = moved(20, 1, 5);
    if let Change::Update { new, .. } = &mut toast {
        new.0[1] = Value::Unchanged;
    }
    assert_eq!(table.take(3, toast).unwrap(), Verdict::CopyAgain);
}

#[test]
fn changes_beyond_the_bound_are_not_kept_and_the_range_is_read_again() {
    let mut table = table(Copied::Nothing);
    table.opening();
    assert!(table.opened(&snapshot("5:5:")));
    let big = Row(vec![value(1), Value::Binary(Bytes::from(vec![0; KEPT_BYTES_MAX + 1]))]);
    table.take(6, Change::Insert { relation: T, new: big }).unwrap();
    assert_eq!(table.land(read(&[], None)).unwrap(), None);
}

/// A transaction: what it does to each row, when it commits, how long after that it becomes visible.
#[derive(Clone, Debug)]
struct Transaction {
    effects: Vec<Effect>,
    invisible_for: usize,
}

#[derive(Clone, Copy, Debug)]
enum Effect {
    Put { id: i64, body: i64 },
    Remove { id: i64 },
    Move { from: i64, to: i64 },
}

impl Effect {
    fn ids(self) -> [i64; 2] {
        match self {
            Self::Put { id, .. } | Self::Remove { id } => [id, id],
            Self::Move { from, to } => [from, to],
        }
    }
}

type Rows = BTreeMap<i64, i64>;

fn perform(rows: &mut Rows, effect: Effect) -> Option<Change> {
    match effect {
        Effect::Put { id, body } => match rows.insert(id, body) {
            None => Some(insert(id, body)),
            Some(_) => Some(update(id, body)),
        },
        Effect::Remove { id } => rows.remove(&id).map(|_| Change::Delete { relation: T, old: key_row(id) }),
        Effect::Move { from, to } if !rows.contains_key(&to) => rows.remove(&from).map(|body| {
            rows.insert(to, body);
            Change::Update { relation: T, old: Some(key_row(from)), new: row(to, body) }
        }),
        Effect::Move { .. } => None,
    }
}

/// What PostgreSQL would do; it refuses what cannot be, which would mean that the sink diverged.
fn apply(sink: &mut Rows, change: &Change) {
    let number = |value: &Value| match value {
        Value::Binary(bytes) => i64::from_be_bytes(bytes.as_ref().try_into().unwrap()),
        Value::Null | Value::Unchanged | Value::Text(_) => panic!("not a number"),
    };
    match change {
        Change::Insert { new, .. } => {
            assert!(sink.insert(number(&new.0[0]), number(&new.0[1])).is_none(), "doubled");
        }
        Change::Update { old, new, .. } => {
            let id = match old {
                Some(OldRow::Key(old) | OldRow::Full(old)) => number(&old.0[0]),
                None => number(&new.0[0]),
            };
            assert!(sink.remove(&id).is_some(), "lost");
            assert!(sink.insert(number(&new.0[0]), number(&new.0[1])).is_none(), "doubled");
        }
        Change::Delete { old: OldRow::Key(old) | OldRow::Full(old), .. } => {
            assert!(sink.remove(&number(&old.0[0])).is_some(), "lost");
        }
        Change::Truncate { .. } => unreachable!(),
    }
}

fn effect() -> impl Strategy<Value = Effect> {
    prop_oneof![
        4 => (0..30_i64, any::<i64>()).prop_map(|(id, body)| Effect::Put { id, body }),
        2 => (0..30_i64).prop_map(|id| Effect::Remove { id }),
        1 => (0..30_i64, 0..30_i64).prop_map(|(from, to)| Effect::Move { from, to }),
    ]
}

fn transaction() -> impl Strategy<Value = Transaction> {
    (prop::collection::vec(effect(), 1..4), 0..6_usize)
        .prop_map(|(effects, invisible_for)| Transaction { effects, invisible_for })
}

/// A step of the world.
#[derive(Clone, Debug)]
enum Step {
    Commit(Transaction),
    /// The stream delivers so many transactions.
    Stream(usize),
    /// The copy goes one step on: opening, snapshot, reading.
    Copy,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => transaction().prop_map(Step::Commit),
        3 => (1..4_usize).prop_map(Step::Stream),
        4 => Just(Step::Copy),
    ];
    prop::collection::vec(step, 0..120)
}

/// One entry of the source's log.
enum Entry {
    Transaction { xid: u32, changes: Vec<Change> },
    Watermark,
}

struct World {
    /// In the order of commits.
    history: Vec<(u32, Vec<Effect>, usize)>,
    /// All of them applied.
    source: Rows,
    log: std::collections::VecDeque<Entry>,
    table: Table,
    sink: Rows,
    opening: bool,
    waiting: Option<Read>,
    range_rows: usize,
}

impl World {
    fn commit(&mut self, transaction: Transaction) {
        let xid = u32::try_from(self.history.len()).unwrap() + 100;
        let mut changes = Vec::new();
        let mut effects = Vec::new();
        for effect in transaction.effects {
            if let Some(change) = perform(&mut self.source, effect) {
                changes.push(change);
                effects.push(effect);
            }
        }
        // A row that an invisible transaction changed is locked until it is visible: nobody changes it before.
        let touched: Vec<i64> = effects.iter().flat_map(|effect| effect.ids()).collect();
        for (_, earlier, invisible_for) in &mut self.history {
            if earlier.iter().flat_map(|effect| effect.ids()).any(|id| touched.contains(&id)) {
                *invisible_for = 0;
            }
        }
        self.history.push((xid, effects, transaction.invisible_for));
        self.log.push_back(Entry::Transaction { xid, changes });
    }

    fn pass_time(&mut self) {
        for (_, _, invisible_for) in &mut self.history {
            *invisible_for = invisible_for.saturating_sub(1);
        }
    }

    fn stream(&mut self, count: usize) {
        for _ in 0..count {
            match self.log.pop_front() {
                None => return,
                Some(Entry::Transaction { xid, changes }) => {
                    for change in changes {
                        match self.table.take(xid, change).unwrap() {
                            Verdict::Apply(change) => apply(&mut self.sink, &change),
                            Verdict::Leave => {}
                            Verdict::CopyAgain => unreachable!("no TOAST here"),
                        }
                    }
                }
                Some(Entry::Watermark) => {
                    let read = self.waiting.take().unwrap();
                    for new in self.table.land(read).unwrap().into_iter().flatten() {
                        apply(&mut self.sink, &Change::Insert { relation: T, new });
                    }
                }
            }
        }
    }

    fn copy(&mut self) {
        if self.waiting.is_some() || *self.table.copied() == Copied::Everything {
            return;
        }
        if !self.opening {
            self.table.opening();
            self.opening = true;
            return;
        }
        self.opening = false;
        let running: Vec<u32> = self
            .history
            .iter()
            .filter(|(_, _, invisible_for)| *invisible_for > 0)
            .map(|(xid, ..)| *xid)
            .collect();
        let xmax = u32::try_from(self.history.len()).unwrap() + 100;
        let xmin = running.first().copied().unwrap_or(xmax);
        let still = running.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        if !self.table.opened(&snapshot(&format!("{xmin}:{xmax}:{still}"))) {
            return;
        }
        let mut visible = Rows::new();
        for (xid, effects, _) in &self.history {
            if !running.contains(xid) {
                for effect in effects {
                    perform(&mut visible, *effect);
                }
            }
        }
        let rest: Vec<(i64, i64)> =
            visible.into_iter().filter(|(id, _)| !self.table.copied().holds(&key(*id))).collect();
        let rows = rest.get(..self.range_rows).unwrap_or(&rest);
        let last = (rows.len() == self.range_rows).then(|| rows.last().map(|(id, _)| *id)).flatten();
        self.waiting = Some(read(rows, last));
        self.log.push_back(Entry::Watermark);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]
    #[test]
    fn whatever_is_visible_when_the_sink_ends_up_like_the_source(
        steps in steps(), range_rows in 1..8_usize,
    ) {
        let mut world = World {
            history: Vec::new(), source: Rows::new(), log: std::collections::VecDeque::new(),
            table: table(Copied::Nothing), sink: Rows::new(), opening: false, waiting: None, range_rows,
        };
        for step in steps {
            world.pass_time();
            match step {
                Step::Commit(transaction) => world.commit(transaction),
                Step::Stream(count) => world.stream(count),
                Step::Copy => world.copy(),
            }
        }
        for _ in 0..1000 {
            world.pass_time();
            world.copy();
            world.stream(1);
        }
        prop_assert_eq!(world.table.copied(), &Copied::Everything);
        prop_assert_eq!(world.sink, world.source);
    }
}
