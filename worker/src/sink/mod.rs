//! The PostgreSQL sink: the fence, the tables, the first load, the changes.
//!
//! Everything that is written in the sink is written in a transaction that first locks the shard's row of
//! `penstock.checkpoint` under this run's epoch, so a run that another one replaced can write nothing.

mod apply;
mod assignment;
mod at_barrier;
mod barrier;
mod barrier_registry;
mod catalogue;
mod clean_up;
mod compare;
mod copy;
mod ddl;
mod dead_end;
mod dependents;
mod error;
mod evolve;
mod exchange;
mod fit;
#[cfg(test)]
mod fixtures;
mod heartbeat;
mod hold;
mod in_flight;
mod layout;
mod lineages;
mod load;
mod made_types;
mod outcome;
mod owner;
mod ownership;
mod plan;
mod prepared;
mod range;
mod reshape;
mod resnapshot;
mod run;
mod schema;
mod session;
mod shapes;
mod start;
mod state;
mod statements;
mod tables;
mod value;
mod writer;

pub use at_barrier::{
    KeyAtBarrier, TableAtBarrier, is_at_barrier, key_at_barrier, open_at_barrier, open_now, tables_at_barrier,
};
pub use barrier::Barriers;
pub use barrier_registry::{Arrival, BARRIER_PREFIX, BarrierId, BarrierKind, LEASE, Registration, register};
pub use clean_up::{clean_up, names_uid};
pub use dead_end::{DeadEnd, Decision, decide};
pub use evolve::{Rules, copy_needed};
pub use exchange::{Exchange, Prepared, outcome_of};
pub use layout::Role;
pub use lineages::{LineageFacts, keys as lineage_keys, of_pipeline as lineages_of, retire};
pub use load::{ChunkEnd, Loader};
pub use outcome::HoldEnd;
pub use owner::{Owner, TableMap};
pub use range::CopiedRange;
pub use reshape::{Foreseen, Reshaped};
pub use resnapshot::{Resnapshotted, resnapshot};
pub use shapes::Recorded;
pub use start::{Started, start};
pub use state::{Progress, TableState};
pub use tables::FirstCopy;
pub use writer::Writer;

use penstock_crds::spec::SessionReplicationRole;

use crate::failure::Failure;
use crate::postgres::{Endpoint, Session};
use run::Run;
use session::Purpose;
use shapes::Allowed;

/// A sink whose fence this run holds. Made by [`start`].
#[derive(Debug)]
pub struct Sink {
    endpoint: Endpoint,
    owner: Owner,
    tables: TableMap,
    /// As `ensure_tables` was told.
    first_copy: FirstCopy,
    /// What may be done to tables that do not fit.
    changes: Allowed,
    run: Run,
    session: Session,
    /// As [`Sink::act_as`] was told.
    session_role: SessionReplicationRole,
    /// Of the server, as `server_version_num` has it: 150004.
    pub server_version: u32,
}

impl Sink {
    /// A session that copies chunks of the first load; several may run at once.
    pub async fn loader(&self) -> Result<Loader, Failure> {
        Ok(Loader::new(self.open(Purpose::Load).await?, self.run.clone(), self.tables.clone()))
    }

    /// The session that applies changes, from the sequence of the checkpoint on; only one at a time.
    pub async fn writer(&self, sequence: i64) -> Result<Writer, Failure> {
        let session = self.open(Purpose::Write).await?;
        Writer::new(session, self.run.clone(), self.tables.clone(), self.first_copy, sequence).await
    }

    /// What meets barriers for this run.
    pub fn barriers(&self) -> Barriers {
        Barriers::new(self.endpoint.clone(), self.owner.application_name(self.run.epoch), self.run.clone())
    }

    /// Decides whether foreign keys are checked and triggers fire when this run writes rows.
    ///
    /// # Errors
    /// `SinkPrivilegeMissing`: the role may not decide it.
    pub async fn act_as(&mut self, role: SessionReplicationRole) -> Result<(), Failure> {
        session::act_as(&self.session, role).await?;
        self.session_role = role;
        Ok(())
    }

    async fn open(&self, purpose: Purpose) -> Result<Session, Failure> {
        let name = self.owner.application_name(self.run.epoch);
        let session = session::open(&self.endpoint, &name, purpose).await?;
        session::act_as(&session, self.session_role).await?;
        Ok(session)
    }
}
