use super::*;
use crate::change::{PartColumn, RelationColumn, RelationId, ReplicaIdentity, ShapeLabel, ShapePart};
use proptest::prelude::*;

const INT: u32 = 23;

/// A source table to which things happen.
#[derive(Clone, Debug)]
struct Source {
    columns: Vec<Own>,
    last_number: i16,
    file: u32,
    /// 0 without one.
    toast: u32,
    /// In publications.
    entries: Vec<u32>,
    clock: u32,
}

#[derive(Clone, Debug)]
struct Own {
    number: i16,
    name: String,
    type_oid: u32,
    modifier: i32,
    version: u32,
    default: u32,
    missing: Option<String>,
}

impl Source {
    fn new(names: &[&str]) -> Self {
        let mut source =
            Self { columns: Vec::new(), last_number: 0, file: 1, toast: 1, entries: vec![1], clock: 10 };
        for name in names {
            source.add(name, INT, None);
        }
        source
    }

    fn tick(&mut self) -> u32 {
        self.clock += 1;
        self.clock
    }

    fn add(&mut self, name: &str, type_oid: u32, missing: Option<&str>) {
        self.last_number += 1;
        let version = self.tick();
        let default = if missing.is_some() { version } else { 0 };
        let (name, missing) = (name.to_owned(), missing.map(str::to_owned));
        let number = self.last_number;
        self.columns.push(Own { number, name, type_oid, modifier: -1, version, default, missing });
    }

    fn column(&mut self, name: &str) -> &mut Own {
        self.columns.iter_mut().find(|column| column.name == name).unwrap()
    }

    fn rename(&mut self, from: &str, to: &str) {
        let version = self.tick();
        let column = self.column(from);
        to.clone_into(&mut column.name);
        column.version = version;
    }

    fn drop(&mut self, name: &str) {
        self.tick();
        self.columns.retain(|column| column.name != name);
    }

    /// ALTER COLUMN … TYPE … USING.
    fn rewrite(&mut self, name: &str) {
        let version = self.tick();
        self.new_file(version);
        let column = self.column(name);
        column.version = version;
        if column.default != 0 {
            column.default = version;
        }
        self.clear_missing(version);
    }

    fn vacuum_full(&mut self) {
        let version = self.tick();
        self.file = version;
        self.clear_missing(version);
    }

    fn clear_missing(&mut self, version: u32) {
        for column in self.columns.iter_mut().filter(|column| column.missing.is_some()) {
            column.missing = None;
            column.version = version;
        }
    }

    /// By ALTER TABLE.
    fn new_file(&mut self, version: u32) {
        self.file = version;
        if self.toast != 0 {
            self.toast = version;
        }
    }

    /// SET UNLOGGED, and SET LOGGED.
    fn unlog(&mut self) {
        let version = self.tick();
        self.new_file(version);
        self.clear_missing(version);
    }

    /// ADD COLUMN with a default that differs from row to row.
    fn add_volatile(&mut self, name: &str) {
        self.add(name, INT, None);
        let version = self.tick();
        self.new_file(version);
        self.column(name).default = version;
        self.clear_missing(version);
    }

    fn shape(&self) -> TableShape {
        let part = |own: &Own| PartColumn {
            number: own.number,
            name: own.name.clone(),
            version: own.version,
            default: own.default,
            missing: own.missing.clone(),
        };
        let column = |own: &Own| ShapeColumn {
            number: own.number,
            name: own.name.clone(),
            type_oid: own.type_oid,
            type_modifier: own.modifier,
            is_not_null: false,
            is_generated: false,
            default: own.default,
        };
        TableShape {
            columns: self.columns.iter().map(column).collect(),
            labels: Vec::new(),
            last_number: self.last_number,
            parts: vec![ShapePart {
                id: 1,
                file: self.file,
                toast: self.toast,
                entries: self.entries.clone(),
                columns: self.columns.iter().map(part).collect(),
            }],
        }
    }

