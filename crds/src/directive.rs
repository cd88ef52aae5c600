//! `PUT /v1/directive`: what the operator wants of a worker, besides running. Level-triggered: it is sent until the worker
//! reports that it is settled, and may be sent any number of times.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::table_pattern::TablePattern;

/// The longest token.
const TOKEN_BYTES_MAX: usize = 63;

/// Whether a text can be the token of an annotation.
pub fn is_token(text: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=TOKEN_BYTES_MAX).contains(&text.len()) && text.bytes().all(is_plain)
}

/// The body of `PUT /v1/directive`. Fields that a worker does not know are for later ones.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Directive {
    /// Tables to be copied again, as the annotation `penstock.dev/resnapshot` says it.
    pub resnapshot: Option<Resnapshot>,
}

/// Tables to be copied again, once per token: `2026-11-21:public.orders,sales.*`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Resnapshot {
    /// Another one asks again.
    pub token: String,
    /// Tables of the source.
    pub tables: Vec<TablePattern>,
}

/// Text that says nothing of what is to be copied again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{given}` does not say what is to be copied again ({problem}): write TOKEN:TABLE or TOKEN:TABLE,TABLE, such as \
     2026-11-21:public.orders,sales.*; another token asks again"
)]
pub struct InvalidResnapshot {
    given: String,
    problem: String,
}

impl FromStr for Resnapshot {
    type Err = InvalidResnapshot;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = |problem: String| {
            let given: String = text.chars().take(100).collect();
            InvalidResnapshot { given, problem }
        };
        let (token, tables) =
            text.split_once(':').ok_or_else(|| invalid("there is no colon in it".into()))?;
        let token = token.trim();
        if !is_token(token) {
            let problem =
                "the token before the colon has 1 to 63 letters, digits, dots, dashes and underscores";
            return Err(invalid(problem.into()));
        }
        let tables = tables
            .split(',')
            .map(|table| table.trim().parse::<TablePattern>().map_err(|error| invalid(error.to_string())))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Self { token: token.to_owned(), tables })
    }
}

impl TryFrom<String> for Resnapshot {
    type Error = InvalidResnapshot;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Resnapshot> for String {
    fn from(resnapshot: Resnapshot) -> Self {
        let tables: Vec<String> = resnapshot.tables.iter().map(ToString::to_string).collect();
        format!("{}:{}", resnapshot.token, tables.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_to_copy_again_are_read_and_written() {
        let directive: Directive =
            serde_json::from_str(r#"{"resnapshot": "t-1: public.orders, sales.*", "later": 1}"#).unwrap();
        let resnapshot = directive.resnapshot.clone().unwrap();
        assert_eq!((resnapshot.token.as_str(), resnapshot.tables.len()), ("t-1", 2));
        let written = serde_json::to_string(&directive).unwrap();
        assert_eq!(written, r#"{"resnapshot":"t-1:public.orders,sales.*"}"#);
        assert_eq!(serde_json::from_str::<Directive>(&written).unwrap(), directive);
        assert_eq!(serde_json::from_str::<Directive>("{}").unwrap(), Directive::default());
    }

    #[test]
    fn what_says_nothing_is_refused_with_what_to_write() {
        let long = format!("{}:public.t", "x".repeat(64));
        for text in [
            "",
            "public.orders",
            ":public.orders",
            "t:",
            "t:orders",
            "a b:public.orders",
            "t:public.a,,public.b",
            &long,
        ] {
            let error = text.parse::<Resnapshot>().unwrap_err().to_string();
            assert!(error.contains("write TOKEN:TABLE") && error.len() < 600, "{text}: {error}");
        }
    }
}
