//! A table as the sink's catalogue describes it.

use tokio_postgres::{Error, GenericClient, Row};

use super::made_types::read_types;
use crate::change::table::TableName;
use crate::change::{ColumnType, STABLE_OIDS_END};

/// A table of the sink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SinkTable {
    pub(super) name: TableName,
    pub(super) kind: TableKind,
    /// In order, dropped ones left out.
    pub(super) columns: Vec<SinkColumn>,
    pub(super) unique_indexes: Vec<UniqueIndex>,
    /// The table, or a partition of it, that a crash of the server would empty; quoted.
    pub(super) unlogged: Option<String>,
    /// It has an exclusion constraint, a foreign key from or to it, or triggers of the user's.
    pub(super) has_order_constraints: bool,
}

/// What kind of relation it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TableKind {
    Ordinary,
    Partitioned,
    /// A view, a foreign table and the like: nothing that rows can be applied to exactly once.
    NotATable,
}

/// A column of the sink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SinkColumn {
    pub(super) name: String,
    /// Its type; for a domain, what that is over.
    pub(super) column_type: ColumnType,
    /// The type without its modifier, safe in a cast.
    pub(super) cast_sql: String,
    /// NOT NULL, of the column or of its domain.
    pub(super) is_not_null: bool,
    /// What it holds in a row that does not say.
    pub(super) own_value: OwnValue,
    /// The operator that says whether two values of the type are the same key, for SQL.
    pub(super) equality: String,
    /// The type can be received in binary format.
    pub(super) has_binary_format: bool,
}

/// What a column holds in a row that does not say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OwnValue {
    /// NULL.
    Null,
    /// A default, of the column or of its domain, or the next number.
    Default,
    /// The next number, and nothing else unless it is overridden (GENERATED ALWAYS AS IDENTITY).
    IdentityAlways,
    /// What its expression says, and nothing else.
    Generated,
}

/// A unique index that can name a row: on columns only, of all rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct UniqueIndex {
    pub(super) is_primary: bool,
    /// On columns only, of all rows, complete.
    pub(super) is_key: bool,
    /// No two rows have the same key, not even within a transaction.
    pub(super) is_immediate: bool,
    /// Its columns in order.
    pub(super) columns: Vec<String>,
}

impl SinkColumn {
    /// Computed from other columns.
    pub(super) fn is_generated(&self) -> bool {
        self.own_value == OwnValue::Generated
    }
}

impl SinkTable {
    /// The column of that name.
    pub(super) fn column(&self, name: &str) -> Option<&SinkColumn> {
        self.columns.iter().find(|column| column.name == name)
    }

    /// The table itself, for SQL, without those that inherit from it: they are none of the pipeline's.
    pub(super) fn only(&self) -> String {
        match self.kind {
            TableKind::Ordinary | TableKind::NotATable => format!("ONLY {}", self.name.quoted()),
            TableKind::Partitioned => self.name.quoted(),
        }
    }

    /// Whether a unique index names rows by exactly these columns, in whatever order.
    pub(super) fn has_key<S: AsRef<str>>(&self, columns: &[S]) -> bool {
        self.unique_indexes.iter().any(|index| index.is_key && index.is_on(columns))
    }
}

impl UniqueIndex {
    /// Whether its columns are exactly these, in whatever order.
    pub(super) fn is_on<S: AsRef<str>>(&self, columns: &[S]) -> bool {
        self.columns.len() == columns.len()
            && columns.iter().all(|column| self.columns.iter().any(|own| own == column.as_ref()))
    }
}

const TABLE: &str = "
SELECT class.oid, class.relkind::text,
       EXISTS (SELECT FROM pg_catalog.pg_constraint AS c
               WHERE (c.conrelid = class.oid AND c.contype IN ('x', 'f')) OR (c.confrelid = class.oid AND c.contype = 'f'))
    OR EXISTS (SELECT FROM pg_catalog.pg_trigger AS t
               WHERE t.tgrelid = class.oid AND NOT t.tgisinternal AND t.tgenabled <> 'D'),
       (SELECT pg_catalog.format('%I.%I', n.nspname, part.relname) FROM pg_catalog.pg_class AS part
        JOIN pg_catalog.pg_namespace AS n ON n.oid = part.relnamespace
        WHERE part.relpersistence = 'u' AND (part.oid = class.oid
           OR part.oid IN (SELECT relid FROM pg_catalog.pg_partition_tree(class.oid))) LIMIT 1)
FROM pg_catalog.pg_class AS class
JOIN pg_catalog.pg_namespace AS namespace ON namespace.oid = class.relnamespace
WHERE namespace.nspname = $1 AND class.relname = $2";