    fn relation(&self) -> Relation {
        let column = |own: &Own| RelationColumn {
            name: own.name.clone(),
            type_oid: own.type_oid,
            type_modifier: own.modifier,
            is_key: false,
        };
        Relation {
            id: RelationId(1),
            schema: "public".into(),
            name: "t".into(),
            replica_identity: ReplicaIdentity::Default,
            columns: self.columns.iter().map(column).collect(),
        }
    }
}

fn kept(name: &str) -> Origin {
    Origin::Kept { from: name.to_owned(), later: Later::Stays }
}

fn known(recorded: &Source, rows: &Source, present: &Source) -> Change {
    match explain(&recorded.shape(), &present.shape(), &rows.relation(), Occasion::Rows) {
        Explanation::Known(change) => change,
        Explanation::Unknown(why) => panic!("unknown: {why}"),
    }
}

fn is_unknown(recorded: &Source, rows: &Source, present: &Source, occasion: Occasion) -> bool {
    let explained = explain(&recorded.shape(), &present.shape(), &rows.relation(), occasion);
    matches!(explained, Explanation::Unknown(_))
}

#[test]
fn an_added_column_has_the_value_that_the_source_gave_its_rows() {
    let before = Source::new(&["id"]);
    let mut after = before.clone();
    after.add("a", INT, Some("5"));
    after.add("b", INT, None);
    let change = known(&before, &after, &after);
    let added = |existing: Option<&str>| Origin::Added { existing: existing.map(str::to_owned) };
    assert_eq!(change.columns, [kept("id"), added(Some("5")), added(None)]);
    assert_eq!(change.shape, Some(after.shape()));
}

#[test]
fn columns_that_the_rows_do_not_have_yet_wait() {
    let before = Source::new(&["id"]);
    let mut rows = before.clone();
    rows.add("a", INT, Some("5"));
    let mut present = rows.clone();
    present.add("b", INT, Some("6"));
    let change = known(&before, &rows, &present);
    assert_eq!(change.columns.len(), 2);
    let shape = change.shape.unwrap();
    assert_eq!((shape.last_number, shape.columns.len()), (2, 2));
    // What is recorded then leads on.
    let next = explain(&shape, &present.shape(), &present.relation(), Occasion::Rows);
    let Explanation::Known(next) = next else { panic!("{next:?}") };
    assert_eq!(next.columns[2], Origin::Added { existing: Some("6".into()) });
}

#[test]
fn a_renamed_column_is_told_from_a_dropped_and_an_added_one() {
    let before = Source::new(&["id", "a", "z"]);
    let mut renamed = before.clone();
    renamed.rename("a", "b");
    let change = known(&before, &renamed, &renamed);
    assert_eq!(change.columns[1], Origin::Kept { from: "a".into(), later: Later::Stays });
    assert!(change.dropped.is_empty());
    let mut other = before.clone();
    other.drop("a");
    other.add("b", INT, None);
    let change = known(&before, &other, &other);
    assert_eq!(change.dropped, ["a"]);
    assert_eq!(change.columns[2], Origin::Added { existing: None });
}

#[test]
fn rows_of_the_old_shape_know_what_becomes_of_their_columns() {
    let before = Source::new(&["id", "a", "b"]);
    let mut present = before.clone();
    present.rename("a", "c");
    present.drop("b");
    let change = known(&before, &before, &present);
    let later = |from: &str, later| Origin::Kept { from: from.into(), later };
    assert_eq!(change.columns[1], later("a", Later::Renamed("c".into())));
    assert_eq!(change.columns[2], later("b", Later::Dropped));
    assert_eq!(change.shape, None);
}

