//! Whether a type of the sink takes every value of one of the source. Pure.
//!
//! Types that somebody made are compared by their names and by what they are made of: the binary formats of enums,
//! arrays, composites and ranges hold labels and values, and OIDs that a server does not look at unless both are its own.

use super::compare::Difference;
use super::ddl;
use super::owner::TableMap;
use crate::change::table::{quote_identifier, quote_literal};
use crate::change::{ColumnType, Definition, MadeType, TypeKind};

const VARBIT: u32 = 1562;
const VARCHAR: u32 = 1043;
const TEXT: u32 = 25;

/// Why values of one type do not go into the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Unfit {
    /// It is another type.
    Other,
    /// It has the name, and what it is made of differs.
    Within(Vec<Difference>),
}

/// Whether a column of the sink takes every value of a column of the source.
pub(super) fn fit_column(source: &ColumnType, sink: &ColumnType, tables: &TableMap) -> Result<(), Unfit> {
    match (&source.kind, &sink.kind) {
        (TypeKind::BuiltIn, TypeKind::BuiltIn) if takes_built_in(source.oid, source.modifier, sink) => Ok(()),
        (TypeKind::BuiltIn, _) => Err(Unfit::Other),
        _ => fit_part(source, sink, tables),
    }
}

/// Whether a built-in type of the sink takes every value of one with that modifier, byte by byte. Text takes varchar;
/// a type without modifier takes all of its kind; a longer varchar takes a shorter one.
pub(super) fn takes_built_in(oid: u32, modifier: i32, sink: &ColumnType) -> bool {
    if sink.oid != oid {
        return oid == VARCHAR && sink.oid == TEXT;
    }
    sink.modifier == -1
        || (modifier >= 0
            && (modifier == sink.modifier || (matches!(oid, VARCHAR | VARBIT) && modifier < sink.modifier)))
}

/// The same inside of another type, where a server compares the OIDs of built-in types.
fn fit_part(source: &ColumnType, sink: &ColumnType, tables: &TableMap) -> Result<(), Unfit> {
    match (&source.kind, &sink.kind) {
        (TypeKind::BuiltIn, TypeKind::BuiltIn)
            if source.oid == sink.oid && takes_built_in(source.oid, source.modifier, sink) =>
        {
            Ok(())
        }
        (TypeKind::Array(source), TypeKind::Array(sink)) => fit_part(source, sink, tables),
        (TypeKind::Made(source), TypeKind::Made(own)) => fit_made(source, own, &sink.sql, tables),
        (TypeKind::BuiltIn | TypeKind::Array(_) | TypeKind::Made(_), _) => Err(Unfit::Other),
    }
}

/// `sink_sql` is the name of the sink's type. Extensions and types may live in another schema there.
fn fit_made(source: &MadeType, sink: &MadeType, sink_sql: &str, tables: &TableMap) -> Result<(), Unfit> {
    if source.name.name != sink.name.name {
        return Err(Unfit::Other);
    }
    match (&source.definition, &sink.definition) {
        (Definition::Base, Definition::Base)
            if sink.modifier_sql.is_empty() || sink.modifier_sql == source.modifier_sql =>
        {
            Ok(())
        }
        (Definition::Enum(labels), Definition::Enum(own)) => {
            within(
                labels.iter().enumerate().filter(|(_, label)| !own.contains(label)).map(|(place, label)| {
                    missing_label(sink_sql, label, labels.get(place.wrapping_sub(1)), own)
                }),
            )
        }
        (Definition::Composite { attributes, .. }, Definition::Composite { attributes: own, .. }) => {
            fit_attributes(attributes, own, sink, tables)
        }
        (Definition::Range { subtype: part, .. }, Definition::Range { subtype: own, .. })
        | (Definition::Multirange(part), Definition::Multirange(own))
        | (Definition::Domain(part), Definition::Domain(own)) => fit_part(part, own, tables),
        (
            Definition::Base
            | Definition::Enum(_)
            | Definition::Composite { .. }
            | Definition::Range { .. }
            | Definition::Multirange(_)
            | Definition::Domain(_),
            _,
        ) => Err(Unfit::Other),
    }
}

/// Values of a composite type come by the places of its attributes, so that names must agree as well.
fn fit_attributes(
    source: &[(String, ColumnType)],
    sink: &[(String, ColumnType)],
    sink_type: &MadeType,
    tables: &TableMap,
) -> Result<(), Unfit> {
    let sink_sql = sink_type.name.quoted();
    let mut found = Vec::new();
    let is_same = sink.len() <= source.len()
        && source.iter().zip(sink).all(|((name, part), (own_name, own))| {
            name == own_name
                && match fit_part(part, own, tables) {
                    Ok(()) => true,
                    Err(Unfit::Other) => false,
                    Err(Unfit::Within(differences)) => {
                        found.extend(differences);
                        true
                    }
                }
        });
    if !is_same {
        let list = |attributes: &[(String, ColumnType)]| {
            let attributes = attributes.iter().map(|(name, part)| format!("{name} {}", part.sql));
            attributes.collect::<Vec<_>>().join(", ")
        };
        return within([Difference::about_values(
            format!("type {sink_sql} is ({}), the source's is ({})", list(sink), list(source)),
            format!(
                "ALTER TYPE {sink_sql} RENAME TO {}",
                quote_identifier(&format!("{}_old", sink_type.name.name))
            ),
        )]);
    }
    found.extend(source.iter().skip(sink.len()).map(|(name, part)| {
        let attribute = format!("{} {}", quote_identifier(name), ddl::type_sql(part, tables));
        Difference::about_values(
            format!("type {sink_sql} lacks the attribute {name}"),
            format!("ALTER TYPE {sink_sql} ADD ATTRIBUTE {attribute}"),
        )
    }));
    within(found)
}

fn within(found: impl IntoIterator<Item = Difference>) -> Result<(), Unfit> {
    let found: Vec<Difference> = found.into_iter().collect();
    if found.is_empty() { Ok(()) } else { Err(Unfit::Within(found)) }
}

/// An enum type lacks a label. It gets the place that it has in the source, because labels are sorted by it.
fn missing_label(type_sql: &str, label: &str, before: Option<&String>, own: &[String]) -> Difference {
    let place = match (before, own.first()) {
        (Some(before), _) => format!(" AFTER {}", quote_literal(before)),
        (None, Some(first)) => format!(" BEFORE {}", quote_literal(first)),
        (None, None) => String::new(),
    };
    Difference::relaxing(
        format!("type {type_sql} lacks the label {label}"),
        format!("ALTER TYPE {type_sql} ADD VALUE {}{place}", quote_literal(label)),
    )
}
