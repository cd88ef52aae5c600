//! Prepared statements, kept as long as they are used.

use std::collections::HashMap;

use tokio_postgres::{Client, Error, Statement};

use super::plan::Plan;
use super::statements::{Shape, sql};
use crate::change::RelationId;

/// A table with many large columns has many shapes of UPDATE (each leaves out others); the least used are forgotten.
const STATEMENTS_MAX: usize = 512;

/// Prepared statements of one session.
#[derive(Default)]
pub(super) struct Prepared {
    known: HashMap<(RelationId, Shape), Known>,
    clock: u64,
}

struct Known {
    statement: Statement,
    used: u64,
}

impl Prepared {
    /// The statement, if it is prepared.
    pub(super) fn find(&mut self, relation: RelationId, shape: &Shape) -> Option<Statement> {
        self.clock += 1;
        let known = self.known.get_mut(&(relation, shape.clone()))?;
        known.used = self.clock;
        Some(known.statement.clone())
    }

    /// Prepares the statement.
    pub(super) async fn prepare(
        &mut self,
        client: &Client,
        relation: RelationId,
        plan: &Plan,
        shape: Shape,
    ) -> Result<Statement, Error> {
        let statement = client.prepare(&sql(plan, &shape)).await?;
        if self.known.len() >= STATEMENTS_MAX {
            self.forget_least_used();
        }
        let known = Known { statement: statement.clone(), used: self.clock };
        self.known.insert((relation, shape), known);
        Ok(statement)
    }

    /// The relation has another shape now.
    pub(super) fn forget(&mut self, relation: RelationId) {
        self.known.retain(|(of, _), _| *of != relation);
    }

    fn forget_least_used(&mut self) {
        let least = self.known.iter().min_by_key(|(_, known)| known.used).map(|(key, _)| key.clone());
        if let Some(key) = least {
            self.known.remove(&key);
        }
    }
}
