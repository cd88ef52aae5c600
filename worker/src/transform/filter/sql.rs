//! A filter as SQL: NULL where CEL has an error. Both logics then agree: an error, like NULL, is overruled by `false &&` and
//! `true ||` alone.

use super::Filter;
use super::reading::Kind;
use super::term::{Term, TextTest};
use crate::change::table::{quote_identifier, quote_literal};

impl Filter {
    /// True of the rows, of which there is one with this alias, that the filter is true of.
    pub(in crate::transform) fn sql(&self, alias: &str) -> String {
        self.term_sql(&self.term, alias)
    }

    fn term_sql(&self, term: &Term, alias: &str) -> String {
        let sql = |term: &Term| self.term_sql(term, alias);
        match term {
            Term::Column(name, _) => self.column_sql(name, alias),
            Term::Bool(value) => value.to_string(),
            Term::Int(value) => format!("({value})::pg_catalog.int8"),
            Term::Text(value) => {
                format!("{}::pg_catalog.text COLLATE pg_catalog.\"C\"", quote_literal(value))
            }
            Term::Null => "NULL".into(),
            Term::Not(inner) => format!("(NOT {})", sql(inner)),
            Term::And(both) => format!("({} AND {})", sql(&both[0]), sql(&both[1])),
            Term::Or(both) => format!("({} OR {})", sql(&both[0]), sql(&both[1])),
            Term::Equal(both) => self.equal_sql("IS NOT DISTINCT FROM", both, alias),
            Term::NotEqual(both) => self.equal_sql("IS DISTINCT FROM", both, alias),
            Term::Order(operator, both) => {
                // The order of code points, which is that of UTF-8 and not of every encoding.
                let [a, b] = both.as_ref();
                let is_text =
                    matches!(a, Term::Text(_)) || matches!(a, Term::Column(name, _) if self.is_text(name));
                let part = |term: &Term| {
                    if is_text { format!("pg_catalog.convert_to({}, 'UTF8')", sql(term)) } else { sql(term) }
                };
                format!("({} {operator} {})", part(a), part(b))
            }
            Term::In(one, list) => {
                let one = sql(one);
                let each = list.iter().map(|other| format!("{one} IS NOT DISTINCT FROM {}", sql(other)));
                let each: Vec<String> = std::iter::once("false".to_owned()).chain(each).collect();
                format!("({})", each.join(" OR "))
            }
            Term::Test(test, both) => {
                let (a, b) = (sql(&both[0]), sql(&both[1]));
                match test {
                    TextTest::StartsWith => format!("(pg_catalog.left({a}, pg_catalog.length({b})) = {b})"),
                    TextTest::EndsWith => format!("(pg_catalog.right({a}, pg_catalog.length({b})) = {b})"),
                    TextTest::Contains => format!("(pg_catalog.strpos({a}, {b}) > 0)"),
                }
            }
            Term::Size(inner) => format!("pg_catalog.length({})::pg_catalog.int8", sql(inner)),
        }
    }

    /// A column's NULL is a value, and that of anything else an error.
    fn equal_sql(&self, operator: &str, both: &[Term; 2], alias: &str) -> String {
        let compared =
            format!("({} {operator} {})", self.term_sql(&both[0], alias), self.term_sql(&both[1], alias));
        let computed = both.iter().filter(|term| !term.is_value());
        let errors: Vec<String> =
            computed.map(|term| format!("{} IS NULL", self.term_sql(term, alias))).collect();
        if errors.is_empty() {
            return compared;
        }
        format!("(CASE WHEN {} THEN NULL ELSE {compared} END)", errors.join(" OR "))
    }

    fn column_sql(&self, name: &str, alias: &str) -> String {
        let column = format!("{alias}.{}", quote_identifier(name));
        match self.columns.get(name).map(|column| column.kind) {
            Some(Kind::Int) => format!("{column}::pg_catalog.int8"),
            Some(Kind::Text | Kind::Padded | Kind::Uuid) => {
                format!("{column}::pg_catalog.text COLLATE pg_catalog.\"C\"")
            }
            Some(Kind::Bool) | None => column,
        }
    }

    fn is_text(&self, name: &str) -> bool {
        let kind = self.columns.get(name).map(|column| column.kind);
        matches!(kind, Some(Kind::Text | Kind::Padded | Kind::Uuid))
    }
}
