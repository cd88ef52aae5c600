//! Types as a server's catalogue describes them, with all that they are made of. The same for both ends.

use std::collections::{BTreeSet, HashMap};

use tokio_postgres::{Error, GenericClient, Row};

use crate::change::table::TableName;
use crate::change::{ColumnType, Definition, MadeType, STABLE_OIDS_END, TypeKind};

/// OIDs below are given out by initdb: the rows of catalogues, and the domains of `information_schema`.
const FIRST_USER_OID: u32 = 16384;
/// A type within a type within … deeper than this is refused.
const DEPTH_MAX: usize = 32;

/// The types of a set of columns, and all that they are made of.
#[derive(Clone, Debug, Default)]
pub struct TypeCatalogue {
    types: HashMap<u32, Found>,
}

/// A row of `pg_type` and what belongs to it.
#[derive(Clone, Debug)]
struct Found {
    name: TableName,
    extension: Option<String>,
    shape: Shape,
}

#[derive(Clone, Debug)]
enum Shape {
    Base,
    Pseudo,
    Array { element: u32 },
    Domain { base: u32, modifier: i32, is_not_null: bool },
    Enum(Vec<String>),
    Composite { attributes: Vec<(String, u32, i32)>, is_of_table: bool },
    Range { subtype: u32, multirange: TableName, is_plain: bool },
    Multirange { range: u32 },
}

/// A type as a column has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// The type, domains seen through.
    pub column_type: ColumnType,
    /// A domain on the way is NOT NULL.
    pub is_not_null: bool,
}

/// Arrays are those that the server subscripts as such; a multirange's range is looked up from its own side.
const TYPES: &str = "
WITH RECURSIVE needed (id) AS (
    SELECT pg_catalog.unnest($1::pg_catalog.oid[])
    UNION
    SELECT part.id
    FROM needed JOIN pg_catalog.pg_type AS t ON t.oid = needed.id,
         LATERAL (SELECT t.typbasetype UNION ALL SELECT t.typelem
                  UNION ALL SELECT r.rngsubtype FROM pg_catalog.pg_range AS r WHERE r.rngtypid = t.oid
                  UNION ALL SELECT r.rngtypid FROM pg_catalog.pg_range AS r WHERE r.rngmultitypid = t.oid
                  UNION ALL SELECT a.atttypid FROM pg_catalog.pg_attribute AS a
                            WHERE t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0
                              AND NOT a.attisdropped) AS part (id)
    WHERE part.id <> 0
)
SELECT t.oid, n.nspname::text, t.typname::text,
       (SELECT e.extname::text FROM pg_catalog.pg_depend AS d
        JOIN pg_catalog.pg_extension AS e ON e.oid = d.refobjid
        WHERE d.classid = 'pg_catalog.pg_type'::pg_catalog.regclass AND d.objid = t.oid AND d.deptype = 'e'
          AND d.refclassid = 'pg_catalog.pg_extension'::pg_catalog.regclass),
       t.typtype::text,
       CASE WHEN t.typsubscript = 'pg_catalog.array_subscript_handler'::pg_catalog.regproc THEN t.typelem
            ELSE 0::pg_catalog.oid END,
       t.typbasetype, t.typtypmod, t.typnotnull,
       ARRAY(SELECT l.enumlabel::text FROM pg_catalog.pg_enum AS l WHERE l.enumtypid = t.oid ORDER BY l.enumsortorder),
       c.names, c.types, c.modifiers,
       COALESCE((SELECT r.relkind <> 'c' FROM pg_catalog.pg_class AS r WHERE r.oid = t.typrelid), false),
       COALESCE(own.rngsubtype, 0::pg_catalog.oid),
       COALESCE(mn.nspname::text, ''), COALESCE(m.typname::text, ''),
       COALESCE(own.rngcanonical = 0 AND own.rngcollation = sub.typcollation
           AND (SELECT o.opcdefault FROM pg_catalog.pg_opclass AS o WHERE o.oid = own.rngsubopc), false),
       COALESCE(of_multi.rngtypid, 0::pg_catalog.oid)
FROM needed JOIN pg_catalog.pg_type AS t ON t.oid = needed.id
JOIN pg_catalog.pg_namespace AS n ON n.oid = t.typnamespace
LEFT JOIN pg_catalog.pg_range AS own ON own.rngtypid = t.oid
LEFT JOIN pg_catalog.pg_type AS sub ON sub.oid = own.rngsubtype
LEFT JOIN pg_catalog.pg_type AS m ON m.oid = own.rngmultitypid
LEFT JOIN pg_catalog.pg_namespace AS mn ON mn.oid = m.typnamespace
LEFT JOIN pg_catalog.pg_range AS of_multi ON of_multi.rngmultitypid = t.oid,
LATERAL (SELECT COALESCE(pg_catalog.array_agg(a.attname::text ORDER BY a.attnum), '{}') AS names,
                COALESCE(pg_catalog.array_agg(a.atttypid ORDER BY a.attnum), '{}') AS types,
                COALESCE(pg_catalog.array_agg(a.atttypmod ORDER BY a.attnum), '{}') AS modifiers
         FROM pg_catalog.pg_attribute AS a
         WHERE t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped) AS c";

