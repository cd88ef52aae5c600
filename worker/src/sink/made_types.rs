//! Types that somebody made, as the tables of a pipeline need them: found in the sink, compared, or made there.
//! Those of an extension come with `CREATE EXTENSION`, wherever the sink's administrator put it.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use tokio_postgres::{Error, GenericClient, Transaction};

use super::compare::Difference;
use super::ddl;
use super::fit::{Unfit, fit_column};
use super::owner::TableMap;
use super::tables::ensure_schema;
use crate::change::table::{SourceTable, TableName, quote_identifier, quote_literal};
use crate::change::{ColumnType, Definition, MadeType, TypeKind};
use crate::evolve::RenamedLabel;
use crate::postgres::{TypeCatalogue, write_names};

/// Where the sink has the types of extensions: by extension and name.
#[derive(Default)]
pub(super) struct ExtensionTypes(BTreeMap<(String, String), String>);

impl ExtensionTypes {
    /// Looks for the extensions that the tables need.
    pub(super) async fn read(client: &impl GenericClient, tables: &[SourceTable]) -> Result<Self, Error> {
        let needed: BTreeSet<&String> =
            tables.iter().flat_map(made_types).filter_map(|(_, made)| made.extension.as_ref()).collect();
        if needed.is_empty() {
            return Ok(Self::default());
        }
        let sql = "SELECT e.extname::text, t.typname::text, n.nspname::text \
                   FROM pg_catalog.pg_extension AS e \
                   JOIN pg_catalog.pg_depend AS d ON d.refobjid = e.oid AND d.deptype = 'e' \
                     AND d.refclassid = 'pg_catalog.pg_extension'::pg_catalog.regclass \
                     AND d.classid = 'pg_catalog.pg_type'::pg_catalog.regclass \
                   JOIN pg_catalog.pg_type AS t ON t.oid = d.objid \
                   JOIN pg_catalog.pg_namespace AS n ON n.oid = t.typnamespace \
                   WHERE e.extname = ANY ($1::text[])";
        let rows = client.query(sql, &[&needed.into_iter().collect::<Vec<_>>()]).await?;
        let types = rows.iter().map(|row| Ok(((row.try_get(0)?, row.try_get(1)?), row.try_get(2)?)));
        types.collect::<Result<_, Error>>().map(Self)
    }

    fn schema_of(&self, made: &MadeType) -> Option<&String> {
        self.0.get(&(made.extension.clone()?, made.name.name.clone()))
    }

    /// What the table needs and the sink has not.
    pub(super) fn missing(&self, table: &SourceTable) -> Vec<Difference> {
        let missing = made_types(table).filter(|(_, made)| self.schema_of(made).is_none());
        let by_extension: BTreeMap<&String, &str> =
            missing.filter_map(|(part, made)| Some((made.extension.as_ref()?, part.sql.as_str()))).collect();
        let difference = |(extension, type_sql): (&String, &str)| {
            Difference::new(
                format!("the type {type_sql} is of the extension {extension}, which the sink has not"),
                format!("CREATE EXTENSION {} CASCADE", quote_identifier(extension)),
            )
        };
        by_extension.into_iter().map(difference).collect()
    }

    /// The table with the types of extensions where the sink has them.
    pub(super) fn place<'a>(&self, table: &'a SourceTable) -> Cow<'a, SourceTable> {
        if self.0.is_empty() {
            return Cow::Borrowed(table);
        }
        let mut placed = table.clone();
        for column in &mut placed.columns {
            column.column_type.for_each_mut(&mut |part| {
                if let TypeKind::Made(made) = &mut part.kind
                    && let Some(schema) = self.schema_of(made)
                {
                    made.name.schema.clone_from(schema);
                }
            });
        }
        Cow::Owned(placed)
    }
}

/// The types that the table needs and no server brings along, parts before the whole, some more than once.
fn made_types(table: &SourceTable) -> impl Iterator<Item = (&ColumnType, &MadeType)> {
    let all = table.columns.iter().flat_map(|column| column.column_type.all());
    all.filter_map(|part| Some((part, part.made()?)))
}

