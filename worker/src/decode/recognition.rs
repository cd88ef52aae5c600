//! Whether a stream is of the log that was read before. Pure.
//!
//! Why nothing but another history fails here: the stream begins at the COMMIT record of the mark's transaction, and the
//! slot has confirmed nothing behind it, so the server must send that transaction first. A message is in no table: no
//! publication leaves it out.

use uuid::Uuid;

use super::message::Message;
use crate::change::{HEARTBEAT_PREFIX, Heartbeat, Lsn};

/// What is known so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recognised {
    /// Nothing that counts has come.
    NotYet,
    /// It is the log that was read before, as far as anybody can tell.
    Same,
    /// The mark is not where it was.
    Other,
}

/// Looks for a mark in the first messages of a stream that begins at it.
#[derive(Clone, Debug)]
pub struct Recognition {
    wanted: Option<Heartbeat>,
    is_inside: bool,
}

impl Recognition {
    /// `None`: there is no mark that the source would send again.
    pub fn of(wanted: Option<Heartbeat>) -> Self {
        Self { wanted, is_inside: false }
    }

    /// Takes the next message.
    pub fn take(&mut self, message: &Message) -> Recognised {
        let Some(wanted) = &self.wanted else { return Recognised::Same };
        match message {
            Message::Begin { final_lsn, xid, .. } => {
                self.is_inside = (*final_lsn, *xid) == (wanted.commit_lsn, wanted.xid);
                if self.is_inside { Recognised::NotYet } else { Recognised::Other }
            }
            Message::Logical(message)
                if self.is_inside && message.transactional && message.prefix == HEARTBEAT_PREFIX =>
            {
                let token = message.content.split(|byte| *byte == b' ').next();
                let token = token.and_then(|token| Uuid::try_parse_ascii(token).ok());
                // Any role may write messages, and so add one to a transaction that holds none of ours.
                if token == Some(wanted.token) { Recognised::Same } else { Recognised::NotYet }
            }
            Message::Commit { .. } => Recognised::Other,
            // Messages that are not transactional come whatever was read before.
            Message::Logical(_)
            | Message::Origin { .. }
            | Message::Relation(_)
            | Message::Type { .. }
            | Message::Change(_) => Recognised::NotYet,
        }
    }

    /// The server has sent every transaction that committed before this address.
    pub fn nothing_until(&self, end: Lsn) -> Recognised {
        match &self.wanted {
            None => Recognised::Same,
            Some(wanted) if !self.is_inside && end > wanted.commit_lsn => Recognised::Other,
            Some(_) => Recognised::NotYet,
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::message::{LogicalMessage, PgTimestamp};
    use super::*;

    const TOKEN: Uuid = Uuid::from_u128(7);

    fn recognition() -> Recognition {
        Recognition::of(Some(Heartbeat { commit_lsn: Lsn(100), xid: 9, token: TOKEN }))
    }

    fn begin(lsn: u64, xid: u32) -> Message {
        Message::Begin { final_lsn: Lsn(lsn), commit_time: PgTimestamp(0), xid }
    }

    fn message(prefix: &str, token: Uuid, transactional: bool) -> Message {
        let content = Bytes::from(Heartbeat::content("uid", 0, token));
        Message::Logical(LogicalMessage { transactional, lsn: Lsn(90), prefix: prefix.into(), content })
    }

    #[test]
    fn the_log_that_was_read_is_recognised_by_its_mark() {
        let mut recognition = recognition();
        assert_eq!(recognition.nothing_until(Lsn(100)), Recognised::NotYet);
        assert_eq!(recognition.take(&message("other", TOKEN, false)), Recognised::NotYet);
        assert_eq!(recognition.take(&begin(100, 9)), Recognised::NotYet);
        assert_eq!(recognition.nothing_until(Lsn(500)), Recognised::NotYet);
        assert_eq!(recognition.take(&message(HEARTBEAT_PREFIX, TOKEN, true)), Recognised::Same);
    }

    #[test]
    fn another_history_is_told_by_whatever_stands_in_the_place_of_the_mark() {
        for other in [begin(104, 9), begin(100, 10)] {
            assert_eq!(recognition().take(&other), Recognised::Other);
        }
        assert_eq!(recognition().nothing_until(Lsn(101)), Recognised::Other);
        let mut same_place = recognition();
        assert_eq!(same_place.take(&begin(100, 9)), Recognised::NotYet);
        let another = message(HEARTBEAT_PREFIX, Uuid::from_u128(8), true);
        assert_eq!(same_place.take(&another), Recognised::NotYet);
        let end = Message::Commit { commit_lsn: Lsn(100), end_lsn: Lsn(110), commit_time: PgTimestamp(0) };
        assert_eq!(same_place.take(&end), Recognised::Other);
    }

    #[test]
    fn without_a_mark_nothing_is_asked_for() {
        assert_eq!(Recognition::of(None).take(&begin(1, 1)), Recognised::Same);
        assert_eq!(Recognition::of(None).nothing_until(Lsn(1)), Recognised::Same);
    }
}
