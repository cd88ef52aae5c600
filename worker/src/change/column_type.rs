//! What the type of a column is made of. Plain data, the same for both ends.

use super::table::TableName;

/// OIDs below are given by hand and mean the same on every server; those of catalogue rows, of `information_schema`,
/// of extensions and of users lie above.
pub const STABLE_OIDS_END: u32 = 10_000;

/// The type of a column, domains seen through (but for one case, [`Definition::Domain`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ColumnType {
    /// OID on the server that it was read from.
    pub oid: u32,
    /// Type modifier, -1 for none.
    pub modifier: i32,
    /// As SQL writes it on that server, with its modifier: `numeric(10,2)`, `shop.mood[]`.
    pub sql: String,
    /// What it is.
    pub kind: TypeKind,
}

/// What a type is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TypeKind {
    /// It comes with every server: base types, ranges and multiranges, and arrays of those.
    BuiltIn,
    /// An array of a type that somebody made.
    Array(Box<ColumnType>),
    /// A type that somebody made.
    Made(Box<MadeType>),
}

/// A type that somebody made: a user, an extension, or initdb.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MadeType {
    /// Its name.
    pub name: TableName,
    /// The extension that it belongs to.
    pub extension: Option<String>,
    /// The modifier as SQL writes it after the name: `(Point,4326)`; mostly empty.
    pub modifier_sql: String,
    /// What it is made of.
    pub definition: Definition,
}

/// What a type is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Definition {
    /// A base type: only its own functions know.
    Base,
    /// An enum type, with its labels in order.
    Enum(Vec<String>),
    /// A composite type, with its attributes in order.
    Composite {
        /// Name and type.
        attributes: Vec<(String, ColumnType)>,
        /// It is the type of the rows of a table or view, and goes with it.
        is_of_table: bool,
    },
    /// A range type.
    Range {
        /// What it is a range of.
        subtype: ColumnType,
        /// Name of its multirange type.
        multirange: TableName,
        /// Nothing but the subtype says how it behaves: no function, operator class or collation of its own.
        is_plain: bool,
    },
    /// The multirange type of a range type.
    Multirange(ColumnType),
    /// A domain over an array type, where it is the element of an array: nothing else is an array of arrays.
    Domain(ColumnType),
}

impl ColumnType {
    /// A type that comes with every server.
    pub fn built_in(oid: u32, modifier: i32, sql: impl Into<String>) -> Self {
        Self { oid, modifier, sql: sql.into(), kind: TypeKind::BuiltIn }
    }

    /// The type that somebody made, if it is one.
    pub fn made(&self) -> Option<&MadeType> {
        match &self.kind {
            TypeKind::Made(made) => Some(made),
            TypeKind::BuiltIn | TypeKind::Array(_) => None,
        }
    }

    /// It comes with every server.
    pub fn is_built_in(&self) -> bool {
        self.kind == TypeKind::BuiltIn
    }

    /// The types that it is directly made of.
    pub fn parts(&self) -> Vec<&Self> {
        match &self.kind {
            TypeKind::BuiltIn => Vec::new(),
            TypeKind::Array(element) => vec![element],
            TypeKind::Made(made) => match &made.definition {
                Definition::Base | Definition::Enum(_) => Vec::new(),
                Definition::Composite { attributes, .. } => attributes.iter().map(|(_, part)| part).collect(),
                Definition::Range { subtype: part, .. }
                | Definition::Multirange(part)
                | Definition::Domain(part) => vec![part],
            },
        }
    }

    /// The same, to be changed.
    pub fn parts_mut(&mut self) -> Vec<&mut Self> {
        match &mut self.kind {
            TypeKind::BuiltIn => Vec::new(),
            TypeKind::Array(element) => vec![element],
            TypeKind::Made(made) => match &mut made.definition {
                Definition::Base | Definition::Enum(_) => Vec::new(),
                Definition::Composite { attributes, .. } => {
                    attributes.iter_mut().map(|(_, part)| part).collect()
                }
                Definition::Range { subtype: part, .. }
                | Definition::Multirange(part)
                | Definition::Domain(part) => vec![part],
            },
        }
    }

    /// It and everything that it is made of, parts before the whole.
    pub fn all(&self) -> Vec<&Self> {
        let mut found: Vec<&Self> = self.parts().into_iter().flat_map(Self::all).collect();
        found.push(self);
        found
    }

    /// Changes it and everything that it is made of.
    pub fn for_each_mut(&mut self, change: &mut impl FnMut(&mut Self)) {
        for part in self.parts_mut() {
            part.for_each_mut(change);
        }
        change(self);
    }
}
