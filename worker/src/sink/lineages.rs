//! The lineages of a pipeline, as the sink has them: which there are, and what each is to the pipeline.

use penstock_crds::report::Reason;
use tokio_postgres::{Error, GenericClient, Row, Transaction};

use super::error::failed;
use super::layout::Role;
use super::schema::has_table;
use super::session::{self, Purpose};
use crate::failure::Failure;
use crate::lineage::Lineage;
use crate::postgres::Endpoint;

/// A lineage, as the sink has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LineageFacts {
    /// What its state is kept under.
    pub key: String,
    /// What it is to its pipeline.
    pub role: Role,
    /// How many shards it has.
    pub shards: u16,
    /// What its slots and its publication are named after.
    pub names_uid: String,
    /// System identifier of its source.
    pub source_system_id: String,
    /// Which exchange of tables it knows of.
    pub layout: i64,
}

/// The role of the lineage that a run has taken the fence of; one that is new gets its role. Its checkpoint row is
/// locked, so the role stays until the transaction ends.
pub(super) async fn enter(transaction: &Transaction<'_>, lineage: &Lineage) -> Result<Role, Failure> {
    let error = |error: Error| failed(&error, "reading the lineages of the pipeline");
    let sql = "SELECT key, role FROM penstock.lineage WHERE uid = $1 ORDER BY key FOR UPDATE";
    let rows = transaction.query(sql, &[&lineage.uid()]).await.map_err(error)?;
    let mut others = Vec::new();
    for row in &rows {
        let (key, role) = key_and_role(row).map_err(error)?;
        if key == *lineage.key() {
            return if role == Role::Retired { Err(retired(&key)) } else { Ok(role) };
        }
        others.push((key, role));
    }
    let role = role_of_a_new_one(lineage, &others)?;
    // Another shard may be as far.
    let sql =
        "INSERT INTO penstock.lineage (key, uid, role) VALUES ($1, $2, $3) ON CONFLICT (key) DO NOTHING";
    transaction.execute(sql, &[lineage.key(), &lineage.uid(), &role.word()]).await.map_err(error)?;
    Ok(role)
}

fn retired(key: &str) -> Failure {
    let message = format!("{key} is being removed by penstock-worker clean-up; this run stops.");
    Failure::new(Reason::Superseded, message)
}

/// The previous lineage is the way back as long as it does what it did.
pub(super) fn kept_for_the_way_back(key: &str, was: &str, is: &str) -> Failure {
    let message = format!(
        "{key} was promoted over, and is the way back as revision {was}; revision {is} would change that. Run the manifest of {was} in \
         its place, and the promoted one with --canary; or roll back first."
    );
    Failure::new(Reason::ManifestInvalid, message)
}

/// A pipeline has one stable lineage, and at most one canary.
fn role_of_a_new_one(lineage: &Lineage, others: &[(String, Role)]) -> Result<Role, Failure> {
    let refuse = |message: String| Err(Failure::new(Reason::ManifestInvalid, message));
    let with_role = |role| others.iter().find(|(_, other)| *other == role).map(|(key, _)| key);
    match (lineage.begun_by(), with_role(Role::Stable), with_role(Role::Canary)) {
        (None, None, _) => Ok(Role::Stable),
        (None, Some(stable), _) => refuse(format!(
            "The sink tables of the pipeline are written by {stable}, which was promoted. Run its revision, with --canary."
        )),
        (Some(_), None, _) => refuse(
            "The sink has no tables of the pipeline that a canary could be compared with. Run the pipeline without --canary \
             first, under the same namespace and name."
                .to_owned(),
        ),
        (Some(_), Some(_), Some(canary)) => refuse(format!(
            "The pipeline has a canary already ({canary}). Stop it and remove it with penstock-worker clean-up --canary, or promote \
             it."
        )),
        (Some(_), Some(_), None) => Ok(Role::Canary),
    }
}

/// The first lineage of a deleted pipeline becomes that of this one. State that other lineages have a part in is not taken
/// over: nobody would know which of them to run.
pub(super) async fn adopt(transaction: &Transaction<'_>, uid: &str, old: &str) -> Result<(), Failure> {
    let error = |error: Error| failed(&error, "adopting the lineage of a deleted pipeline");
    let sql = "SELECT key FROM penstock.lineage WHERE uid = $1 AND (key <> uid OR role <> 'stable') ORDER BY key LIMIT 1";
    if let Some(row) = transaction.query_opt(sql, &[&old]).await.map_err(error)? {
        let key: String = row.try_get(0).map_err(error)?;
        let message = format!(
            "The pipeline with UID {old} has a canary, or had one that was promoted ({key}); such state cannot be adopted. Remove the \
             annotation penstock.dev/adopt, and have the tables copied anew into another schema (sink.postgres.schemaMap)."
        );
        return Err(Failure::new(Reason::ManifestInvalid, message));
    }
    let sql = "UPDATE penstock.lineage SET key = $1, uid = $1 WHERE key = $2";
    transaction.execute(sql, &[&uid, &old]).await.map_err(error).map(drop)
}

