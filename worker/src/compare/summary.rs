//! What a comparison found, short enough for whoever only wants to know whether to look.

use penstock_crds::comparison::{ComparisonResult, ComparisonVerdict, DifferentTable};

use super::verdict::{Comparison, TableResult, Verdict};

impl Comparison {
    /// Without rows, and with the tables that are worth a name.
    pub fn summary(&self) -> ComparisonResult {
        let having = |verdict| self.tables.iter().filter(move |table| table.verdict == verdict);
        let count = |verdict| u32::try_from(having(verdict).count()).unwrap_or(u32::MAX);
        let why = |table: &TableResult| {
            let reason = table.reason.as_deref().unwrap_or("nobody knows why");
            format!("{}: {reason}", table.table)
        };
        let nothing = || "no table was compared".to_owned();
        ComparisonResult {
            verdict: match self.verdict {
                Verdict::Equal => ComparisonVerdict::Equal,
                Verdict::Different => ComparisonVerdict::Different,
                Verdict::Unknown => ComparisonVerdict::Unknown,
            },
            position: self.positions(),
            tables: u32::try_from(self.tables.len()).unwrap_or(u32::MAX),
            tables_different: count(Verdict::Different),
            tables_unknown: count(Verdict::Unknown),
            different: having(Verdict::Different)
                .map(|table| DifferentTable {
                    table: table.table.clone(),
                    rows: table.differing_rows,
                    is_at_least: table.is_at_least,
                })
                .collect(),
            reason: having(Verdict::Unknown).map(why).next().or_else(|| self.tables.is_empty().then(nothing)),
        }
    }

    /// The positions of its barriers. There are more than one only where a table was tried again.
    fn positions(&self) -> Option<String> {
        let mut positions: Vec<&str> =
            self.tables.iter().filter_map(|table| table.position.as_deref()).collect();
        positions.sort_unstable();
        positions.dedup();
        (!positions.is_empty()).then(|| positions.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(name: &str, verdict: Verdict, position: Option<&str>) -> TableResult {
        let mut table = TableResult::unknown(name.into(), name.into(), "it is being copied".into());
        table.verdict = verdict;
        table.position = position.map(str::to_owned);
        table.differing_rows = if verdict == Verdict::Different { 7 } else { 0 };
        table
    }

    #[test]
    fn a_summary_counts_every_table_and_names_those_that_differ() {
        let tables = vec![
            table("public.a", Verdict::Equal, Some("0/2")),
            table("public.b", Verdict::Different, Some("0/1")),
            table("public.c", Verdict::Unknown, None),
            table("public.d", Verdict::Equal, Some("0/1")),
        ];
        let summary = Comparison::new(tables, Vec::new()).summary();
        assert_eq!(summary.verdict, ComparisonVerdict::Different);
        assert_eq!((summary.tables, summary.tables_different, summary.tables_unknown), (4, 1, 1));
        assert_eq!(summary.position.as_deref(), Some("0/1, 0/2"));
        let [different] = summary.different.as_slice() else { panic!("{summary:?}") };
        assert_eq!((different.table.as_str(), different.rows), ("public.b", 7));
        assert_eq!(summary.reason.as_deref(), Some("public.c: it is being copied"));

        let nothing = Comparison::new(Vec::new(), Vec::new()).summary();
        assert_eq!(nothing.verdict, ComparisonVerdict::Unknown);
        assert_eq!(nothing.reason.as_deref(), Some("no table was compared"));
    }
}
