//! By which entry a publication carries a table.

/// Another one after the table was taken out and put back, also where it is published with others: the OID of the entry
/// of the table, of its schema, or of the publication of all tables; and for a schema the transaction that last put
/// the table into it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublishedAs(u64);

impl PublishedAs {
    /// `since`: 0 where it does not matter in which schema the table is.
    pub fn new(entry: u32, since: u32) -> Self {
        Self(u64::from(since) << 32 | u64::from(entry))
    }

    /// As it was noted. An older worker noted 0 for a table without an entry of its own.
    pub fn noted(stored: i64) -> Self {
        Self(stored.cast_unsigned())
    }

    /// As it is noted.
    pub fn to_note(self) -> i64 {
        self.0.cast_signed()
    }

    /// Whether the table was out of the publication since that was noted.
    pub fn is_anew_since(self, noted: Self) -> bool {
        noted.0 != 0 && noted != self
    }
}

#[cfg(test)]
mod tests {
    use super::PublishedAs;

    #[test]
    fn a_table_that_was_taken_out_and_put_back_is_published_anew_and_an_old_note_says_nothing() {
        let noted = |published: PublishedAs| PublishedAs::noted(published.to_note());
        let first = PublishedAs::new(16_500, u32::MAX);
        assert!(!first.is_anew_since(noted(first)));
        assert!(PublishedAs::new(16_501, u32::MAX).is_anew_since(noted(first)), "another entry");
        assert!(PublishedAs::new(16_500, 7).is_anew_since(noted(first)), "it was in another schema");
        assert!(!first.is_anew_since(PublishedAs::noted(0)));
    }
}
