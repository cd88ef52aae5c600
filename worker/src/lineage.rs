//! A lineage: the state that revisions of a pipeline hand on to each other. It has one checkpoint per shard, one set of
//! slots, one set of sink tables, and nothing of it is shared with another lineage.
//!
//! The first one is called like the pipeline's UID. A canary begins one of its own, called `UID/REVISION`; whoever is promoted keeps
//! its lineage.

use std::fmt;

/// A lineage of a pipeline.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Lineage {
    key: String,
    uid_length: usize,
}

impl Lineage {
    /// The lineage that a pipeline begins with.
    pub fn first(uid: impl Into<String>) -> Self {
        let key = uid.into();
        Self { uid_length: key.len(), key }
    }

    /// The lineage that a canary of this revision begins.
    pub fn of_canary(uid: &str, revision: &str) -> Self {
        Self { key: format!("{uid}/{revision}"), uid_length: uid.len() }
    }

    /// What all its state is kept under. A `String`, as parameters of statements are taken.
    pub fn key(&self) -> &String {
        &self.key
    }

    /// UID of the pipeline.
    pub fn uid(&self) -> &str {
        self.key.get(..self.uid_length).unwrap_or(&self.key)
    }

    /// Revision of the canary that began it; `None`: the pipeline's first.
    pub fn begun_by(&self) -> Option<&str> {
        self.key.get(self.uid_length + 1..)
    }
}

impl fmt::Display for Lineage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_is_called_like_the_pipeline_and_a_canary_says_whose_it_is() {
        let first = Lineage::first("uid");
        assert_eq!((first.key().as_str(), first.uid(), first.begun_by()), ("uid", "uid", None));
        let canary = Lineage::of_canary("uid", "r1a2b3c4d");
        assert_eq!(
            (canary.key().as_str(), canary.uid(), canary.begun_by()),
            ("uid/r1a2b3c4d", "uid", Some("r1a2b3c4d"))
        );
    }
}
