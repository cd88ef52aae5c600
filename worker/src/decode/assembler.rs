//! Messages as whole transactions: enforces the protocol's order, numbers the changes, and drops the transactions
//! that are settled already.

use std::collections::HashMap;
use std::sync::Arc;

use super::message::{LogicalMessage, Message, PgTimestamp};
use crate::change::{Change, Lsn, OldRow, Position, Relation, RelationId, ReplicaIdentity, Row};

/// What the stages after it get. Outside `Begin` … `Commit` only messages that are not transactional occur.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A transaction follows.
    Begin {
        /// Address of its COMMIT record.
        commit_lsn: Lsn,
        /// Its id.
        xid: u32,
        /// When it was committed.
        commit_time: PgTimestamp,
    },
    /// How a table is from here on: before the first change of it, and again when it has become another.
    Relation(Arc<Relation>),
    /// A change.
    Change {
        /// What.
        change: Change,
        /// Its number within the transaction, from 1.
        ordinal: u64,
    },
    /// The transaction is whole.
    Commit {
        /// After its last change.
        position: Position,
        /// What may be acknowledged when the transaction is durable.
        end_lsn: Lsn,
        /// When it was committed.
        commit_time: PgTimestamp,
    },
    /// What somebody wrote with `pg_logical_emit_message`. One that is not transactional comes whatever is
    /// settled: its address says where it stands.
    Message(LogicalMessage),
}

/// The server broke the protocol's order. Nothing that follows can be trusted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolViolation {
    /// `Begin` before the `Commit` of the last.
    #[error("transaction {next} begins before transaction {open} is committed")]
    BeginInTransaction {
        /// The one that is not committed.
        open: u32,
        /// The one that begins.
        next: u32,
    },
    /// Something that belongs into a transaction stands outside.
    #[error("{0} outside a transaction")]
    OutsideTransaction(&'static str),
    /// Commits do not follow each other as they do in the log.
    #[error("transaction {xid} is committed at {commit_lsn}, but a transaction at {last} came before it")]
    OutOfOrder {
        /// The late one.
        xid: u32,
        /// Address of its COMMIT record.
        commit_lsn: Lsn,
        /// Address of the COMMIT record that came before.
        last: Lsn,
    },
    /// `Commit` is not that of the `Begin`.
    #[error("transaction {xid} was to end at {announced}, but the commit is of {commit_lsn} up to {end_lsn}")]
    CommitOfAnother {
        /// The transaction.
        xid: u32,
        /// What `Begin` said.
        announced: Lsn,
        /// What `Commit` said.
        commit_lsn: Lsn,
        /// The end of the commit record by `Commit`.
        end_lsn: Lsn,
    },
    /// A change of a table that was not described before.
    #[error("change of the table with OID {} that the stream has not described", .0.0)]
    UnknownRelation(RelationId),
    /// A row with more or fewer values than its table has columns.
    #[error("row of {table} with {values} values; the stream described {columns} columns")]
    WrongWidth {
        /// The table.
        table: String,
        /// Values of the row.
        values: usize,
        /// Columns of the table.
        columns: usize,
    },
    /// An old row of another kind than the table's replica identity sends.
    #[error("old row of {table} does not fit its replica identity {identity:?}")]
    WrongOldRow {
        /// The table.
        table: String,
        /// What the stream described.
        identity: ReplicaIdentity,
    },
}

#[derive(Debug)]
struct Transaction {
    commit_lsn: Lsn,
    xid: u32,
    /// It is at or before the position to start after.
    is_settled: bool,
    changes: u64,
}

#[derive(Debug)]
struct KnownRelation {
    relation: Arc<Relation>,
    is_announced: bool,
}

/// Turns the messages of one connection into events.
#[derive(Debug)]
pub struct Assembler {
    after: Position,
    last_commit: Option<Lsn>,
    transaction: Option<Transaction>,
    /// What the stream described. The server describes a table once per connection, so those of dropped
    /// transactions count, too; they are announced when a change needs them.
    relations: HashMap<RelationId, KnownRelation>,
}

impl Assembler {
    /// For a new connection; transactions at or before `after` are dropped.
    pub fn new(after: Position) -> Self {
        Self { after, last_commit: None, transaction: None, relations: HashMap::new() }
    }

    /// Takes the next message and appends what it means to `events`. After an error the connection must be
    /// given up.
    pub fn accept(&mut self, message: Message, events: &mut Vec<Event>) -> Result<(), ProtocolViolation> {
        match message {
            Message::Begin { final_lsn, commit_time, xid } => self.begin(final_lsn, commit_time, xid, events),
            Message::Commit { commit_lsn, end_lsn, commit_time } => {
                self.commit(commit_lsn, end_lsn, commit_time, events)
            }
            Message::Origin { .. } => self.in_transaction("Origin").map(drop),
            Message::Type { .. } => self.in_transaction("Type").map(drop),
            Message::Relation(relation) => self.describe(relation),
            Message::Change(change) => self.change(change, events),
            Message::Logical(message) => self.logical(message, events),
        }
    }

    /// A transaction has begun and is not committed yet.
    pub fn is_in_transaction(&self) -> bool {
        self.transaction.is_some()
    }

