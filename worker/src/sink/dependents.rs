//! What hangs on the tables that readers know. What can follow a table that takes their place is written as statements; what
//! cannot is named, before anything is begun.
//!
//! PostgreSQL itself is asked: whatever depends on a table is in `pg_depend`. What is no part of the table and is not known to
//! follow is an obstacle, so nothing is forgotten that somebody invents later.

use tokio_postgres::{Error, GenericClient};

use crate::change::table::{TableName, quote_literal};

/// What hangs on tables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Dependents {
    /// What cannot follow, in words.
    pub(super) obstacles: Vec<String>,
    /// Statements for the transaction that exchanges the tables, once others have their names: views, owners, grants,
    /// comments.
    pub(super) to_follow: Vec<String>,
    /// Statements that lock what is replaced, before the tables are locked.
    pub(super) to_lock: Vec<String>,
    /// Of everything that was looked at: another one, when anything of it has changed.
    pub(super) fingerprint: String,
}

/// A table that readers know, and the schema of the one that takes its place.
pub(super) type Replaced<'a> = (&'a TableName, Option<&'a str>);

/// What hangs on these tables.
pub(super) async fn read(client: &impl GenericClient, tables: &[Replaced<'_>]) -> Result<Dependents, Error> {
    let sql = format!(
        "SELECT is_obstacle, text, place = 0 FROM ({}) AS found ORDER BY place, text",
        inventory(tables)
    );
    let mut dependents = Dependents::default();
    for row in client.query(&sql, &[]).await? {
        let (is_obstacle, text, is_lock): (bool, String, bool) =
            (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
        match (is_obstacle, is_lock) {
            (true, _) => dependents.obstacles.push(text),
            (false, true) => dependents.to_lock.push(text),
            (false, false) => dependents.to_follow.push(text),
        }
    }
    dependents.fingerprint = client.query_one(&fingerprint(tables), &[]).await?.try_get(0)?;
    Ok(dependents)
}

/// A query for the fingerprint of what hangs on these tables.
pub(super) fn fingerprint(tables: &[Replaced<'_>]) -> String {
    format!(
        "SELECT pg_catalog.md5(coalesce(pg_catalog.string_agg(text, E'\\n' ORDER BY text), '')) FROM ({}) AS found",
        inventory(tables)
    )
}

/// Rows: the place among the statements, whether it is an obstacle, and the words or the statement.
fn inventory(tables: &[Replaced<'_>]) -> String {
    let list = |part: &dyn Fn(&Replaced<'_>) -> Option<String>| {
        let parts: Vec<String> = tables
            .iter()
            .map(|table| part(table).map_or("NULL".to_owned(), |text| quote_literal(&text)))
            .collect();
        parts.join(", ")
    };
    INVENTORY
        .replace("{schemas}", &list(&|(live, _)| Some(live.schema.clone())))
        .replace("{names}", &list(&|(live, _)| Some(live.name.clone())))
        .replace("{rising}", &list(&|(_, rising)| rising.map(str::to_owned)))
}

/// A view is replaced under its name, so what hangs on it stays; that the table's own parts go with it is the rule, not the
/// exception: its indexes, constraints, defaults, row type and TOAST table.
const INVENTORY: &str = include_str!("dependents.sql");
