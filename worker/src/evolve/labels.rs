//! Labels of enum types that were renamed: rows keep the label and show its new name, and the stream says nothing.

use crate::change::TableShape;

/// A label that has another name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RenamedLabel {
    /// OID of the type in the source.
    pub type_oid: u32,
    /// As it was.
    pub from: String,
    /// As it is.
    pub to: String,
}

/// The labels that were renamed between two looks.
pub fn renamed_labels(recorded: &TableShape, present: &TableShape) -> Vec<RenamedLabel> {
    let renamed = |was: &crate::change::ShapeLabel| {
        let now = present.labels.iter().find(|now| now.id == was.id && now.label != was.label)?;
        Some(RenamedLabel { type_oid: was.type_oid, from: was.label.clone(), to: now.label.clone() })
    };
    recorded.labels.iter().filter_map(renamed).collect()
}

/// Whether rows that were copied at one look are as they are at the other. How the table is published besides, and labels that were
/// added, say nothing of them.
pub fn same_rows(before: &TableShape, now: &TableShape) -> bool {
    before.of_rows() == now.of_rows() && renamed_labels(before, now).is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::{ShapeLabel, ShapePart};

    #[test]
    fn rows_are_the_same_until_they_have_another_file_or_a_label_another_name() {
        let shape = |file, entries: &[u32], labels: &[(u32, &str)]| {
            let (entries, columns) = (entries.to_vec(), Vec::new());
            let label =
                |(id, label): &(u32, &str)| ShapeLabel { id: *id, type_oid: 50, label: (*label).to_owned() };
            TableShape {
                parts: vec![ShapePart { id: 1, file, toast: 0, entries, columns }],
                labels: labels.iter().map(label).collect(),
                ..TableShape::default()
            }
        };
        let before = shape(1, &[7], &[(5, "a")]);
        assert!(same_rows(&before, &shape(1, &[7, 8], &[(5, "a"), (6, "b")])));
        assert!(!same_rows(&before, &shape(2, &[7], &[(5, "a")])));
        assert!(!same_rows(&before, &shape(1, &[7], &[(5, "b")])));
    }
}
