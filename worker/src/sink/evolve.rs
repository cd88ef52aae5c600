//! What a changed source table asks of its sink table: the columns that rows go into, the statements that make room for
//! them, or why a person is needed. Pure.

use penstock_crds::report::Reason;
use penstock_crds::spec::SchemaChanges;

use super::catalogue::{OwnValue, SinkColumn, SinkTable};
use super::ddl::{nullable_definition, type_sql};
use super::fit::takes_built_in;
use super::owner::TableMap;
use crate::change::table::{SourceColumn, SourceTable, TableName, quote_identifier, quote_literal};
use crate::change::{Relation, RelationColumn, STABLE_OIDS_END};
use crate::evolve::{Change, Generated, Later, Origin, widens};
use crate::failure::Failure;

/// What the manifest allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// `sink.postgres.schemaChanges`.
    pub policy: SchemaChanges,
    /// Rows may be copied: `snapshot.mode` is not `Never`.
    pub may_copy: bool,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// This.
    Go(Course),
    /// The table is to be copied from its beginning; why, as a clause.
    CopyAgain(String),
    /// Nothing, until a person has done it.
    Stop(Failure),
}

/// How rows of the source go into the table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Course {
    /// The sink's column for each of the relation; `None`: it is left out.
    pub(super) names: Vec<Option<String>>,
    /// To be executed first.
    pub(super) statements: Vec<String>,
    /// What they do, as clauses.
    pub(super) applied: Vec<String>,
    /// What is not done, as clauses.
    pub(super) ignored: Vec<String>,
}

/// What is known of both ends.
pub(super) struct Ends<'a> {
    pub(super) relation: &'a Relation,
    /// As the source's catalogue has the table now.
    pub(super) present: &'a SourceTable,
    pub(super) sink: &'a SinkTable,
    pub(super) tables: &'a TableMap,
    /// What makes the types that the table needs and the sink has not.
    pub(super) missing_types: &'a [String],
}

/// Decides.
pub(super) fn decide(ends: &Ends<'_>, change: &Change, rules: Rules) -> Decision {
    let mut course = Planner { ends, rules, course: Course::default(), needed: Vec::new(), again: None };
    for (column, origin) in ends.relation.columns.iter().zip(&change.columns) {
        let name = course.column(column, origin, change);
        course.course.names.push(name);
    }
    for name in &change.dropped {
        course.dropped(name);
    }
    for generated in &change.generated {
        course.generated(generated);
    }
    course.decision()
}

/// The failure when a table's rows cannot be told without a copy, and none is made.
pub fn copy_needed(table: &TableName, why: &str, rules: Rules) -> Failure {
    let message = if rules.may_copy {
        format!(
            "The rows of the source table {table} may hold other values than the sink's, because {why}. Have it copied again: \
             penstock-worker resnapshot {table} (with sink.postgres.schemaChanges set to Apply that is done without asking)."
        )
    } else {
        format!(
            "The rows of the source table {table} may hold other values than the sink's, because {why}. They are not copied \
             again, because source.postgres.snapshot.mode is Never. Take the table out of source.postgres.tables, make the \
             sink's rows equal to the source's while nobody writes it, and put it back."
        )
    };
    Failure::new(Reason::SinkDiverged, message)
}

struct Planner<'a> {
    ends: &'a Ends<'a>,
    rules: Rules,
    course: Course,
    /// What a person has to do: what happened, and the statements.
    needed: Vec<(String, Vec<String>)>,
    /// Why the table has to be copied again.
    again: Option<String>,
}

impl<'a> Planner<'a> {
    fn decision(self) -> Decision {
        if !self.needed.is_empty() {
            return Decision::Stop(self.stop());
        }
        match self.again {
            None => Decision::Go(self.course),
            Some(why) if self.rules.copies() => Decision::CopyAgain(why),
            Some(why) => Decision::Stop(copy_needed(&self.ends.present.name, &why, self.rules)),
        }
    }