/// Those that are a pipeline's to make.
fn own_types(table: &SourceTable) -> impl Iterator<Item = (&ColumnType, &MadeType)> {
    let mut seen = BTreeSet::new();
    made_types(table).filter(move |(_, made)| made.extension.is_none() && seen.insert(&made.name))
}

/// Types that are there under the name and are not the source's, and those that cannot be made.
pub(super) async fn type_differences(
    client: &impl GenericClient,
    table: &SourceTable,
    tables: &TableMap,
) -> Result<Vec<Difference>, Error> {
    let mut found = Vec::new();
    for (source, made) in own_types(table) {
        let name = tables.type_name(&made.name);
        // A domain that is asked for by its name is seen through.
        let source = if let Definition::Domain(over) = &made.definition { over } else { source };
        match read_type(client, &name).await? {
            None => found.extend(cannot_be_made(made, &name)),
            Some(sink) => match fit_column(source, &sink, tables) {
                Ok(()) => {}
                Err(Unfit::Within(differences)) => found.extend(differences),
                Err(Unfit::Other) => found.push(Difference::new(
                    format!("type {name} is of another kind than the source's"),
                    format!(
                        "ALTER TYPE {} RENAME TO {}",
                        name.quoted(),
                        quote_identifier(&format!("{}_old", name.name))
                    ),
                )),
            },
        }
    }
    Ok(found)
}

/// Labels that the sink's types still have under the names of before.
pub(super) async fn label_differences(
    client: &impl GenericClient,
    table: &SourceTable,
    tables: &TableMap,
    renamed: &[RenamedLabel],
) -> Result<Vec<Difference>, Error> {
    let mut found = Vec::new();
    let mut seen = BTreeSet::new();
    for (part, made) in made_types(table) {
        let left: Vec<&RenamedLabel> = renamed.iter().filter(|own| own.type_oid == part.oid).collect();
        if left.is_empty() || !seen.insert(part.oid) {
            continue;
        }
        let name = if made.extension.is_some() { made.name.clone() } else { tables.type_name(&made.name) };
        let Some(sink) = read_type(client, &name).await? else { continue };
        let Some(Definition::Enum(labels)) = sink.made().map(|made| &made.definition) else { continue };
        for (from, to) in renames(labels.clone(), &left) {
            found.push(Difference::new(
                format!("the label {from} of the type {name} was renamed to {to} at the source"),
                format!(
                    "ALTER TYPE {} RENAME VALUE {} TO {}",
                    name.quoted(),
                    quote_literal(&from),
                    quote_literal(&to)
                ),
            ));
        }
    }
    Ok(found)
}

/// In an order in which no two labels ever have one name. Those that exchanged their names stay: whether that was done
/// nobody could see, and the copy brings the values.
fn renames(mut labels: Vec<String>, wanted: &[&RenamedLabel]) -> Vec<(String, String)> {
    let mut left = wanted.to_vec();
    let mut found = Vec::new();
    while let Some(place) =
        left.iter().position(|own| labels.contains(&own.from) && !labels.contains(&own.to))
    {
        let RenamedLabel { from, to, .. } = left.remove(place);
        labels.retain(|label| label != from);
        labels.push(to.clone());
        found.push((from.clone(), to.clone()));
    }
    found
}

/// What would make the types that are not there.
pub(super) async fn missing_types(
    client: &impl GenericClient,
    table: &SourceTable,
    tables: &TableMap,
) -> Result<Vec<String>, Error> {
    let mut missing = Vec::new();
    for (_, made) in own_types(table) {
        if find_type(client, &tables.type_name(&made.name)).await?.is_none() {
            missing.extend(ddl::create_type(made, tables));
        }
    }
    Ok(missing)
}

