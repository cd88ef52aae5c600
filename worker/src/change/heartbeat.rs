//! Marks of a shard in the source's log. A source that was restored as a disk image has the same system identifier and
//! timeline, and its log grows past what was read before; a mark that was read is not in it.

use uuid::Uuid;

use super::Lsn;

/// Prefix of the messages.
pub const HEARTBEAT_PREFIX: &str = "penstock-heartbeat";

/// A mark that was read, and where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heartbeat {
    /// Address of the COMMIT record of its transaction.
    pub commit_lsn: Lsn,
    /// Id of its transaction.
    pub xid: u32,
    /// Random, so that another history has none like it at the same place.
    pub token: Uuid,
}

impl Heartbeat {
    /// What the message of a shard says.
    pub fn content(uid: &str, shard: u16, token: Uuid) -> String {
        format!("{token} {shard} {uid}")
    }

    /// The token that a message carries, if it is one of that shard.
    pub fn token(content: &[u8], uid: &str, shard: u16) -> Option<Uuid> {
        let token = std::str::from_utf8(content).ok()?.split(' ').next()?.parse().ok()?;
        (content == Self::content(uid, shard, token).as_bytes()).then_some(token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_read_as_it_is_written_and_only_by_its_own_shard() {
        let token = Uuid::from_u128(7);
        let content = Heartbeat::content("a uid", 3, token);
        assert_eq!(Heartbeat::token(content.as_bytes(), "a uid", 3), Some(token));
        for (uid, shard) in [("a uid", 2), ("uid", 3), ("", 3)] {
            assert_eq!(Heartbeat::token(content.as_bytes(), uid, shard), None, "{uid} {shard}");
        }
        for bad in [&b""[..], b" ", b"\xff 3 a uid", b"token 3 a uid"] {
            assert_eq!(Heartbeat::token(bad, "a uid", 3), None);
        }
    }
}