#[test]
fn what_rewrites_rows_is_unknown_and_what_does_not_is_known() {
    let mut before = Source::new(&["id", "a"]);
    before.add("d", INT, Some("5"));
    let mut rewritten = before.clone();
    rewritten.rewrite("a");
    assert!(is_unknown(&before, &rewritten, &rewritten, Occasion::Present));
    let mut rewritten = before.clone();
    rewritten.rewrite("d");
    assert!(
        is_unknown(&before, &rewritten, &rewritten, Occasion::Present),
        "of a column with a missing value"
    );
    let mut vacuumed = before.clone();
    vacuumed.vacuum_full();
    assert!(!is_unknown(&before, &vacuumed, &vacuumed, Occasion::Present));
    let mut both = before.clone();
    both.vacuum_full();
    both.rewrite("d");
    assert!(is_unknown(&before, &both, &both, Occasion::Present), "VACUUM FULL hid a rewrite");
    let mut described = before.clone();
    described.column("a").version = 99;
    assert!(!is_unknown(&before, &described, &described, Occasion::Present), "SET NOT NULL");
}

#[test]
fn a_new_file_of_a_table_that_nothing_keeps_from_being_unlogged_is_unknown() {
    let mut before = Source::new(&["id"]);
    let toggled = |source: &Source| {
        let mut toggled = source.clone();
        toggled.unlog();
        toggled
    };
    let is_unknown = |before: &Source, now: &Source| is_unknown(before, now, now, Occasion::Present);
    assert!(!is_unknown(&before, &toggled(&before)), "named all the time: it was something else");
    let mut named_anew = toggled(&before);
    named_anew.entries = vec![2];
    assert!(is_unknown(&before, &named_anew), "taken out of the publication, and put back");
    before.entries.clear();
    assert!(is_unknown(&before, &toggled(&before)));
    let mut vacuumed = before.clone();
    vacuumed.vacuum_full();
    assert!(!is_unknown(&before, &vacuumed), "the TOAST table is the same: VACUUM FULL, CLUSTER or TRUNCATE");
    before.toast = 0;
    let mut vacuumed = before.clone();
    vacuumed.vacuum_full();
    assert!(is_unknown(&before, &vacuumed), "without a TOAST table nobody can tell");
}

#[test]
fn rows_of_a_new_part_are_known_as_long_as_it_has_its_first_file() {
    let source = Source::new(&["id"]);
    let with_part = |id, file| {
        let mut shape = source.shape();
        shape.parts.push(ShapePart { id, file, ..shape.parts[0].clone() });
        shape
    };
    let is_known = |now: &TableShape| {
        let explained = explain(&source.shape(), now, &source.relation(), Occasion::Present);
        matches!(explained, Explanation::Known(change) if change.shape.as_ref() == Some(now))
    };
    assert!(is_known(&with_part(70, 70)));
    assert!(!is_known(&with_part(70, 71)), "made UNLOGGED, filled, and set LOGGED");
}

#[test]
fn a_renamed_label_is_told_from_an_added_one_and_not_forgotten_while_rows_of_before_come() {
    let mut source = Source::new(&["id"]);
    let label = |id, label: &str| ShapeLabel { id, type_oid: 50, label: label.to_owned() };
    let recorded = TableShape { labels: vec![label(1, "a")], ..source.shape() };
    let added = TableShape { labels: vec![label(1, "a"), label(2, "z")], ..source.shape() };
    let present = explain(&recorded, &added, &source.relation(), Occasion::Present);
    let Explanation::Known(change) = present else { panic!("{present:?}") };
    assert_eq!(change.shape, Some(added));
    source.add("more", INT, None);
    let renamed = TableShape { labels: vec![label(1, "z")], ..source.shape() };
    let rows = explain(&recorded, &renamed, &source.relation(), Occasion::Rows);
    let Explanation::Known(change) = rows else { panic!("{rows:?}") };
    assert_eq!(change.shape.unwrap().labels, recorded.labels);
    let present = explain(&recorded, &renamed, &source.relation(), Occasion::Present);
    assert!(matches!(present, Explanation::Unknown(_)), "{present:?}");
}

