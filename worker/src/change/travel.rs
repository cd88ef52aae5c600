//! In which format values travel. Binary is exact and fast where both servers read the same bytes; what an
//! extension's functions write is theirs to change between versions, so such values travel as text, as in a dump.
//! The stream has one format for all tables: pgoutput knows no other choice. Pure.

use penstock_crds::report::Reason;

use super::ColumnType;
use super::column_type::Definition;
use super::table::SourceTable;
use crate::failure::Failure;

/// Format of values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// What the type's send function writes.
    Binary,
    /// What the type's output function writes.
    Text,
}

impl Format {
    /// The options of COPY, the same at both ends. Those of text are spelt out: it must be read as it was written,
    /// whatever the versions.
    pub fn copy_options(self) -> &'static str {
        match self {
            Self::Binary => "FORMAT binary",
            Self::Text => "FORMAT text, DELIMITER E'\\t', NULL '\\N', ENCODING 'UTF8'",
        }
    }
}

/// Both servers, as far as formats depend on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Versions {
    /// Major version of the source.
    pub source: u32,
    /// Major version of the sink.
    pub sink: u32,
}

/// `"char"` and its array. A byte above 127 is written as `\337` since version 16, which older ones read as a
/// backslash.
const CHAR: [u32; 2] = [18, 1002];
const CHAR_OCTAL_SINCE: u32 = 16;

/// `interval` and its array. Since version 17 the largest and smallest are infinite; older servers take their
/// bytes for a number of days, and refuse the word.
const INTERVAL: [u32; 2] = [1186, 1187];
const INFINITE_INTERVAL_SINCE: u32 = 17;

/// `tsquery`, `int2vector`, `oidvector` and their arrays: their receive functions refuse what their send functions write
/// of an empty one.
const EMPTY_REFUSED: [u32; 6] = [3615, 3645, 22, 1006, 30, 1013];

/// The format of a table's COPY.
pub fn table_format(table: &SourceTable, versions: Versions) -> Format {
    let columns = table.columns.iter().filter(|column| column.generated.is_none());
    let is_text = columns.flat_map(|column| column.column_type.all()).any(|part| is_text(part, versions));
    if is_text { Format::Text } else { Format::Binary }
}

/// The format of the stream of all these tables.
pub fn stream_format(tables: &[SourceTable], versions: Versions) -> Format {
    let is_text = tables.iter().any(|table| table_format(table, versions) == Format::Text);
    if is_text { Format::Text } else { Format::Binary }
}

/// Whether every value arrives in the format that it must take.
///
/// # Errors
/// `UnsupportedColumnType`, with every column that would not.
pub fn check(tables: &[SourceTable], versions: Versions) -> Result<(), Failure> {
    if stream_format(tables, versions) == Format::Binary
        || (versions.source >= CHAR_OCTAL_SINCE && versions.sink >= CHAR_OCTAL_SINCE)
    {
        return Ok(());
    }
    let refused: Vec<String> = tables
        .iter()
        .flat_map(|table| table.columns.iter().map(move |column| (table, column)))
        .filter(|(_, column)| column.column_type.all().iter().any(|part| CHAR.contains(&part.oid)))
        .map(|(table, column)| format!("{}, column {}", table.name, column.name))
        .collect();
    if refused.is_empty() {
        return Ok(());
    }
    let message = format!(
        "Columns cannot be carried without loss: {}: \"char\" travels in binary only between these versions, and other columns \
         of the pipeline (types of extensions, tsquery, int2vector, oidvector, or interval from 17 on) only as text. Change the column's type, or put one of \
         the tables into a pipeline of its own.",
        refused.join("; ")
    );
    Err(Failure::new(Reason::UnsupportedColumnType, message))
}

