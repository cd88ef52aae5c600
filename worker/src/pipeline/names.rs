//! Tables that the stream calls by other names than the catalogue does. A table is its OID: what was written to it under another
//! name, before it got its own back, is of it, and what was written under its name to another one is not.

use std::sync::Arc;

use super::apply::Applier;
use super::followed::replaced;
use crate::change::table::TableName;
use crate::change::{Relation, RelationId};
use crate::failure::Failure;

impl Applier<'_> {
    /// A table that was made anew under a name of ours is not the one that was copied, and neither are its rows.
    pub(super) async fn refuse_namesake(&mut self, relation: &Relation) -> Result<(), Failure> {
        let Some(transaction) = &self.transaction else { return Ok(()) };
        let name = TableName::new(&relation.schema, &relation.name);
        let ours = self.tables.iter().find(|(_, table)| table.name == name);
        match ours {
            Some((id, table)) if table.progress.counts_from(transaction.commit_lsn) => {
                let id = *id;
                if self.has_its_name_again(id, &name).await? {
                    return Ok(());
                }
                Err(replaced(&name, "was dropped or renamed, and another one has its name"))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// The relation under the name of the table that it describes.
    pub(super) async fn under_its_name(&mut self, relation: Arc<Relation>) -> Result<Arc<Relation>, Failure> {
        let Some(table) = self.tables.get(&relation.id) else { return Ok(relation) };
        let (own, told) = (table.name.clone(), TableName::new(&relation.schema, &relation.name));
        if told == own {
            return Ok(relation);
        }
        if !self.has_its_name_again(relation.id, &own).await? {
            return Err(replaced(&own, &format!("was renamed to {told}")));
        }
        tracing::info!(table = %own, as = %told, "rows that were written while the table had another name");
        let TableName { schema, name } = own;
        Ok(Arc::new(Relation { schema, name, ..Relation::clone(&relation) }))
    }

    /// Looked at under a lock, for which whoever renames it is waited for: the catalogue is not behind the stream.
    async fn has_its_name_again(&mut self, id: RelationId, name: &TableName) -> Result<bool, Failure> {
        Ok(self.shapes.read(id).await?.table.name == *name)
    }
}
