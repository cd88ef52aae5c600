//! What may stand in a filter: the part of CEL whose types can be checked before any row comes, and that SQL can say too.

use cel::common::ast::{CallExpr, Expr, LiteralValue, operators};
use cel::parser::Expression;

/// What a term gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Type {
    Bool,
    Int,
    Text,
    Null,
}

/// A part of a filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Term {
    Column(String, Type),
    Bool(bool),
    Int(i64),
    Text(String),
    Null,
    Not(Box<Term>),
    And(Box<[Term; 2]>),
    Or(Box<[Term; 2]>),
    /// Of one type, or with NULL, which equals itself alone.
    Equal(Box<[Term; 2]>),
    NotEqual(Box<[Term; 2]>),
    /// By this operator, which SQL writes alike.
    Order(&'static str, Box<[Term; 2]>),
    In(Box<Term>, Vec<Term>),
    Test(TextTest, Box<[Term; 2]>),
    /// Characters of a text.
    Size(Box<Term>),
}

/// What is asked of two texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TextTest {
    StartsWith,
    EndsWith,
    Contains,
}

/// The type of a column, or why there is none, as a clause.
type Columns<'a> = &'a dyn Fn(&str) -> Result<Type, String>;

const TAKEN: &str = "a filter takes columns, whole numbers, strings, true, false, null, ==, !=, <, <=, >, >=, in [...], &&, ||, !, \
                     startsWith, endsWith, contains and size";

impl Type {
    fn name(self) -> &'static str {
        match self {
            Self::Bool => "bool",
            Self::Int => "int",
            Self::Text => "string",
            Self::Null => "null",
        }
    }
}

impl Term {
    /// A whole filter.
    ///
    /// # Errors
    /// What does not fit, as a clause.
    pub(super) fn filter(expression: &Expression, columns: Columns<'_>) -> Result<Self, String> {
        Self::of(&expression.expr, columns)?.giving(Type::Bool, "a filter")
    }

    fn of(expression: &Expr, columns: Columns<'_>) -> Result<Self, String> {
        let refused = |what: &str| Err(format!("{what}: {TAKEN}"));
        match expression {
            Expr::Ident(name) => Ok(Self::Column(name.clone(), columns(name)?)),
            Expr::Literal(value) => Self::literal(value),
            Expr::Call(call) => Self::call(call, columns),
            Expr::List(_) => refused("a list stands after in alone"),
            Expr::Select(select) => refused(&format!(".{} is a field, and columns have none", select.field)),
            Expr::Comprehension(_) => refused("it has a macro"),
            Expr::Map(_) | Expr::Struct(_) => refused("it has a map or a message"),
            Expr::Unspecified => refused("it is empty"),
        }
    }

    fn literal(value: &LiteralValue) -> Result<Self, String> {
        match value {
            LiteralValue::Boolean(value) => Ok(Self::Bool(*value.inner())),
            LiteralValue::Int(value) => Ok(Self::Int(*value.inner())),
            LiteralValue::String(value) => Ok(Self::Text(value.inner().to_owned())),
            LiteralValue::Null => Ok(Self::Null),
            LiteralValue::Bytes(_) | LiteralValue::Double(_) | LiteralValue::UInt(_) => {
                Err(format!("it has a number that is not whole, an unsigned one, or bytes: {TAKEN}"))
            }
        }
    }

