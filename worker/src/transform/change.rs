//! What happened to a table's columns, told in the names of the sink.

use super::{Plan, TableSteps};
use crate::change::{Relation, Treatment};
use crate::evolve::{Change, Generated, Later, Origin};

impl TableSteps {
    /// The change as the sink gets it: `relation` is the source's, `plan` made from it. The shape stays the source's.
    ///
    /// # Errors
    /// What the sink's rows hold in a column is not what its transform gives now; why, as a clause.
    pub fn change(&self, relation: &Relation, plan: &Plan, change: &Change) -> Result<Change, String> {
        let mut told = Change { shape: change.shape.clone(), ..Change::default() };
        for (place, (column, origin)) in relation.columns.iter().zip(&change.columns).enumerate() {
            let now = self.steps.of(&column.name);
            let is_carried = plan.places.contains(&place);
            match origin {
                Origin::Kept { from, later } => {
                    let was = self.steps.of(from);
                    refuse_other_treatment((from, was), (&column.name, now))?;
                    match (was, now) {
                        (Some(was), Some(_)) if is_carried => {
                            let (from, later) = (was.name.to_owned(), self.later(later));
                            told.columns.push(Origin::Kept { from, later });
                        }
                        (Some(was), None) => told.dropped.push(was.name.to_owned()),
                        (Some(_) | None, _) => {}
                    }
                }
                Origin::Added { .. } if now.is_some_and(|now| now.mask.is_some()) => {
                    return Err(format!("column {} was made anew, and is masked", column.name));
                }
                Origin::Added { .. } if is_carried => told.columns.push(origin.clone()),
                Origin::Added { .. } => {}
            }
        }
        let name = |column: &String| self.steps.name_of(column).map(str::to_owned);
        told.dropped.extend(change.dropped.iter().filter_map(name));
        told.generated = change.generated.iter().filter_map(|generated| self.generated(generated)).collect();
        Ok(told)
    }

    fn later(&self, later: &Later) -> Later {
        match later {
            Later::Stays | Later::Dropped => later.clone(),
            Later::Renamed(name) => {
                self.steps.name_of(name).map_or(Later::Dropped, |name| Later::Renamed(name.to_owned()))
            }
        }
    }

    fn generated(&self, generated: &Generated) -> Option<Generated> {
        let name = |column: &String| self.steps.name_of(column).map(str::to_owned);
        match generated {
            Generated::Added(column) => name(column).map(Generated::Added),
            Generated::Remade(column) => name(column).map(Generated::Remade),
            Generated::Dropped(column) => name(column).map(Generated::Dropped),
            Generated::Renamed(from, to) => match (name(from), name(to)) {
                (Some(from), Some(to)) => Some(Generated::Renamed(from, to)),
                (None, Some(to)) => Some(Generated::Added(to)),
                (Some(from), None) => Some(Generated::Dropped(from)),
                (None, None) => None,
            },
        }
    }
}

/// A column that was renamed into the reach of another step, or out of it: the rows that are there were brought by the one, and
/// those that come are brought by the other.
fn refuse_other_treatment(
    (from, was): (&String, Option<Treatment<'_>>),
    (to, now): (&String, Option<Treatment<'_>>),
) -> Result<(), String> {
    let mask =
        |treatment: Option<Treatment<'_>>| treatment.map(|treatment| treatment.mask.map(str::to_owned));
    let is_left_out = now.is_none();
    if from == to || is_left_out || mask(was) == mask(now) {
        return Ok(());
    }
    Err(format!("column {from} was renamed to {to}, and the transforms do something else to it"))
}
