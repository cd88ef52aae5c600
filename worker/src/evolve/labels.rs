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