const NAMES: &str = "
SELECT pg_catalog.format_type(t.id, t.modifier), pg_catalog.format_type(t.id, -1)
FROM ROWS FROM (pg_catalog.unnest($1::pg_catalog.oid[]), pg_catalog.unnest($2::pg_catalog.int4[]))
     WITH ORDINALITY AS t (id, modifier, place)
ORDER BY t.place";

impl TypeCatalogue {
    /// Loads the types and what they are made of.
    pub async fn load(client: &impl GenericClient, oids: &[u32]) -> Result<Self, Error> {
        let rows = client.query(TYPES, &[&oids]).await?;
        let types =
            rows.iter().map(|row| Ok((row.try_get(0)?, found(row)?))).collect::<Result<_, Error>>()?;
        Ok(Self { types })
    }

    /// What a column of that type holds, without the names that [`write_names`] gives; or why there is no such
    /// thing.
    pub fn resolve(&self, oid: u32, modifier: i32) -> Result<Resolved, String> {
        self.resolve_within(oid, modifier, DEPTH_MAX)
    }

    fn resolve_within(&self, oid: u32, modifier: i32, depth: usize) -> Result<Resolved, String> {
        let depth = depth.checked_sub(1).ok_or("it is made of too many types within types")?;
        let found = self.types.get(&oid).ok_or_else(|| format!("the type with OID {oid} is gone"))?;
        let part = |oid, modifier| Ok::<_, String>(self.resolve_within(oid, modifier, depth)?.column_type);
        let definition = match &found.shape {
            Shape::Domain { base, modifier: own, is_not_null } => {
                let modifier = if *own >= 0 { *own } else { modifier };
                let mut over = self.resolve_within(*base, modifier, depth)?;
                over.is_not_null |= is_not_null;
                return Ok(over);
            }
            Shape::Pseudo => return Err(format!("the type {} is not for columns", found.name)),
            Shape::Composite { is_of_table: true, .. } if oid < FIRST_USER_OID => {
                return Err(format!("the rows of {} are the server's own", found.name));
            }
            _ if oid < STABLE_OIDS_END => return Ok(resolved(oid, modifier, TypeKind::BuiltIn)),
            Shape::Array { element } => {
                let mut over = part(*element, modifier)?;
                if self.is_array(over.oid)
                    && let Some(domain) = self.types.get(element)
                {
                    over = made(*element, -1, domain, Definition::Domain(over));
                }
                let element = over;
                return Ok(resolved(oid, modifier, TypeKind::Array(Box::new(element))));
            }
            Shape::Base => Definition::Base,
            Shape::Enum(labels) => Definition::Enum(labels.clone()),
            Shape::Composite { attributes, is_of_table } => Definition::Composite {
                attributes: attributes
                    .iter()
                    .map(|(name, oid, modifier)| Ok((name.clone(), part(*oid, *modifier)?)))
                    .collect::<Result<_, String>>()?,
                is_of_table: *is_of_table,
            },
            Shape::Range { subtype, multirange, is_plain } => Definition::Range {
                subtype: part(*subtype, -1)?,
                multirange: multirange.clone(),
                is_plain: *is_plain,
            },
            Shape::Multirange { range } => Definition::Multirange(part(*range, -1)?),
        };
        Ok(Resolved { column_type: made(oid, modifier, found, definition), is_not_null: false })
    }

    fn is_array(&self, oid: u32) -> bool {
        self.types.get(&oid).is_some_and(|found| matches!(found.shape, Shape::Array { .. }))
    }
}

fn made(oid: u32, modifier: i32, found: &Found, definition: Definition) -> ColumnType {
    let (name, extension) = (found.name.clone(), found.extension.clone());
    let made = MadeType { name, extension, modifier_sql: String::new(), definition };
    ColumnType { oid, modifier, sql: String::new(), kind: TypeKind::Made(Box::new(made)) }
}

fn resolved(oid: u32, modifier: i32, kind: TypeKind) -> Resolved {
    Resolved { column_type: ColumnType { oid, modifier, sql: String::new(), kind }, is_not_null: false }
}