#[test]
fn a_new_column_of_a_table_with_a_new_file_is_unknown_unless_its_value_is_there() {
    let before = Source::new(&["id"]);
    let mut volatile = before.clone();
    volatile.add("a", INT, None);
    volatile.new_file(77);
    assert!(is_unknown(&before, &volatile, &volatile, Occasion::Rows));
    let mut vacuumed_first = before.clone();
    vacuumed_first.vacuum_full();
    vacuumed_first.add("a", INT, Some("5"));
    assert!(!is_unknown(&before, &vacuumed_first, &vacuumed_first, Occasion::Rows));
}

#[test]
fn a_last_column_dropped_and_made_anew_is_unknown() {
    let before = Source::new(&["id", "a"]);
    let mut after = before.clone();
    after.drop("a");
    after.add("a", INT, None);
    assert!(is_unknown(&before, &after, &after, Occasion::Present));
    after.rename("a", "b");
    assert!(is_unknown(&before, &after, &after, Occasion::Rows));
}

#[test]
fn types_are_wider_only_where_texts_stay() {
    let numeric = |precision: i32, scale: i32| (1700, ((precision << 16) | scale) + 4);
    for (from, to, is_wider) in [
        ((1043, 14), (1043, 24), true),
        ((1043, 24), (1043, 14), false),
        ((1043, 14), (25, -1), true),
        ((25, -1), (1043, -1), true),
        ((25, -1), (1043, 104), false),
        (numeric(6, 2), numeric(9, 2), true),
        (numeric(6, 2), numeric(9, 3), false),
        (numeric(6, 2), (1700, -1), true),
        ((1700, -1), numeric(6, 2), false),
        ((1114, 3), (1114, 6), true),
        ((1114, -1), (1114, 3), false),
        ((21, -1), (20, -1), true),
        ((20, -1), (23, -1), false),
        ((700, -1), (701, -1), false),
        ((1184, -1), (1114, -1), false),
        ((1042, 14), (1042, 24), false),
    ] {
        assert_eq!(widens(from, to), is_wider, "{from:?} to {to:?}");
    }
}

#[derive(Clone, Debug)]
enum Ddl {
    Add(u8, Option<u8>),
    Drop(u8),
    Rename(u8, u8),
    AddVolatile(u8),
    Rewrite(u8),
    VacuumFull,
    Unlog,
}

fn ddl() -> impl Strategy<Value = Ddl> {
    let name = 0..4_u8;
    prop_oneof![
        4 => (name.clone(), proptest::option::of(0..9_u8)).prop_map(|(name, value)| Ddl::Add(name, value)),
        1 => name.clone().prop_map(Ddl::AddVolatile),
        2 => name.clone().prop_map(Ddl::Drop),
        2 => (name.clone(), name.clone()).prop_map(|(from, to)| Ddl::Rename(from, to)),
        1 => name.prop_map(Ddl::Rewrite),
        1 => Just(Ddl::VacuumFull),
        1 => Just(Ddl::Unlog),
    ]
}

