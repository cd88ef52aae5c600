//! What is done to the columns of a table on their way. Kept in the sink beside the rows, so that a later run sees that
//! they were brought there in another way.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// What is done to the columns of a table. All names are the source's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Steps {
    /// The columns that are carried; `None`: all but `drop`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub select: Option<BTreeSet<String>>,
    /// Columns that are left out.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub drop: BTreeSet<String>,
    /// Names in the sink.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub rename: BTreeMap<String, String>,
    /// How columns are masked. Two that say the same give the same for every value.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub mask: BTreeMap<String, String>,
}

/// What becomes of one column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Treatment<'a> {
    /// Its name in the sink.
    pub name: &'a str,
    /// How it is masked.
    pub mask: Option<&'a str>,
}

impl Steps {
    /// Nothing is done.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// What becomes of a column; `None`: it is left out.
    pub fn of<'a>(&'a self, column: &'a str) -> Option<Treatment<'a>> {
        let is_carried = match &self.select {
            Some(select) => select.contains(column),
            None => !self.drop.contains(column),
        };
        let name = self.rename.get(column).map_or(column, String::as_str);
        is_carried.then(|| Treatment { name, mask: self.mask.get(column).map(String::as_str) })
    }

    /// The name of a column in the sink, if it is carried.
    pub fn name_of<'a>(&'a self, column: &'a str) -> Option<&'a str> {
        self.of(column).map(|treatment| treatment.name)
    }

    /// Whether the same becomes of each of these columns, however it is written.
    pub fn do_the_same<'a>(&self, other: &Self, columns: impl IntoIterator<Item = &'a str>) -> bool {
        columns.into_iter().all(|column| self.of(column) == other.of(column))
    }

    /// As it is kept beside the rows; empty where nothing is done. It is plain data, which can always be written.
    pub fn to_note(&self) -> String {
        if self.is_empty() { String::new() } else { serde_json::to_string(self).unwrap_or_default() }
    }

    /// As it was kept; `None` where it cannot be read, which is as good as something else.
    pub fn noted(text: &str) -> Option<Self> {
        if text.is_empty() { Some(Self::default()) } else { serde_json::from_str(text).ok() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn what_becomes_of_a_column_counts_and_not_how_it_is_written() {
        let select = Steps { select: Some(set(&["id", "name"])), ..Steps::default() };
        let drop = Steps { drop: set(&["mail"]), ..Steps::default() };
        assert!(select.do_the_same(&drop, ["id", "name", "mail"]));
        assert!(!select.do_the_same(&drop, ["id", "note"]), "one that is added later is not selected");
        let masked = Steps { mask: [("name".to_owned(), "redact ***".to_owned())].into(), ..drop.clone() };
        assert!(!masked.do_the_same(&drop, ["name"]));
        assert!(masked.do_the_same(&drop, ["id", "mail"]));
    }

    #[test]
    fn what_is_noted_is_read_again_and_nothing_is_noted_as_nothing() {
        let steps = Steps { rename: [("a".to_owned(), "b".to_owned())].into(), ..Steps::default() };
        assert_eq!(Steps::noted(&steps.to_note()), Some(steps));
        assert_eq!(Steps::default().to_note(), "");
        assert_eq!(Steps::noted(""), Some(Steps::default()));
        assert_eq!(Steps::noted("{"), None);
    }
}