/// Gives the types, and what they are made of, their names as SQL writes them. With an empty `search_path` those are
/// qualified.
pub async fn write_names<'a>(
    client: &impl GenericClient,
    types: impl Iterator<Item = &'a mut ColumnType>,
) -> Result<(), Error> {
    let mut types: Vec<&mut ColumnType> = types.collect();
    let mut wanted = BTreeSet::new();
    for column_type in &types {
        wanted.extend(column_type.all().into_iter().map(|part| (part.oid, part.modifier)));
    }
    let (oids, modifiers): (Vec<u32>, Vec<i32>) = wanted.iter().copied().unzip();
    let rows = client.query(NAMES, &[&oids, &modifiers]).await?;
    let mut names: HashMap<(u32, i32), (String, String)> = HashMap::with_capacity(rows.len());
    for (key, row) in wanted.into_iter().zip(&rows) {
        names.insert(key, (row.try_get(0)?, row.try_get(1)?));
    }
    for column_type in &mut types {
        column_type.for_each_mut(&mut |part| {
            let Some((name, bare)) = names.get(&(part.oid, part.modifier)) else { return };
            part.sql.clone_from(name);
            if let TypeKind::Made(made) = &mut part.kind {
                name.strip_prefix(bare.as_str()).unwrap_or_default().clone_into(&mut made.modifier_sql);
            }
        });
    }
    Ok(())
}

fn found(row: &Row) -> Result<Found, Error> {
    let element: u32 = row.try_get(5)?;
    let shape = match row.try_get::<_, &str>(4)? {
        "b" if element != 0 => Shape::Array { element },
        "b" => Shape::Base,
        "d" => {
            Shape::Domain { base: row.try_get(6)?, modifier: row.try_get(7)?, is_not_null: row.try_get(8)? }
        }
        "e" => Shape::Enum(row.try_get(9)?),
        "c" => {
            let (names, types, modifiers): (Vec<String>, Vec<u32>, Vec<i32>) =
                (row.try_get(10)?, row.try_get(11)?, row.try_get(12)?);
            let attributes = names
                .into_iter()
                .zip(types.into_iter().zip(modifiers))
                .map(|(name, (oid, modifier))| (name, oid, modifier))
                .collect();
            Shape::Composite { attributes, is_of_table: row.try_get(13)? }
        }
        "r" => Shape::Range {
            subtype: row.try_get(14)?,
            multirange: TableName::new(row.try_get::<_, String>(15)?, row.try_get::<_, String>(16)?),
            is_plain: row.try_get(17)?,
        },
        "m" => Shape::Multirange { range: row.try_get(18)? },
        _ => Shape::Pseudo,
    };
    Ok(Found {
        name: TableName::new(row.try_get::<_, String>(1)?, row.try_get::<_, String>(2)?),
        extension: row.try_get(3)?,
        shape,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOOD: u32 = 20_000;
    const MOODS: u32 = 20_001;
    const SHORT: u32 = 20_002;
    const SHORTER: u32 = 20_003;
    const PAIR: u32 = 20_004;
    const LOOP: u32 = 20_005;
    const SHORTS: u32 = 20_006;

    fn catalogue() -> TypeCatalogue {
        let domain = |base, modifier, is_not_null| Shape::Domain { base, modifier, is_not_null };
        let attributes = vec![("a".to_owned(), SHORT, -1), ("b".to_owned(), MOODS, -1)];
        let types = [
            (23, Shape::Base),
            (1043, Shape::Base),
            (705, Shape::Pseudo),
            (MOOD, Shape::Enum(vec!["sad".into()])),
            (MOODS, Shape::Array { element: MOOD }),
            (SHORT, domain(1043, 14, true)),
            (SHORTER, domain(SHORT, -1, false)),
            (SHORTS, Shape::Array { element: SHORT }),
            (PAIR, Shape::Composite { attributes, is_of_table: false }),
            (LOOP, domain(LOOP, -1, false)),
            (11_000, Shape::Composite { attributes: Vec::new(), is_of_table: true }),
        ];
        let found = |shape| Found { name: TableName::new("s", "made"), extension: None, shape };
        TypeCatalogue { types: types.into_iter().map(|(oid, shape)| (oid, found(shape))).collect() }
    }

    #[test]
    fn domains_are_seen_through_wherever_they_are() {
        let types = catalogue();
        let varchar = ColumnType::built_in(1043, 14, "");
        for domain in [SHORT, SHORTER] {
            let short = types.resolve(domain, -1).unwrap();
            assert_eq!(short, Resolved { column_type: varchar.clone(), is_not_null: true });
        }
        let shorts = types.resolve(SHORTS, -1).unwrap();
        assert_eq!(shorts.column_type.kind, TypeKind::Array(Box::new(varchar.clone())));
        assert!(!shorts.is_not_null, "of its elements only");
        let pair = types.resolve(PAIR, -1).unwrap();
        let all: Vec<u32> = pair.column_type.all().iter().map(|part| part.oid).collect();
        assert_eq!(all, [1043, MOOD, MOODS, PAIR], "parts before the whole");
    }

    #[test]
    fn what_is_no_type_of_a_column_has_a_cause() {
        for (oid, cause) in
            [(705, "not for columns"), (LOOP, "too many"), (1, "gone"), (11_000, "server's own")]
        {
            let refusal = catalogue().resolve(oid, -1).unwrap_err();
            assert!(refusal.contains(cause), "{oid}: {refusal}");
        }
    }
}