/// Carries it out, if the source would. Rows hold one value per column; a rewrite gives another.
fn perform(source: &mut Source, row: &mut BTreeMapOfValues, ddl: &Ddl) {
    let name = |n: &u8| format!("c{n}");
    let has = |source: &Source, name: &str| source.columns.iter().any(|column| column.name == name);
    match ddl {
        Ddl::Add(n, value) if !has(source, &name(n)) => {
            let value = value.map(|value| value.to_string());
            source.add(&name(n), INT, value.as_deref());
            row.insert(source.last_number, value);
        }
        Ddl::AddVolatile(n) if !has(source, &name(n)) => {
            source.add_volatile(&name(n));
            row.insert(source.last_number, Some(format!("volatile {}", source.clock)));
        }
        Ddl::Drop(n) if has(source, &name(n)) => {
            let number = source.column(&name(n)).number;
            source.drop(&name(n));
            row.remove(&number);
        }
        Ddl::Rename(from, to) if has(source, &name(from)) && !has(source, &name(to)) => {
            source.rename(&name(from), &name(to));
        }
        Ddl::Rewrite(n) if has(source, &name(n)) => {
            source.rewrite(&name(n));
            let (number, clock) = (source.column(&name(n)).number, source.clock);
            row.insert(number, Some(format!("rewritten {clock}")));
        }
        Ddl::VacuumFull => source.vacuum_full(),
        Ddl::Unlog if source.entries.is_empty() => {
            source.unlog();
            let clock = source.clock;
            for value in row.values_mut() {
                *value = Some(format!("unlogged {clock}"));
            }
        }
        Ddl::Unlog
        | Ddl::Add(..)
        | Ddl::AddVolatile(_)
        | Ddl::Drop(_)
        | Ddl::Rename(..)
        | Ddl::Rewrite(_) => {}
    }
}

type BTreeMapOfValues = std::collections::BTreeMap<i16, Option<String>>;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    /// Whatever happens before and after the rows: what is called known is what a row of before holds, column by column.
    #[test]
    fn what_is_known_is_true(before in proptest::collection::vec(ddl(), 0..4), after in proptest::collection::vec(ddl(), 0..4),
                             is_named: bool, has_toast: bool) {
        let mut recorded = Source::new(&["id", "c0", "c1"]);
        recorded.entries = if is_named { vec![1] } else { Vec::new() };
        recorded.toast = u32::from(has_toast);
        let values: BTreeMapOfValues = (1..=3).map(|number| (number, Some(format!("old {number}")))).collect();
        let (mut rows, mut row) = (recorded.clone(), values.clone());
        for ddl in &before {
            perform(&mut rows, &mut row, ddl);
        }
        let (mut present, mut later) = (rows.clone(), row.clone());
        for ddl in &after {
            perform(&mut present, &mut later, ddl);
        }
        let occasion = if after.is_empty() { Occasion::Present } else { Occasion::Rows };
        let explained = explain(&recorded.shape(), &present.shape(), &rows.relation(), occasion);
        // A shape that came back to what it was says nothing in the stream; the next look finds it.
        let is_silent = occasion == Occasion::Rows && recorded.shape().is_of(&rows.relation());
        if let (Explanation::Known(change), false) = (explained, is_silent) {
            for (column, origin) in rows.columns.iter().zip(&change.columns) {
                let expected = &row[&column.number];
                let found = match origin {
                    // What it holds until then nobody will ask.
                    Origin::Kept { later: Later::Dropped, .. } => continue,
                    Origin::Kept { from, .. } => {
                        let was = recorded.columns.iter().find(|own| own.name == *from).unwrap();
                        prop_assert_eq!(was.number, column.number);
                        values[&was.number].clone()
                    }
                    Origin::Added { existing } => existing.clone(),
                };
                prop_assert_eq!(&found, expected, "column {}", column.name);
            }
            let gone: Vec<&str> = recorded.columns.iter()
                .filter(|own| !rows.columns.iter().any(|column| column.number == own.number))
                .map(|own| own.name.as_str()).collect();
            prop_assert_eq!(&change.dropped, &gone);
            // What is recorded then is as good a beginning for what comes later.
            let shape = change.shape.clone().unwrap_or_else(|| recorded.shape());
            if let Explanation::Known(next) = explain(&shape, &present.shape(), &present.relation(), Occasion::Present) {
                for (column, origin) in present.columns.iter().zip(&next.columns) {
                    let found = match origin {
                        Origin::Kept { .. } => row[&column.number].clone(),
                        Origin::Added { existing } => existing.clone(),
                    };
                    prop_assert_eq!(&found, &later[&column.number], "column {} later", column.name);
                }
            }
        }
    }
}
