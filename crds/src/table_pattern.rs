//! `schema.table`, `schema.*` and `schema.prefix*`: which tables a pipeline means.

use std::fmt;
use std::str::FromStr;

/// One entry of `source.postgres.tables`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TablePattern {
    schema: String,
    name: NamePattern,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum NamePattern {
    Exact(String),
    Prefix(String),
}

/// An entry that is neither a table nor a pattern.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a table: write schema.table, schema.* or schema.prefix*, for example public.orders or sales.*"
)]
pub struct InvalidTablePattern(String);

impl TablePattern {
    /// Whether the table `schema.name` is meant. Names are compared as PostgreSQL stores them.
    pub fn matches(&self, schema: &str, name: &str) -> bool {
        self.schema == schema
            && match &self.name {
                NamePattern::Exact(exact) => exact == name,
                NamePattern::Prefix(prefix) => name.starts_with(prefix.as_str()),
            }
    }
}

impl FromStr for TablePattern {
    type Err = InvalidTablePattern;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidTablePattern(text.to_owned());
        let (schema, name) = text.split_once('.').ok_or_else(invalid)?;
        let (stem, is_prefix) = name.strip_suffix('*').map_or((name, false), |stem| (stem, true));
        let is_plain = |part: &str| !part.contains(['.', '*']) && !part.contains(char::is_whitespace);
        if schema.is_empty() || !is_plain(schema) || !is_plain(stem) || (stem.is_empty() && !is_prefix) {
            return Err(invalid());
        }
        let name = if is_prefix { NamePattern::Prefix(stem.into()) } else { NamePattern::Exact(stem.into()) };
        Ok(Self { schema: schema.into(), name })
    }
}

impl fmt::Display for TablePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            NamePattern::Exact(name) => write!(f, "{}.{name}", self.schema),
            NamePattern::Prefix(prefix) => write!(f, "{}.{prefix}*", self.schema),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_exactly_by_prefix_and_by_schema() {
        let matches =
            |pattern: &str, schema, name| pattern.parse::<TablePattern>().unwrap().matches(schema, name);
        assert!(matches("public.orders", "public", "orders"));
        assert!(!matches("public.orders", "public", "orders2"));
        assert!(matches("public.order*", "public", "orders2"));
        assert!(matches("sales.*", "sales", "anything"));
        assert!(!matches("sales.*", "sales2", "anything"));
    }

    #[test]
    fn what_is_not_a_pattern_is_refused_with_a_sentence() {
        for bad in ["", "orders", "a.b.c", ".t", "s.", "s.t*x", "s.**", "*.t", "s .t"] {
            let error = bad.parse::<TablePattern>().unwrap_err().to_string();
            assert!(error.contains("schema.table"), "{bad}: {error}");
        }
    }
}
