//! The same transforms as SQL of the source, for comparison: another implementation, so that a mistake in one of the two shows.

use super::mask::Mask;
use super::{MaskKeys, TableSteps};
use crate::change::table::{quote_identifier, quote_literal};

/// Prefix of the settings by which a session of the source knows the keys of masks.
const SETTING: &str = "penstock.mask";

impl TableSteps {
    /// A subquery that gives the rows of `table` (as FROM wants it) as the sink has them, with these columns of the source and
    /// `ctid`. Needs a session that [`settings`] were set in.
    pub fn projection<'a>(&self, table: &str, columns: impl IntoIterator<Item = &'a str>) -> String {
        let column = |column: &'a str| {
            let treatment = self.steps.of(column)?;
            let value = format!("s.{}", quote_identifier(column));
            let value = match self.masks.get(column) {
                None => value,
                Some(mask) => mask.sql(&value),
            };
            Some(format!("{value} AS {}", quote_identifier(treatment.name)))
        };
        let ctid = std::iter::once("s.ctid".to_owned());
        let columns: Vec<String> = ctid.chain(columns.into_iter().filter_map(column)).collect();
        format!("(SELECT {} FROM {table} AS s)", columns.join(", "))
    }
}

impl Mask {
    /// NULL stays NULL, also a composite value of NULLs, which `IS NULL` and is none.
    fn sql(&self, value: &str) -> String {
        let text = format!("pg_catalog.format('%s', {value})");
        let masked = match self {
            Self::Hash(secret, _) => {
                let pad = |which: &str| {
                    let setting = quote_literal(&setting(which, secret));
                    format!("pg_catalog.decode(pg_catalog.current_setting({setting}), 'hex')")
                };
                format!(
                    "pg_catalog.encode(pg_catalog.sha256({} || pg_catalog.sha256({} || pg_catalog.convert_to({text}, 'UTF8'))), 'hex')",
                    pad("outer"),
                    pad("inner")
                )
            }
            Self::Redact(with) => {
                format!("{}::pg_catalog.text", quote_literal(&String::from_utf8_lossy(with)))
            }
            Self::Truncate(length) => format!("pg_catalog.left({text}, {length})"),
        };
        format!("CASE WHEN {value} IS NOT DISTINCT FROM NULL THEN NULL ELSE {masked} END")
    }
}

/// Names of settings have letters, digits and underscores only.
fn setting(which: &str, secret: &str) -> String {
    format!("{SETTING}_{which}_{}", hex::encode(secret))
}

/// Settings that a session needs, by name: the keys as they go into the hashes. They are set by a statement of their own, so that
/// none that is shown in the server's activity holds them.
pub fn settings(keys: &MaskKeys) -> Vec<(String, String)> {
    let both = keys.iter().flat_map(|(secret, key)| {
        let (inner, outer) = key.pads();
        [(setting("inner", secret), inner), (setting("outer", secret), outer)]
    });
    both.collect()
}