    fn begin(
        &mut self,
        commit_lsn: Lsn,
        commit_time: PgTimestamp,
        xid: u32,
        events: &mut Vec<Event>,
    ) -> Result<(), ProtocolViolation> {
        if let Some(open) = &self.transaction {
            return Err(ProtocolViolation::BeginInTransaction { open: open.xid, next: xid });
        }
        if let Some(last) = self.last_commit.filter(|last| commit_lsn <= *last) {
            return Err(ProtocolViolation::OutOfOrder { xid, commit_lsn, last });
        }
        let is_settled = (commit_lsn, xid) <= (self.after.commit_lsn, self.after.xid);
        self.transaction = Some(Transaction { commit_lsn, xid, is_settled, changes: 0 });
        if !is_settled {
            events.push(Event::Begin { commit_lsn, xid, commit_time });
        }
        Ok(())
    }

    fn commit(
        &mut self,
        commit_lsn: Lsn,
        end_lsn: Lsn,
        commit_time: PgTimestamp,
        events: &mut Vec<Event>,
    ) -> Result<(), ProtocolViolation> {
        let Transaction { commit_lsn: announced, xid, is_settled, changes } =
            self.transaction.take().ok_or(ProtocolViolation::OutsideTransaction("Commit"))?;
        if commit_lsn != announced || end_lsn <= commit_lsn {
            return Err(ProtocolViolation::CommitOfAnother { xid, announced, commit_lsn, end_lsn });
        }
        self.last_commit = Some(commit_lsn);
        if !is_settled {
            let position = Position { commit_lsn, xid, ordinal: changes };
            events.push(Event::Commit { position, end_lsn, commit_time });
        }
        Ok(())
    }

    fn in_transaction(&mut self, what: &'static str) -> Result<&mut Transaction, ProtocolViolation> {
        self.transaction.as_mut().ok_or(ProtocolViolation::OutsideTransaction(what))
    }

    /// The server repeats descriptions after any change of its catalogue; one that says the same is no news.
    fn describe(&mut self, relation: Relation) -> Result<(), ProtocolViolation> {
        self.in_transaction("Relation")?;
        if self.relations.get(&relation.id).is_none_or(|known| *known.relation != relation) {
            let known = KnownRelation { relation: Arc::new(relation), is_announced: false };
            self.relations.insert(known.relation.id, known);
        }
        Ok(())
    }

    fn change(&mut self, change: Change, events: &mut Vec<Event>) -> Result<(), ProtocolViolation> {
        let transaction = self.in_transaction("change")?;
        transaction.changes += 1;
        let (ordinal, is_settled) = (transaction.changes, transaction.is_settled);
        match &change {
            Change::Insert { relation, new } => self.known(*relation)?.check_width(new)?,
            Change::Update { relation, old, new } => {
                let known = self.known(*relation)?;
                known.check_width(new)?;
                old.iter().try_for_each(|old| known.check_old(old))?;
            }
            Change::Delete { relation, old } => self.known(*relation)?.check_old(old)?,
            Change::Truncate { relations, .. } => {
                relations.iter().try_for_each(|relation| self.known(*relation).map(drop))?;
            }
        }
        if is_settled {
            return Ok(());
        }
        match &change {
            Change::Insert { relation, .. }
            | Change::Update { relation, .. }
            | Change::Delete { relation, .. } => {
                self.announce(*relation, events);
            }
            Change::Truncate { relations, .. } => {
                for relation in relations {
                    self.announce(*relation, events);
                }
            }
        }
        events.push(Event::Change { change, ordinal });
        Ok(())
    }

    fn known(&self, id: RelationId) -> Result<&KnownRelation, ProtocolViolation> {
        self.relations.get(&id).ok_or(ProtocolViolation::UnknownRelation(id))
    }

    fn announce(&mut self, id: RelationId, events: &mut Vec<Event>) {
        if let Some(known) = self.relations.get_mut(&id).filter(|known| !known.is_announced) {
            known.is_announced = true;
            events.push(Event::Relation(Arc::clone(&known.relation)));
        }
    }

    fn logical(&mut self, message: LogicalMessage, events: &mut Vec<Event>) -> Result<(), ProtocolViolation> {
        if !message.transactional || !self.in_transaction("transactional message")?.is_settled {
            events.push(Event::Message(message));
        }
        Ok(())
    }
}

impl KnownRelation {
    fn table(&self) -> String {
        format!("{}.{}", self.relation.schema, self.relation.name)
    }

    fn check_width(&self, row: &Row) -> Result<(), ProtocolViolation> {
        let (values, columns) = (row.0.len(), self.relation.columns.len());
        if values == columns {
            return Ok(());
        }
        Err(ProtocolViolation::WrongWidth { table: self.table(), values, columns })
    }

    fn check_old(&self, old: &OldRow) -> Result<(), ProtocolViolation> {
        let identity = self.relation.replica_identity;
        match (old, identity) {
            (OldRow::Full(row), ReplicaIdentity::Full)
            | (OldRow::Key(row), ReplicaIdentity::Default | ReplicaIdentity::Index) => self.check_width(row),
            (
                OldRow::Full(_),
                ReplicaIdentity::Default | ReplicaIdentity::Nothing | ReplicaIdentity::Index,
            )
            | (OldRow::Key(_), ReplicaIdentity::Full | ReplicaIdentity::Nothing) => {
                Err(ProtocolViolation::WrongOldRow { table: self.table(), identity })
            }
        }
    }
}
