//! What a comparison found.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

/// Whether two ends are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Verdict {
    /// Every row of one end is at the other.
    Equal,
    /// Nobody knows.
    Unknown,
    /// They differ.
    Different,
}

/// What was compared with what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Between {
    /// The source with the sink.
    #[default]
    SourceAndSink,
    /// The sink tables that readers know with those of a canary. What is said of a source means the first.
    Revisions,
}

impl Between {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
    fn is_default(&self) -> bool {
        *self == Self::SourceAndSink
    }

    /// Names of the two.
    fn ends(self) -> (&'static str, &'static str) {
        match self {
            Self::SourceAndSink => ("source", "sink"),
            Self::Revisions => ("stable revision", "canary"),
        }
    }
}

/// What a comparison found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Comparison {
    /// What was compared with what.
    #[serde(skip_serializing_if = "Between::is_default")]
    pub between: Between,
    /// Of all tables: `Different` if one is, else `Unknown` if one is, or if there is none.
    pub verdict: Verdict,
    /// The tables, by name.
    pub tables: Vec<TableResult>,
    /// Rows that differ, as many as were asked for.
    pub differences: Vec<Difference>,
}

/// What was found of one table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TableResult {
    /// Name in the source.
    pub table: String,
    /// Name in the sink.
    pub sink_table: String,
    /// Whether it is the same.
    pub verdict: Verdict,
    /// Address of the barrier in the source's log: both ends were compared as they were there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub position: Option<String>,
    /// Rows of the source.
    pub source_rows: u64,
    /// Rows of the sink.
    pub sink_rows: u64,
    /// Rows that changed while the comparison began, and were compared one by one.
    pub changed_rows: u64,
    /// Rows that differ.
    pub differing_rows: u64,
    /// There may be more of them.
    pub is_at_least: bool,
    /// Columns of the source that the sink does not have, because `schemaChanges` is `Ignore`: not compared.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub left_out_columns: Vec<String>,
    /// Why nobody knows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// A row that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Difference {
    /// Name of the table in the source.
    pub table: String,
    /// The key's columns and their values; empty where the table has none.
    pub key: BTreeMap<String, String>,
    /// Where the row is, if it has no key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub place: Option<String>,
    /// How it differs.
    pub kind: Kind,
    /// How many such rows.
    pub rows: u64,
    /// The columns that differ.
    pub columns: Vec<String>,
    /// Their values, if they were asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<Values>,
}

/// How a row differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Kind {
    /// The source has it.
    MissingInSink,
    /// The sink has it, or has it more often.
    ExtraInSink,
    /// Both have it, with other values.
    Differs,
}

/// A column's value at both ends; `null` is NULL, or no row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Values {
    /// The column.
    pub column: String,
    /// As the source has it.
    pub source: Option<String>,
    /// As the sink has it.
    pub sink: Option<String>,
}

impl Comparison {
    /// Sums up.
    pub(super) fn new(tables: Vec<TableResult>, differences: Vec<Difference>) -> Self {
        let verdict = tables.iter().map(|table| table.verdict).max().unwrap_or(Verdict::Unknown);
        Self { between: Between::default(), verdict, tables, differences }
    }

    /// The same, of these two.
    pub(super) fn between(self, between: Between) -> Self {
        Self { between, ..self }
    }

    /// Rows that differ.
    pub fn differing_rows(&self) -> u64 {
        self.tables.iter().map(|table| table.differing_rows).sum()
    }
}

impl TableResult {
    /// A table that could not be compared.
    pub(super) fn unknown(table: String, sink_table: String, reason: String) -> Self {
        Self {
            table,
            sink_table,
            verdict: Verdict::Unknown,
            position: None,
            source_rows: 0,
            sink_rows: 0,
            changed_rows: 0,
            differing_rows: 0,
            is_at_least: false,
            left_out_columns: Vec::new(),
            reason: Some(reason),
        }
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (one, other) = self.between.ends();
        for table in &self.tables {
            table.tell(f, self.between)?;
            writeln!(f)?;
            for difference in self.differences.iter().filter(|difference| difference.table == table.table) {
                difference.tell(f, self.between)?;
            }
        }
        let count = |verdict| self.tables.iter().filter(|table| table.verdict == verdict).count();
        match self.verdict {
            Verdict::Equal => write!(f, "The {other} is equal to the {one}: {} tables.", self.tables.len()),
            Verdict::Different => write!(
                f,
                "The {other} differs from the {one}: {} of {} tables.",
                count(Verdict::Different),
                self.tables.len()
            ),
            Verdict::Unknown if self.tables.is_empty() => write!(f, "Nothing was compared."),
            Verdict::Unknown => write!(
                f,
                "Whether the {other} is equal to the {one} is unknown: {} of {} tables could not be compared.",
                count(Verdict::Unknown),
                self.tables.len()
            ),
        }
    }
}