    fn call(call: &CallExpr, columns: Columns<'_>) -> Result<Self, String> {
        let operands: Vec<&Expr> = call
            .target
            .iter()
            .map(|target| &target.expr)
            .chain(call.args.iter().map(|arg| &arg.expr))
            .collect();
        let of = |expression: &Expr| Self::of(expression, columns);
        let both = |a: &Expr, b: &Expr, given: Type, to: &str| {
            Ok::<_, String>(Box::new([of(a)?.giving(given, to)?, of(b)?.giving(given, to)?]))
        };
        let test = match call.func_name.as_str() {
            "startsWith" => Some(TextTest::StartsWith),
            "endsWith" => Some(TextTest::EndsWith),
            "contains" => Some(TextTest::Contains),
            _ => None,
        };
        let name = call.func_name.as_str();
        match (name, &operands[..]) {
            (operators::LOGICAL_NOT, [a]) => Ok(Self::Not(Box::new(of(a)?.giving(Type::Bool, "!")?))),
            (operators::LOGICAL_AND, [a, b]) => Ok(Self::And(both(a, b, Type::Bool, "&&")?)),
            (operators::LOGICAL_OR, [a, b]) => Ok(Self::Or(both(a, b, Type::Bool, "||")?)),
            (operators::EQUALS, [a, b]) => Ok(Self::Equal(alike(of(a)?, of(b)?)?)),
            (operators::NOT_EQUALS, [a, b]) => Ok(Self::NotEqual(alike(of(a)?, of(b)?)?)),
            (operators::LESS, [a, b]) => Ok(Self::Order("<", ordered(of(a)?, of(b)?)?)),
            (operators::LESS_EQUALS, [a, b]) => Ok(Self::Order("<=", ordered(of(a)?, of(b)?)?)),
            (operators::GREATER, [a, b]) => Ok(Self::Order(">", ordered(of(a)?, of(b)?)?)),
            (operators::GREATER_EQUALS, [a, b]) => Ok(Self::Order(">=", ordered(of(a)?, of(b)?)?)),
            (operators::IN, [a, Expr::List(list)]) => {
                Self::within(of(a)?, list.elements.iter().map(|one| of(&one.expr)).collect::<Result<_, _>>()?)
            }
            ("size", [a]) => Ok(Self::Size(Box::new(of(a)?.giving(Type::Text, "size")?))),
            // A number below zero.
            (operators::NEGATE, [Expr::Literal(LiteralValue::Int(number))]) => number
                .inner()
                .checked_neg()
                .map(Self::Int)
                .ok_or_else(|| format!("-{} is no 64-bit number", number.inner())),
            (_, [a, b]) if let (Some(test), true) = (test, call.target.is_some()) => {
                Ok(Self::Test(test, both(a, b, Type::Text, name)?))
            }
            _ => Err(format!("{} is not taken: {TAKEN}", name.trim_matches(['_', '@']))),
        }
    }

    fn within(one: Self, list: Vec<Self>) -> Result<Self, String> {
        if !one.is_value() || !list.iter().all(Self::is_value) {
            return Err("in takes columns, numbers and strings".into());
        }
        let mut others =
            list.iter().map(Self::gives).filter(|given| *given != Type::Null && *given != one.gives());
        match others.next() {
            Some(other) if one.gives() != Type::Null => {
                Err(format!("in compares {} with {}", one.gives().name(), other.name()))
            }
            Some(_) | None => Ok(Self::In(Box::new(one), list)),
        }
    }

    /// It gives that, to what wants it.
    fn giving(self, wanted: Type, to: &str) -> Result<Self, String> {
        let given = self.gives();
        if given == wanted {
            return Ok(self);
        }
        let of = if let Self::Column(name, _) = &self {
            format!("column {name} is")
        } else {
            "what is given is".to_owned()
        };
        Err(format!("{to} wants {}, and {of} {}", wanted.name(), given.name()))
    }

    fn gives(&self) -> Type {
        match self {
            Self::Column(_, given) => *given,
            Self::Int(_) | Self::Size(_) => Type::Int,
            Self::Text(_) => Type::Text,
            Self::Null => Type::Null,
            Self::Bool(_)
            | Self::Not(_)
            | Self::And(_)
            | Self::Or(_)
            | Self::Equal(_)
            | Self::NotEqual(_)
            | Self::Order(..)
            | Self::In(..)
            | Self::Test(..) => Type::Bool,
        }
    }

    /// It is there in the row, or in the filter: to find it is no error.
    pub(super) fn is_value(&self) -> bool {
        matches!(self, Self::Column(..) | Self::Bool(_) | Self::Int(_) | Self::Text(_) | Self::Null)
    }
}

/// Operands of == and !=.
fn alike(a: Term, b: Term) -> Result<Box<[Term; 2]>, String> {
    let given = (a.gives(), b.gives());
    let has_null = given.0 == Type::Null || given.1 == Type::Null;
    if given.0 != given.1 && !has_null {
        return Err(format!("{} is compared with {}", given.0.name(), given.1.name()));
    }
    if has_null && !(a.is_value() && b.is_value()) {
        return Err("what is never null is compared with null".into());
    }
    Ok(Box::new([a, b]))
}

/// Operands of <, <=, > and >=.
fn ordered(a: Term, b: Term) -> Result<Box<[Term; 2]>, String> {
    match (a.gives(), b.gives()) {
        (Type::Int, Type::Int) | (Type::Text, Type::Text) => Ok(Box::new([a, b])),
        (a, b) => Err(format!(
            "<, <=, > and >= take two ints or two strings, and not {} and {}",
            a.name(),
            b.name()
        )),
    }
}
