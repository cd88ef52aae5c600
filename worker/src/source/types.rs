//! Which column types can be carried as bytes from one server to another without loss. The decision is pure; it
//! is made on rows of `pg_type`.

use std::collections::HashMap;

use tokio_postgres::Client;

use super::error::SourceError;

/// OIDs below are given out by initdb and mean the same on every server.
const FIRST_USER_OID: u32 = 16384;
/// A domain over a domain over … deeper than this is refused.
const DOMAIN_DEPTH_MAX: usize = 32;

/// Built-in types whose values name objects of one server (`regclass` and the like, `aclitem`), or that have
/// no input at all (`pg_node_tree` and the types of extended statistics).
const CATALOGUE_BOUND: [u32; 18] =
    [24, 194, 1033, 2202, 2203, 2204, 2205, 2206, 3361, 3402, 3734, 3769, 4089, 4096, 4191, 4600, 4601, 5017];

/// A row of `pg_type`.
#[derive(Clone, Debug)]
pub(super) struct TypeRow {
    pub(super) schema: String,
    pub(super) name: String,
    /// `b`ase, `c`omposite, `d`omain, `e`num, `p`seudo, `r`ange, `m`ultirange.
    pub(super) kind: char,
    /// Element of a true array type, else 0.
    pub(super) element: u32,
    /// What a domain is over, and its modifier.
    pub(super) base: u32,
    pub(super) base_modifier: i32,
    pub(super) is_not_null: bool,
    /// Has both `typsend` and `typreceive`.
    pub(super) is_binary: bool,
}

/// A type that can be carried: what it is once domains are seen through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Carried {
    pub(super) oid: u32,
    pub(super) modifier: i32,
    /// A domain on the way is NOT NULL.
    pub(super) is_not_null: bool,
    pub(super) is_enum: bool,
}

/// The types of a set of columns, and all that they are made of.
#[derive(Clone, Debug, Default)]
pub(super) struct TypeCatalogue(pub(super) HashMap<u32, TypeRow>);

impl TypeCatalogue {
    /// Loads the types and what they are made of.
    pub(super) async fn load(client: &Client, oids: &[u32]) -> Result<Self, SourceError> {
        let rows = client
            .query(
                "WITH RECURSIVE needed (id) AS ( \
                   SELECT pg_catalog.unnest($1::oid[]) \
                   UNION SELECT part.id FROM needed JOIN pg_catalog.pg_type AS t ON t.oid = needed.id, \
                     LATERAL (VALUES (t.typbasetype), (t.typelem)) AS part (id) WHERE part.id <> 0) \
                 SELECT t.oid, n.nspname::text, t.typname::text, t.typtype::text, \
                   CASE WHEN t.typsubscript = 'pg_catalog.array_subscript_handler'::regproc THEN t.typelem \
                     ELSE 0::oid END, \
                   t.typbasetype, t.typtypmod, t.typnotnull, t.typsend <> 0 AND t.typreceive <> 0 \
                 FROM needed JOIN pg_catalog.pg_type AS t ON t.oid = needed.id \
                 JOIN pg_catalog.pg_namespace AS n ON n.oid = t.typnamespace",
                &[&oids],
            )
            .await
            .map_err(|error| SourceError::sql(&error, "reading the types of columns"))?;
        let types = rows.iter().map(|row| {
            let kind = row.get::<_, &str>(3).chars().next().unwrap_or('?');
            let found = TypeRow {
                schema: row.get(1),
                name: row.get(2),
                kind,
                element: row.get(4),
                base: row.get(5),
                base_modifier: row.get(6),
                is_not_null: row.get(7),
                is_binary: row.get(8),
            };
            (row.get(0), found)
        });
        Ok(Self(types.collect()))
    }

    /// What a column of that type is carried as; or why it cannot be.
    pub(super) fn carry(&self, oid: u32, modifier: i32) -> Result<Carried, String> {
        let mut carried = Carried { oid, modifier, is_not_null: false, is_enum: false };
        for _ in 0..DOMAIN_DEPTH_MAX {
            let found = self.find(carried.oid)?;
            if found.kind != 'd' {
                carried.is_enum = found.kind == 'e';
                if !carried.is_enum {
                    self.check_built_in(carried.oid)?;
                }
                return Ok(carried);
            }
            carried.oid = found.base;
            carried.modifier = found.base_modifier;
            carried.is_not_null |= found.is_not_null;
        }
        Err("a domain over too many domains".into())
    }

    fn find(&self, oid: u32) -> Result<&TypeRow, String> {
        self.0.get(&oid).ok_or_else(|| format!("the type with OID {oid} is gone"))
    }