fn is_text(part: &ColumnType, versions: Versions) -> bool {
    let is_foreign = part.made().is_some_and(|made| made.definition == Definition::Base);
    let may_be_infinite = INTERVAL.contains(&part.oid)
        && versions.source >= INFINITE_INTERVAL_SINCE
        && versions.sink < INFINITE_INTERVAL_SINCE;
    is_foreign || may_be_infinite || EMPTY_REFUSED.contains(&part.oid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::table::{SourceColumn, TableName};
    use crate::change::{MadeType, RelationId, ReplicaIdentity, Steps, TypeKind};

    fn table(types: &[ColumnType]) -> SourceTable {
        let column = |(place, column_type): (usize, &ColumnType)| SourceColumn {
            name: format!("c{place}"),
            column_type: column_type.clone(),
            is_not_null: false,
            constant_default: None,
            generated: None,
            is_masked: false,
        };
        SourceTable {
            id: RelationId(1),
            name: TableName::new("public", "t"),
            columns: types.iter().enumerate().map(column).collect(),
            replica_identity: ReplicaIdentity::Full,
            primary_key: Vec::new(),
            is_primary_key_deferrable: false,
            identity_columns: Vec::new(),
            is_partitioned: false,
            foreign_key_peers: Vec::new(),
            estimated_rows: 0,
            steps: Steps::default(),
        }
    }

    fn built_in(oid: u32) -> ColumnType {
        ColumnType::built_in(oid, -1, "a")
    }

    fn made(oid: u32, definition: Definition) -> ColumnType {
        let name = TableName::new("public", "made");
        let made = MadeType { name, extension: None, modifier_sql: String::new(), definition };
        ColumnType { oid, modifier: -1, sql: "made".into(), kind: TypeKind::Made(Box::new(made)) }
    }

    fn in_composite(part: ColumnType) -> ColumnType {
        made(20_001, Definition::Composite { attributes: vec![("a".into(), part)], is_of_table: false })
    }

    const fn versions(source: u32, sink: u32) -> Versions {
        Versions { source, sink }
    }

    #[test]
    fn one_value_that_only_its_extension_can_read_makes_the_stream_text() {
        let (plain, foreign) =
            (table(&[built_in(23)]), table(&[in_composite(made(20_000, Definition::Base))]));
        let both = versions(15, 15);
        assert_eq!(table_format(&plain, both), Format::Binary);
        assert_eq!(table_format(&foreign, both), Format::Text);
        assert_eq!(stream_format(std::slice::from_ref(&plain), both), Format::Binary);
        assert_eq!(stream_format(&[plain, foreign], both), Format::Text);
        let mood = made(20_002, Definition::Enum(vec!["sad".into()]));
        assert_eq!(table_format(&table(&[in_composite(mood)]), both), Format::Binary);
    }

    #[test]
    fn types_that_cannot_receive_what_they_send_travel_as_text() {
        for oid in EMPTY_REFUSED {
            assert_eq!(table_format(&table(&[built_in(oid)]), versions(17, 17)), Format::Text, "{oid}");
        }
    }

    #[test]
    fn intervals_that_may_be_infinite_reach_an_older_sink_as_text() {
        let table = table(&[in_composite(built_in(1186))]);
        for (source, sink, format) in [
            (17, 15, Format::Text),
            (18, 16, Format::Text),
            (17, 17, Format::Binary),
            (16, 15, Format::Binary),
            (15, 17, Format::Binary),
        ] {
            assert_eq!(table_format(&table, versions(source, sink)), format, "{source} to {sink}");
        }
    }

    #[test]
    fn a_char_is_refused_where_its_text_is_ambiguous() {
        let tables = [table(&[built_in(23), built_in(1002)]), table(&[made(20_000, Definition::Base)])];
        for (source, sink) in [(15, 15), (17, 15), (15, 17)] {
            let failure = check(&tables, versions(source, sink)).unwrap_err();
            assert_eq!(failure.reason, Reason::UnsupportedColumnType);
            assert!(failure.message.contains("public.t, column c1:"), "{failure}");
            assert_eq!(check(&tables[..1], versions(source, sink)), Ok(()), "all is binary");
        }
        assert_eq!(check(&tables, versions(16, 17)), Ok(()));
    }
}