impl TableResult {
    fn tell(&self, f: &mut fmt::Formatter<'_>, between: Between) -> fmt::Result {
        let Self { table, source_rows, sink_rows, differing_rows, .. } = self;
        let (one, other) = between.ends();
        let position = self.position.as_deref().unwrap_or("an unknown position");
        let but_for = match &self.left_out_columns[..] {
            [] => String::new(),
            columns => format!(" but for {}, which the {other} leaves out", columns.join(", ")),
        };
        match self.verdict {
            Verdict::Equal => write!(f, "{table}: equal{but_for}, {source_rows} rows at {position}"),
            Verdict::Unknown => {
                write!(f, "{table}: unknown, {}", self.reason.as_deref().unwrap_or("nobody knows why"))
            }
            Verdict::Different => {
                let least = if self.is_at_least { "at least " } else { "" };
                write!(
                    f,
                    "{table}: different, {least}{differing_rows} rows at {position} (the {one} has {source_rows} rows, the {other} {sink_rows}){but_for}"
                )
            }
        }
    }
}

impl Difference {
    fn tell(&self, f: &mut fmt::Formatter<'_>, between: Between) -> fmt::Result {
        let (one, other) = between.ends();
        let key: Vec<String> = self.key.iter().map(|(column, value)| format!("{column}={value}")).collect();
        let name = self.place.clone().unwrap_or_else(|| key.join(", "));
        let often = if self.rows == 1 { String::new() } else { format!(" {} times", self.rows) };
        match self.kind {
            Kind::MissingInSink => writeln!(f, "  {name}: missing in the {other}{often}")?,
            Kind::ExtraInSink => writeln!(f, "  {name}: extra in the {other}{often}")?,
            Kind::Differs => writeln!(f, "  {name}: differs in {}", self.columns.join(", "))?,
        }
        for Values { column, source, sink } in &self.values {
            let shown = |value: &Option<String>| value.clone().unwrap_or_else(|| "NULL".into());
            writeln!(f, "    {column}: {one} {}, {other} {}", shown(source), shown(sink))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(verdict: Verdict) -> TableResult {
        let mut table =
            TableResult::unknown("public.t".into(), "public.t".into(), "it is being copied".into());
        table.verdict = verdict;
        table
    }

    #[test]
    fn unknown_is_never_good_and_a_difference_is_never_hidden_by_it() {
        let of = |verdicts: &[Verdict]| {
            Comparison::new(verdicts.iter().copied().map(table).collect(), Vec::new()).verdict
        };
        assert_eq!(of(&[]), Verdict::Unknown);
        assert_eq!(of(&[Verdict::Equal]), Verdict::Equal);
        assert_eq!(of(&[Verdict::Equal, Verdict::Unknown]), Verdict::Unknown);
        assert_eq!(of(&[Verdict::Different, Verdict::Unknown, Verdict::Equal]), Verdict::Different);
    }

    #[test]
    fn columns_that_the_sink_leaves_out_are_named_beside_every_verdict() {
        for verdict in [Verdict::Equal, Verdict::Different] {
            let left_out_columns = vec!["note".into(), "tag".into()];
            let table = TableResult { left_out_columns, ..table(verdict) };
            let text = Comparison::new(vec![table], Vec::new()).to_string();
            assert!(text.contains("but for note, tag, which the sink leaves out"), "{text}");
        }
        let text = Comparison::new(vec![table(Verdict::Different)], Vec::new()).to_string();
        assert!(!text.contains("leaves out"));
    }

    #[test]
    fn a_person_reads_table_key_and_columns() {
        let difference = Difference {
            table: "public.t".into(),
            key: BTreeMap::from([("id".into(), "5".into())]),
            place: None,
            kind: Kind::Differs,
            rows: 1,
            columns: vec!["price".into()],
            values: Vec::new(),
        };
        let text = Comparison::new(vec![table(Verdict::Different)], vec![difference]).to_string();
        assert!(text.contains("\n  id=5: differs in price\n"), "{text}");
        assert!(text.ends_with("The sink differs from the source: 1 of 1 tables."), "{text}");
    }
}