    fn check_built_in(&self, oid: u32) -> Result<(), String> {
        let found = self.find(oid)?;
        let name = format!("{}.{}", found.schema, found.name);
        if found.element != 0 {
            let element = self.find(found.element)?;
            if found.element >= FIRST_USER_OID || !matches!(element.kind, 'b' | 'r' | 'm') {
                return Err(format!(
                    "an array of {}.{}, and only arrays of built-in types can be carried",
                    element.schema, element.name
                ));
            }
            self.check_built_in(found.element)?;
        }
        match found.kind {
            'c' => Err(format!("the composite type {name}")),
            'b' | 'r' | 'm' if oid >= FIRST_USER_OID => Err(format!("the type {name} is not built in")),
            'b' | 'r' | 'm' if CATALOGUE_BOUND.contains(&oid) => {
                Err(format!("values of {name} mean something on one server only"))
            }
            'b' | 'r' | 'm' if !found.is_binary => Err(format!("the type {name} has no binary form")),
            'b' | 'r' | 'm' => Ok(()),
            _ => Err(format!("the type {name} is not for columns")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENUM: u32 = 20_000;
    const ENUM_ARRAY: u32 = 20_001;
    const COMPOSITE: u32 = 20_002;
    const DOMAIN: u32 = 20_003;
    const DOMAIN_OF_DOMAIN: u32 = 20_004;
    const DOMAIN_OF_ENUM: u32 = 20_005;
    const EXTENSION: u32 = 20_006;
    const USER_RANGE: u32 = 20_007;
    const LOOP: u32 = 20_008;

    fn catalogue() -> TypeCatalogue {
        let row = |name: &str, kind, element, base, base_modifier| TypeRow {
            schema: "s".into(),
            name: name.into(),
            kind,
            element,
            base,
            base_modifier,
            is_not_null: name == "d",
            is_binary: name != "no_send",
        };
        let types = [
            (23, row("int4", 'b', 0, 0, -1)),
            (1043, row("varchar", 'b', 0, 0, -1)),
            (1007, row("_int4", 'b', 23, 0, -1)),
            (3904, row("int4range", 'r', 0, 0, -1)),
            (2205, row("regclass", 'b', 0, 0, -1)),
            (2210, row("_regclass", 'b', 2205, 0, -1)),
            (3642, row("no_send", 'b', 0, 0, -1)),
            (705, row("unknown", 'p', 0, 0, -1)),
            (ENUM, row("mood", 'e', 0, 0, -1)),
            (ENUM_ARRAY, row("_mood", 'b', ENUM, 0, -1)),
            (COMPOSITE, row("pair", 'c', 0, 0, -1)),
            (DOMAIN, row("d", 'd', 0, 1043, 14)),
            (DOMAIN_OF_DOMAIN, row("dd", 'd', 0, DOMAIN, -1)),
            (DOMAIN_OF_ENUM, row("de", 'd', 0, ENUM, -1)),
            (EXTENSION, row("geometry", 'b', 0, 0, -1)),
            (USER_RANGE, row("span", 'r', 0, 0, -1)),
            (LOOP, row("loop", 'd', 0, LOOP, -1)),
        ];
        TypeCatalogue(types.into_iter().collect())
    }

    #[test]
    fn built_in_types_enums_and_domains_over_them_are_carried() {
        let carried =
            |oid, modifier, is_not_null, is_enum| Ok(Carried { oid, modifier, is_not_null, is_enum });
        let types = catalogue();
        assert_eq!(types.carry(23, -1), carried(23, -1, false, false));
        assert_eq!(types.carry(1043, 14), carried(1043, 14, false, false));
        assert_eq!(types.carry(1007, -1), carried(1007, -1, false, false));
        assert_eq!(types.carry(3904, -1), carried(3904, -1, false, false));
        assert_eq!(types.carry(ENUM, -1), carried(ENUM, -1, false, true));
        assert_eq!(types.carry(DOMAIN, -1), carried(1043, 14, true, false));
        assert_eq!(types.carry(DOMAIN_OF_DOMAIN, -1), carried(1043, 14, true, false));
        assert_eq!(types.carry(DOMAIN_OF_ENUM, -1), carried(ENUM, -1, false, true));
    }

    #[test]
    fn everything_else_is_refused_with_its_cause() {
        for (oid, cause) in [
            (2205, "one server only"),
            (2210, "one server only"),
            (3642, "no binary form"),
            (705, "not for columns"),
            (ENUM_ARRAY, "array of s.mood"),
            (COMPOSITE, "composite"),
            (EXTENSION, "not built in"),
            (USER_RANGE, "not built in"),
            (LOOP, "too many domains"),
            (1, "gone"),
        ] {
            let refusal = catalogue().carry(oid, -1).unwrap_err();
            assert!(refusal.contains(cause), "{oid}: {refusal}");
        }
    }
}
