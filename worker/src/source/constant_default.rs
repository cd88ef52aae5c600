//! Which column defaults are constants. Pure.
//!
//! Only what is certainly the same on every server is carried: one literal, with at most one cast to a built-in
//! type. Everything else is left out, which is harmless: the rows that arrive carry their values.

/// Reads a default as `pg_get_expr` writes it (with an empty `search_path`, so that names of user types are
/// qualified). The literal of a type that somebody made is returned without its cast, because the sink may keep the
/// type elsewhere.
pub(super) fn constant_default(expression: &str, is_made: bool) -> Option<String> {
    let (literal, cast) = split_literal(expression)?;
    match literal {
        Literal::Text(text) if is_made => cast.is_some().then(|| text.to_owned()),
        Literal::Text(_) => cast.is_none_or(is_built_in_type).then(|| expression.to_owned()),
        Literal::Number => cast.is_none_or(is_number_type).then(|| expression.to_owned()),
        Literal::Boolean => cast.is_none().then(|| expression.to_owned()),
    }
}

enum Literal<'a> {
    /// A string or bit string, with its quotes.
    Text(&'a str),
    Number,
    Boolean,
}

/// The literal at the beginning and the type it is cast to.
fn split_literal(expression: &str) -> Option<(Literal<'_>, Option<&str>)> {
    if let Some(length) = quoted_length(expression) {
        let (text, rest) = expression.split_at(length);
        return match rest {
            "" => Some((Literal::Text(text), None)),
            _ => Some((Literal::Text(text), Some(single_cast(rest)?))),
        };
    }
    let (literal, cast) = match expression.find("::") {
        Some(at) => (&expression[..at], Some(single_cast(&expression[at..])?)),
        None => (expression, None),
    };
    if matches!(literal, "true" | "false") {
        return Some((Literal::Boolean, cast));
    }
    let number = literal.strip_prefix('(').and_then(|inner| inner.strip_suffix(')')).unwrap_or(literal);
    is_number(number).then_some((Literal::Number, cast))
}

/// Length of a quoted literal at the beginning: `'a''b'`, `B'101'`, `X'1F'`.
fn quoted_length(text: &str) -> Option<usize> {
    let body = text.strip_prefix(['B', 'X']).unwrap_or(text).strip_prefix('\'')?;
    let start = text.len() - body.len();
    let mut quotes = body.char_indices().filter(|(_, character)| *character == '\'').map(|(at, _)| at);
    while let Some(quote) = quotes.next() {
        if body[quote + 1..].starts_with('\'') {
            quotes.next();
        } else {
            return Some(start + quote + 1);
        }
    }
    None
}

fn single_cast(rest: &str) -> Option<&str> {
    rest.strip_prefix("::").filter(|name| !name.is_empty() && !name.contains("::"))
}

/// Names of user types are qualified, so they hold a dot; names of catalogue objects (`reg…`) mean something on
/// one server only.
fn is_built_in_type(name: &str) -> bool {
    let is_plain = |character: char| {
        character.is_ascii_lowercase() || character.is_ascii_digit() || " _\"(),[]".contains(character)
    };
    name.chars().all(is_plain) && !name.starts_with("reg")
}

fn is_number_type(name: &str) -> bool {
    matches!(name, "smallint" | "integer" | "bigint" | "real" | "double precision" | "numeric")
        || (name.starts_with("numeric(") && is_built_in_type(name))
}

fn is_number(text: &str) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let is_plain = |byte: u8| byte.is_ascii_digit() || matches!(byte, b'.' | b'e' | b'+' | b'-');
    digits.starts_with(|first: char| first.is_ascii_digit())
        && digits.bytes().all(is_plain)
        && digits.parse::<f64>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_are_kept_as_they_are_written() {
        for literal in [
            "0",
            "1.5",
            "(-1)",
            "true",
            "false",
            "1e10",
            "'-1'::integer",
            "(0)::bigint",
            "(1.5)::numeric(10,2)",
            "'it''s'::text",
            "''::text",
            "'a::b'::text",
            "'{}'::jsonb",
            "'{1,2}'::integer[]",
            "'2020-01-01 00:00:00'::timestamp(3) without time zone",
            "'x'::character varying(10)",
            "'c'::\"char\"",
            "B'101'::\"bit\"",
            "'NaN'::double precision",
        ] {
            assert_eq!(constant_default(literal, false).as_deref(), Some(literal), "{literal}");
        }
    }

    #[test]
    fn calls_and_everything_that_may_differ_between_servers_are_left_out() {
        for other in [
            "",
            "now()",
            "CURRENT_TIMESTAMP",
            "nextval('public.t_id_seq'::regclass)",
            "('now'::text)::date",
            "'x'::text || 'y'::text",
            "'x'::public.mood",
            "'t'::regclass",
            "'x'::text COLLATE \"C\"",
            "'x'::text::public.d",
            "(1 + 1)",
            "- 1",
            "NULL::text",
            "NULL",
            "ARRAY[]::text[]",
            "(1)::public.dom",
            "'unclosed",
            "-",
            "1 2",
            "'x' 'y'",
            "true::text",
        ] {
            assert_eq!(constant_default(other, false), None, "{other}");
        }
    }

    #[test]
    fn the_literal_of_a_made_type_loses_its_cast() {
        assert_eq!(constant_default("'it''s'::public.mood", true).as_deref(), Some("'it''s'"));
        assert_eq!(constant_default("'a'::\"S p\".\"Mood\"", true).as_deref(), Some("'a'"));
        assert_eq!(constant_default("'a'::text::public.mood", true), None);
        assert_eq!(constant_default("public.f('a')", true), None);
    }
}