    fn stop(&self) -> Failure {
        let (source, sink) = (&self.ends.present.name, &self.ends.sink.name);
        let whats: Vec<&str> = self.needed.iter().map(|(what, _)| what.as_str()).collect();
        let statements: Vec<String> =
            self.needed.iter().flat_map(|(_, sql)| sql).map(|sql| format!("{sql};")).collect();
        let then = match &self.again {
            Some(why) if !self.rules.copies() => format!(
                " Then have the table copied again, because {why}: penstock-worker resnapshot {source}."
            ),
            Some(_) | None => " The pipeline then goes on by itself.".to_owned(),
        };
        let message = format!(
            "The columns of the source table {source} changed, and the sink table {sink} does not fit: {}. Run on the \
             sink: {}{then}",
            whats.join("; "),
            statements.join(" ")
        );
        Failure::new(Reason::SinkTableMismatch, message)
    }

    fn alter(&self) -> String {
        format!("ALTER TABLE {}", self.ends.sink.name.quoted())
    }

    /// Done here if the policy says so, else by a person.
    fn carry_out(&mut self, what: String, statements: Vec<String>) {
        if self.rules.policy == SchemaChanges::Apply {
            self.course.statements.extend(statements);
            self.course.applied.push(what);
        } else {
            self.needed.push((what, statements));
        }
    }

    /// Never done here.
    fn need(&mut self, what: String, statement: String) {
        self.needed.push((what, vec![statement]));
    }

    fn copy_again(&mut self, why: String) {
        self.again.get_or_insert(why);
    }

    fn ignores(&self) -> bool {
        self.rules.policy == SchemaChanges::Ignore
    }

    fn leaves_out(&self, column: &RelationColumn) -> bool {
        self.ignores() && !self.ends.relation.is_named_by(column)
    }

    /// The column of the sink that takes it.
    fn column(&mut self, column: &RelationColumn, origin: &Origin, change: &Change) -> Option<String> {
        let existing = match origin {
            Origin::Kept { from, later } => self.kept(column, from, later)?,
            Origin::Added { existing } if self.ends.sink.column(&column.name).is_none() => {
                return self.make(column, existing.as_deref());
            }
            Origin::Added { existing } => self.made(column, existing.as_deref(), change)?,
        };
        if existing.is_generated() && change.shape.is_some() {
            self.need(
                format!("column {} is not generated any more", column.name),
                format!("{} ALTER COLUMN {} DROP EXPRESSION", self.alter(), quote_identifier(&existing.name)),
            );
        }
        self.check_type(column, existing);
        self.check_null(&column.name, existing);
        Some(existing.name.clone())
    }