fn key_and_role(row: &Row) -> Result<(String, Role), Error> {
    let word: String = row.try_get(1)?;
    // The table has a constraint on it.
    Ok((row.try_get(0)?, Role::read(&word).unwrap_or(Role::Canary)))
}

/// The pipeline's lineages, the stable one first.
///
/// # Errors
/// The sink does not answer.
pub async fn of_pipeline(endpoint: &Endpoint, uid: &str) -> Result<Vec<LineageFacts>, Failure> {
    let session = session::open(endpoint, "penstock exchange", Purpose::Control).await?;
    let found = async {
        let is_there = has_table(&session.client, "lineage").await?;
        if is_there { read(&session.client, uid).await } else { Ok(Vec::new()) }
    };
    found.await.map_err(|error: Error| failed(&error, "reading the lineages of the pipeline"))
}

/// The keys of the pipeline's lineages, the stable one last.
///
/// # Errors
/// The sink does not answer.
pub async fn keys(endpoint: &Endpoint, uid: &str) -> Result<Vec<(String, Role)>, Failure> {
    let session = session::open(endpoint, "penstock clean-up", Purpose::Control).await?;
    let read = async {
        if !has_table(&session.client, "lineage").await? {
            return Ok(Vec::new());
        }
        let sql = "SELECT key, role FROM penstock.lineage WHERE uid = $1 ORDER BY role = 'stable', key";
        session.query(sql, &[&uid]).await?.iter().map(key_and_role).collect()
    };
    read.await.map_err(|error: Error| failed(&error, "reading the lineages of the pipeline"))
}

/// Ends a lineage that is not stable: its workers lose the fence, and no run of it begins any more. What its slots are named
/// after; `None`: there is none.
///
/// # Errors
/// `ManifestInvalid`: it is stable. The sink does not answer.
pub async fn retire(endpoint: &Endpoint, key: &str) -> Result<Option<String>, Failure> {
    let doing = "ending a lineage";
    let error = |error: Error| failed(&error, doing);
    let mut session = session::open(endpoint, "penstock clean-up", Purpose::Control).await?;
    if !has_table(&session.client, "lineage").await.map_err(error)? {
        return Ok(None);
    }
    let transaction = session.transaction().await.map_err(error)?;
    let fence = "UPDATE penstock.checkpoint SET layout = layout + 1 WHERE uid = $1 RETURNING names_uid";
    let rows = transaction.query(fence, &[&key]).await.map_err(error)?;
    let retire = "UPDATE penstock.lineage SET role = 'retired' WHERE key = $1 AND role <> 'stable'";
    if transaction.execute(retire, &[&key]).await.map_err(error)? == 0 {
        let look = "SELECT FROM penstock.lineage WHERE key = $1";
        if transaction.query_opt(look, &[&key]).await.map_err(error)?.is_none() {
            return Ok(None);
        }
        let message = format!(
            "{key} has the tables that readers know, so it cannot be removed by itself: penstock-worker clean-up without --canary \
             removes the state of the whole pipeline, and leaves those tables."
        );
        return Err(Failure::new(Reason::ManifestInvalid, message));
    }
    transaction.commit().await.map_err(error)?;
    rows.first().map_or_else(|| Ok(Some(key.to_owned())), |row| row.try_get(0).map(Some).map_err(error))
}

/// The lineages of which `of` is the key or the pipeline's UID, the stable one first.
pub(super) async fn read(client: &impl GenericClient, of: &str) -> Result<Vec<LineageFacts>, Error> {
    let sql = "SELECT lineage.key, role, shards, names_uid, source_system_id, layout \
               FROM penstock.lineage AS lineage JOIN LATERAL ( \
                   SELECT shards, names_uid, source_system_id, layout FROM penstock.checkpoint \
                   WHERE checkpoint.uid = lineage.key ORDER BY shard LIMIT 1) AS checkpoint ON true \
               WHERE $1 IN (lineage.key, lineage.uid) ORDER BY role <> 'stable', lineage.key";
    let rows = client.query(sql, &[&of]).await?;
    let facts = |row: &Row| {
        let (key, role) = key_and_role(row)?;
        let shards: i32 = row.try_get(2)?;
        Ok(LineageFacts {
            key,
            role,
            shards: u16::try_from(shards).unwrap_or_default(),
            names_uid: row.try_get(3)?,
            source_system_id: row.try_get(4)?,
            layout: row.try_get(5)?,
        })
    };
    rows.iter().map(facts).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipeline_has_one_stable_lineage_and_at_most_one_canary() {
        let (first, canary) = (Lineage::first("u"), Lineage::of_canary("u", "r2"));
        let of = |role| vec![(format!("u/{role:?}"), role)];
        assert_eq!(role_of_a_new_one(&first, &[]), Ok(Role::Stable));
        assert_eq!(role_of_a_new_one(&canary, &of(Role::Stable)), Ok(Role::Canary));
        for (lineage, others) in [
            (&first, of(Role::Stable)),
            (&canary, Vec::new()),
            (&canary, of(Role::Previous)),
            (&canary, [of(Role::Stable), of(Role::Canary)].concat()),
        ] {
            assert!(role_of_a_new_one(lineage, &others).is_err(), "{lineage} beside {others:?}");
        }
    }
}