/// Makes the types that are not there.
pub(super) async fn make_types(
    transaction: &Transaction<'_>,
    table: &SourceTable,
    tables: &TableMap,
) -> Result<(), Error> {
    for (_, made) in own_types(table) {
        let name = tables.type_name(&made.name);
        if let Some(statement) = ddl::create_type(made, tables)
            && find_type(transaction, &name).await?.is_none()
        {
            ensure_schema(transaction, &name.schema).await?;
            if let Definition::Range { multirange, .. } = &made.definition {
                ensure_schema(transaction, &tables.type_name(multirange).schema).await?;
            }
            transaction.batch_execute(&statement).await?;
        }
    }
    Ok(())
}

/// A type that is missing, if more is needed than is known of it.
fn cannot_be_made(made: &MadeType, name: &TableName) -> Option<Difference> {
    let sql = name.quoted();
    let (why, statement) = match &made.definition {
        Definition::Base => {
            ("it has functions of its own", format!("CREATE TYPE {sql} (INPUT = …, OUTPUT = …)"))
        }
        Definition::Composite { is_of_table: true, .. } => {
            ("it is that of the rows of a table", format!("CREATE TABLE {sql} (…)"))
        }
        Definition::Range { is_plain: false, subtype, .. } => (
            "it has functions, operators or a collation of its own",
            format!("CREATE TYPE {sql} AS RANGE (SUBTYPE = {}, …)", subtype.sql),
        ),
        Definition::Enum(_)
        | Definition::Composite { .. }
        | Definition::Range { .. }
        | Definition::Multirange(_)
        | Definition::Domain(_) => return None,
    };
    Some(Difference::new(
        format!("the type {name} is missing, and {why}, so make it as the source has it"),
        statement,
    ))
}

async fn find_type(client: &impl GenericClient, name: &TableName) -> Result<Option<u32>, Error> {
    let sql = "SELECT type.oid FROM pg_catalog.pg_type AS type \
               JOIN pg_catalog.pg_namespace AS namespace ON namespace.oid = type.typnamespace \
               WHERE namespace.nspname = $1 AND type.typname = $2";
    client.query_opt(sql, &[&name.schema, &name.name]).await?.map(|row| row.try_get(0)).transpose()
}

async fn read_type(client: &impl GenericClient, name: &TableName) -> Result<Option<ColumnType>, Error> {
    let Some(oid) = find_type(client, name).await? else { return Ok(None) };
    Ok(read_types(client, &[(oid, -1)]).await?.pop())
}

/// Types of the sink with all that they are made of. One that makes no sense (a shell, a pseudo-type) is told as a
/// built-in type that nothing fits.
pub(super) async fn read_types(
    client: &impl GenericClient,
    types: &[(u32, i32)],
) -> Result<Vec<ColumnType>, Error> {
    let oids: Vec<u32> = types.iter().map(|(oid, _)| *oid).collect();
    let catalogue = TypeCatalogue::load(client, &oids).await?;
    let resolve = |(oid, modifier): &(u32, i32)| match catalogue.resolve(*oid, *modifier) {
        Ok(resolved) => resolved.column_type,
        Err(_) => ColumnType::built_in(*oid, *modifier, ""),
    };
    let mut found: Vec<ColumnType> = types.iter().map(resolve).collect();
    write_names(client, found.iter_mut()).await?;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_renamed_in_an_order_that_the_server_takes() {
        let renamed = |from: &str, to: &str| RenamedLabel { type_oid: 1, from: from.into(), to: to.into() };
        let in_order = |labels: &str, wanted: &[RenamedLabel]| {
            let labels = labels.split(' ').map(str::to_owned).collect();
            let found = renames(labels, &wanted.iter().collect::<Vec<_>>());
            found.iter().map(|(from, to)| format!("{from}>{to}")).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(in_order("a b", &[renamed("a", "b"), renamed("b", "c")]), "b>c a>b");
        assert_eq!(in_order("b c", &[renamed("a", "b"), renamed("b", "c")]), "", "it is done");
        assert_eq!(in_order("a b", &[renamed("a", "b"), renamed("b", "a")]), "");
        assert_eq!(in_order("a z", &[renamed("a", "z")]), "", "somebody made the new one");
        assert_eq!(in_order("z", &[renamed("a", "z")]), "", "somebody renamed it");
    }
}