    /// A column whose values the sink's rows hold. A person may have changed the sink for what the stream brings later.
    fn kept(&mut self, column: &RelationColumn, from: &str, later: &Later) -> Option<&'a SinkColumn> {
        let (sink, alter) = (self.ends.sink, self.alter());
        let (old, new) = (quote_identifier(from), quote_identifier(&column.name));
        match (sink.column(from), sink.column(&column.name)) {
            (Some(own), _) if from == column.name => {
                return Some(own).filter(|own| *later != Later::Dropped || takes(column, own));
            }
            (None, Some(own)) => return Some(own),
            (Some(_), None) => self.need(
                format!("column {from} was renamed to {}", column.name),
                format!("{alter} RENAME COLUMN {old} TO {new}"),
            ),
            (Some(_), Some(_)) => self.need(
                format!("column {from} was renamed to {}, and the sink has both", column.name),
                format!("{alter} DROP COLUMN {new}; {alter} RENAME COLUMN {old} TO {new}"),
            ),
            (None, None) => match later {
                Later::Dropped => {}
                Later::Renamed(name) if sink.column(name).is_some() => return sink.column(name),
                Later::Stays | Later::Renamed(_) => self.never_written(column),
            },
        }
        None
    }

    /// A column that the sink has not, although its rows should hold it.
    fn never_written(&mut self, column: &RelationColumn) {
        if self.leaves_out(column) {
            return;
        }
        let why = format!("the values of column {} were never written there", column.name);
        if self.rules.policy != SchemaChanges::Apply {
            let statements = self.add_column(column, None);
            self.needed.push((format!("column {} is missing", column.name), statements));
        }
        self.copy_again(why);
    }

    /// A new column, whose value in the rows that are there is known.
    fn make(&mut self, column: &RelationColumn, existing: Option<&str>) -> Option<String> {
        let what = format!("column {} was added", column.name);
        if self.leaves_out(column) {
            self.course.ignored.push(what);
            return None;
        }
        let statements = self.add_column(column, existing);
        self.carry_out(what, statements);
        Some(column.name.clone())
    }

    /// A new column that the sink has already.
    fn made(
        &mut self,
        column: &RelationColumn,
        existing: Option<&str>,
        change: &Change,
    ) -> Option<&'a SinkColumn> {
        let own = self.ends.sink.column(&column.name)?;
        let what = || format!("column {} was dropped and made anew", column.name);
        if !change.dropped.contains(&column.name) {
            if !own.is_generated() {
                self.fill(own, existing);
            }
        } else if takes(column, own) {
            self.copy_again(what());
        } else {
            let mut statements =
                vec![format!("{} DROP COLUMN {}", self.alter(), quote_identifier(&own.name))];
            statements.extend(self.add_column(column, existing));
            self.needed.push((what(), statements));
            return None;
        }
        Some(own)
    }

    /// A column that a person made before the stream brought it: rows from before it hold what the source's hold.
    fn fill(&mut self, own: &SinkColumn, existing: Option<&str>) {
        let (table, column) = (self.ends.sink.only(), quote_identifier(&own.name));
        self.course.statements.push(match existing.map(quote_literal) {
            Some(value) => format!(
                "UPDATE {table} SET {column} = {value} WHERE {column}::pg_catalog.text IS DISTINCT FROM {value}"
            ),
            None => format!("UPDATE {table} SET {column} = NULL WHERE {column} IS NOT NULL"),
        });
    }

    fn add_column(&self, column: &RelationColumn, existing: Option<&str>) -> Vec<String> {
        let Some(source) = self.source_column(&column.name) else { return Vec::new() };
        let (alter, name) = (self.alter(), quote_identifier(&column.name));
        let definition = format!("{name} {}", type_sql(&source.column_type, self.ends.tables));
        let mut statements: Vec<String> = Vec::new();
        if !source.column_type.is_built_in() {
            statements.extend(self.ends.missing_types.iter().cloned());
        }
        let value = existing.map(|value| format!(" DEFAULT {}", quote_literal(value))).unwrap_or_default();
        statements.push(format!("{alter} ADD COLUMN {definition}{value}"));
        match (&source.constant_default, existing) {
            (Some(default), _) => {
                statements.push(format!("{alter} ALTER COLUMN {name} SET DEFAULT {default}"));
            }
            (None, Some(_)) => statements.push(format!("{alter} ALTER COLUMN {name} DROP DEFAULT")),
            (None, None) => {}
        }
        statements
    }

    fn source_column(&self, name: &str) -> Option<&'a SourceColumn> {
        self.ends.present.columns.iter().find(|column| column.name == name)
    }

    fn check_type(&mut self, column: &RelationColumn, own: &SinkColumn) {
        if takes(column, own) {
            return;
        }
        let Some(source) = self.source_column(&column.name) else {
            return self.copy_again(format!("column {} was changed again since", column.name));
        };
        let wanted = type_sql(&source.column_type, self.ends.tables);
        let name = quote_identifier(&own.name);
        let alter = format!("{} ALTER COLUMN {name} TYPE {wanted}", self.alter());
        let what = format!("column {} is {}, the source's is {wanted}", own.name, own.column_type.sql);
        let from = (own.column_type.oid, own.column_type.modifier);
        // It may have become wider still.
        let last = (source.column_type.oid, source.column_type.modifier);
        let is_wider = |to| own.column_type.is_built_in() && widens(from, to);
        if is_wider((column.type_oid, column.type_modifier)) && is_wider(last) {
            self.carry_out(what, vec![alter]);
        } else {
            self.need(what, format!("{alter} USING {name}::{wanted}"));
        }
    }

    /// As the source has it now: that it allows NULL too early does no harm.
    fn check_null(&mut self, name: &str, own: &SinkColumn) {
        let allows_null = self.source_column(name).is_some_and(|source| !source.is_not_null);
        if own.is_not_null && allows_null && !own.is_generated() && !self.ignores() {
            let statement =
                format!("{} ALTER COLUMN {} DROP NOT NULL", self.alter(), quote_identifier(&own.name));
            self.carry_out(format!("column {} allows NULL", own.name), vec![statement]);
        }
    }

    fn dropped(&mut self, name: &str) {
        let is_reused = self.ends.relation.columns.iter().any(|column| column.name == name);
        let Some(own) = self.ends.sink.column(name).filter(|_| !is_reused) else { return };
        let (alter, column) = (self.alter(), quote_identifier(name));
        if !self.ignores() {
            self.need(format!("column {name} was dropped"), format!("{alter} DROP COLUMN {column}"));
        } else if own.is_not_null && own.own_value == OwnValue::Null {
            self.need(
                format!("column {name} was dropped, and is NOT NULL without a default"),
                format!("{alter} ALTER COLUMN {column} DROP NOT NULL"),
            );
        } else {
            self.course.ignored.push(format!("column {name} was dropped"));
        }
    }

    /// Columns that the sink computes, from what it holds.
    fn generated(&mut self, generated: &Generated) {
        let alter = self.alter();
        match generated {
            Generated::Added(name) | Generated::Remade(name) => {
                let (own, source) = (self.ends.sink.column(name), self.source_column(name));
                let Some(source) = source else { return };
                let add = format!("{alter} ADD COLUMN {}", nullable_definition(source, self.ends.tables));
                let is_remade = matches!(generated, Generated::Remade(_));
                match own {
                    None if self.ignores() => {
                        self.course.ignored.push(format!("the generated column {name} was added"));
                    }
                    None => self.carry_out(format!("the generated column {name} was added"), vec![add]),
                    Some(own) if own.is_generated() && !is_remade => {}
                    Some(own) => {
                        let drop = format!("{alter} DROP COLUMN {}", quote_identifier(&own.name));
                        let what = format!("the generated column {name} is computed in another way");
                        let is_ours = own.is_generated();
                        if is_ours {
                            self.carry_out(what, vec![drop, add]);
                        } else {
                            self.needed.push((what, vec![drop, add]));
                        }
                        if is_remade && self.rules.policy != SchemaChanges::Apply {
                            // Whether a person did it cannot be seen.
                            self.copy_again("nobody can see whether that was done".to_owned());
                        }
                    }
                }
            }
            Generated::Renamed(from, to) => {
                if self.ends.sink.column(from).is_some() && self.ends.sink.column(to).is_none() {
                    self.need(
                        format!("column {from} was renamed to {to}"),
                        format!(
                            "{alter} RENAME COLUMN {} TO {}",
                            quote_identifier(from),
                            quote_identifier(to)
                        ),
                    );
                }
            }
            Generated::Dropped(name) => {
                let is_there = self.ends.sink.column(name).is_some_and(SinkColumn::is_generated);
                if is_there && !self.ignores() {
                    let statement = format!("{alter} DROP COLUMN {}", quote_identifier(name));
                    self.need(format!("the generated column {name} was dropped"), statement);
                }
            }
        }
    }
}

impl Default for Rules {
    fn default() -> Self {
        Self { policy: SchemaChanges::Stop, may_copy: true }
    }
}

impl Rules {
    /// Tables are copied again without asking.
    pub fn copies(self) -> bool {
        self.policy == SchemaChanges::Apply && self.may_copy
    }
}

/// Whether values of the stream go into the column. Types that somebody made are compared when a value is refused.
fn takes(column: &RelationColumn, own: &SinkColumn) -> bool {
    own.is_generated()
        || column.type_oid >= STABLE_OIDS_END
        || takes_built_in(column.type_oid, column.type_modifier, &own.column_type)
}