/// Domains are resolved to their base types. Equality is that of the type's default B-tree operator class, because
/// the `=` of an extension's type is not in the search path.
const COLUMNS: &str = "
WITH RECURSIVE base AS (
    SELECT a.attnum, a.atttypid AS type, a.atttypmod AS modifier, false AS is_not_null, false AS has_default
    FROM pg_catalog.pg_attribute AS a
    WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped
    UNION ALL
    SELECT base.attnum, domain.typbasetype,
           CASE WHEN domain.typtypmod >= 0 THEN domain.typtypmod ELSE base.modifier END,
           base.is_not_null OR domain.typnotnull, base.has_default OR domain.typdefault IS NOT NULL
    FROM base JOIN pg_catalog.pg_type AS domain ON domain.oid = base.type AND domain.typtype = 'd'
)
SELECT a.attname::text, type.oid, base.modifier,
       pg_catalog.format_type(type.oid, base.modifier), pg_catalog.format_type(type.oid, -1),
       a.attnotnull OR base.is_not_null,
       CASE WHEN a.attgenerated <> '' THEN 'generated' WHEN a.attidentity = 'a' THEN 'identity'
            WHEN a.atthasdef OR a.attidentity <> '' OR base.has_default THEN 'default' ELSE 'null' END,
       CASE
           WHEN type.typtype <> 'b' OR type.typcategory = 'A' THEN 'OPERATOR(pg_catalog.=)'
           ELSE COALESCE((SELECT pg_catalog.format('OPERATOR(%I.%s)', namespace.nspname, operator.oprname)
                 FROM pg_catalog.pg_opclass AS class
                 JOIN pg_catalog.pg_am AS method ON method.oid = class.opcmethod AND method.amname = 'btree'
                 JOIN pg_catalog.pg_amop AS member ON member.amopfamily = class.opcfamily
                      AND member.amopstrategy = 3
                      AND member.amoplefttype = class.opcintype AND member.amoprighttype = class.opcintype
                 JOIN pg_catalog.pg_operator AS operator ON operator.oid = member.amopopr
                 JOIN pg_catalog.pg_namespace AS namespace ON namespace.oid = operator.oprnamespace
                 WHERE class.opcdefault
                   AND (class.opcintype = type.oid
                        OR EXISTS (SELECT FROM pg_catalog.pg_cast AS c
                                   WHERE c.castsource = type.oid AND c.casttarget = class.opcintype
                                     AND c.castmethod = 'b' AND c.castcontext = 'i'))
                 ORDER BY class.opcintype <> type.oid LIMIT 1), 'OPERATOR(pg_catalog.=)')
       END,
       type.typreceive <> 0
FROM base
JOIN pg_catalog.pg_type AS type ON type.oid = base.type AND type.typtype <> 'd'
JOIN pg_catalog.pg_attribute AS a ON a.attrelid = $1 AND a.attnum = base.attnum
ORDER BY a.attnum";

const UNIQUE_INDEXES: &str = "
SELECT i.indisprimary,
       i.indpred IS NULL AND i.indexprs IS NULL AND i.indisvalid AND i.indisready, i.indimmediate,
       ARRAY(SELECT a.attname::text
             FROM pg_catalog.unnest(i.indkey::pg_catalog.int2[]) WITH ORDINALITY AS key (attnum, place)
             JOIN pg_catalog.pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = key.attnum
             WHERE key.place <= i.indnkeyatts ORDER BY key.place)
FROM pg_catalog.pg_index AS i
WHERE i.indrelid = $1 AND i.indisunique AND i.indislive
ORDER BY i.indisprimary DESC, i.indexrelid";

/// Reads the table, or says that there is none of that name.
pub(super) async fn read_table(
    client: &impl GenericClient,
    name: &TableName,
) -> Result<Option<SinkTable>, Error> {
    let Some(table) = client.query_opt(TABLE, &[&name.schema, &name.name]).await? else { return Ok(None) };
    let (oid, kind, has_order_constraints): (u32, String, bool) =
        (table.try_get(0)?, table.try_get(1)?, table.try_get(2)?);
    let unlogged = table.try_get(3)?;
    let rows = client.query(COLUMNS, &[&oid]).await?;
    let mut columns = rows.iter().map(column).collect::<Result<Vec<_>, _>>()?;
    look_into_made_types(client, &mut columns).await?;
    let indexes = client.query(UNIQUE_INDEXES, &[&oid]).await?;
    Ok(Some(SinkTable {
        name: name.clone(),
        kind: match kind.as_str() {
            "r" => TableKind::Ordinary,
            "p" => TableKind::Partitioned,
            _ => TableKind::NotATable,
        },
        columns,
        unique_indexes: indexes.iter().map(unique_index).collect::<Result<_, _>>()?,
        unlogged,
        has_order_constraints,
    }))
}

/// Most tables have none.
async fn look_into_made_types(client: &impl GenericClient, columns: &mut [SinkColumn]) -> Result<(), Error> {
    let made: Vec<&mut ColumnType> = columns
        .iter_mut()
        .map(|column| &mut column.column_type)
        .filter(|column_type| column_type.oid >= STABLE_OIDS_END)
        .collect();
    if made.is_empty() {
        return Ok(());
    }
    let types: Vec<(u32, i32)> = made.iter().map(|found| (found.oid, found.modifier)).collect();
    for (found, read) in made.into_iter().zip(read_types(client, &types).await?) {
        *found = read;
    }
    Ok(())
}

fn column(row: &Row) -> Result<SinkColumn, Error> {
    Ok(SinkColumn {
        name: row.try_get(0)?,
        column_type: ColumnType::built_in(row.try_get(1)?, row.try_get(2)?, row.try_get::<_, String>(3)?),
        cast_sql: row.try_get(4)?,
        is_not_null: row.try_get(5)?,
        own_value: match row.try_get(6)? {
            "generated" => OwnValue::Generated,
            "identity" => OwnValue::IdentityAlways,
            "default" => OwnValue::Default,
            _ => OwnValue::Null,
        },
        equality: row.try_get(7)?,
        has_binary_format: row.try_get(8)?,
    })
}

fn unique_index(row: &Row) -> Result<UniqueIndex, Error> {
    Ok(UniqueIndex {
        is_primary: row.try_get(0)?,
        is_key: row.try_get(1)?,
        is_immediate: row.try_get(2)?,
        columns: row.try_get(3)?,
    })
}
