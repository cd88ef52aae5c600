//! Which revision the spec means, which of the kept ones run, and which are too old.

use penstock_crds::report::LineageRole;
use penstock_crds::revision::{DataAffecting, MintedRevision};
use penstock_crds::rollout::Strategy;

use super::PlanError;
use super::shards::{reporting, shards};
use crate::world::{KnownRevision, RevisionCourse, World};

/// Kept revisions, the current one included.
const KEPT: usize = 10;

/// The revision that the spec means.
#[derive(Debug)]
pub(super) enum Target {
    /// It is the newest, or runs.
    Minted(KnownRevision),
    /// It is new, or older than the newest: it is minted (again) with the next number, so that its workers
    /// may take over from the newest.
    Mint(KnownRevision),
    /// Another spec has its name: 8 hex digits of a hash met.
    Clash(KnownRevision),
}

/// The revision that the spec means.
pub(super) fn target(world: &World) -> Result<Target, PlanError> {
    let data = DataAffecting::from(&world.pipeline.spec);
    let name = data.name()?;
    let newest = world.revisions.iter().map(|revision| revision.number).max().unwrap_or(0);
    let number = newest + 1;
    let known = world.revisions.iter().find(|revision| revision.name == name);
    Ok(match known {
        Some(known) if known.minted.data != data => Target::Clash(known.clone()),
        Some(known) if is_current(world, known, newest) => Target::Minted(known.clone()),
        Some(known) => {
            let course = course_of_a_new_one(world, known, number);
            Target::Mint(KnownRevision { number, course, ..known.clone() })
        }
        None => {
            let image = data.image.clone().unwrap_or_else(|| world.default_image.clone());
            let minted = MintedRevision { data, image };
            let uid = String::new();
            let mut revision = KnownRevision { name, number, minted, uid, course: RevisionCourse::default() };
            revision.course = course_of_a_new_one(world, &revision, number);
            Target::Mint(revision)
        }
    })
}

/// Whether a revision needs no other number: it is the newest, or runs. One that is removed is minted again afterwards, unless
/// the spec has meant it ever since it was found wrong.
fn is_current(world: &World, known: &KnownRevision, newest: i64) -> bool {
    let is_gone = known.course.is_leaving && world.set(&known.name).is_none();
    let is_newest = known.number == newest && (!is_gone || known.course.is_barred);
    is_newest || heads(world).contains(&known)
}

/// A revision that is tried as a canary begins a lineage; any other goes on in the one whose tables readers know.
fn course_of_a_new_one(world: &World, revision: &KnownRevision, number: i64) -> RevisionCourse {
    let stable = stable(world);
    let lineage = match stable {
        Some(stable) if is_tried(world, stable, revision) => {
            let begun = revision.name.to_string();
            let is_taken = heads(world).iter().any(|head| head.course.lineage.as_ref() == Some(&begun));
            Some(if is_taken { format!("{begun}_{number}") } else { begun })
        }
        Some(stable) => stable.course.lineage.clone(),
        None => None,
    };
    RevisionCourse { lineage, ..RevisionCourse::default() }
}

/// Whether a revision is tried beside the one that runs. Where the tables are others, there is nothing to compare.
fn is_tried(world: &World, stable: &KnownRevision, revision: &KnownRevision) -> bool {
    let (was, is) = (&stable.minted, &revision.minted);
    world.pipeline.spec.rollout.strategy == Strategy::Canary
        && (&was.data.tables, &was.data.schema_map) == (&is.data.tables, &is.data.schema_map)
}

/// Of each lineage that has workers, or had them before a pause, the newest revision.
pub(super) fn heads(world: &World) -> Vec<&KnownRevision> {
    let has_workers =
        |revision: &&KnownRevision| world.set(&revision.name).is_some_and(|set| !set.is_deleting);
    let mut heads: Vec<&KnownRevision> = world.revisions.iter().filter(has_workers).collect();
    newest_of_each_lineage(&mut heads);
    heads
}

/// Leaves the newest revision of each lineage, oldest first.
pub(super) fn newest_of_each_lineage(revisions: &mut Vec<&KnownRevision>) {
    revisions.sort_by_key(|revision| std::cmp::Reverse(revision.number));
    let mut seen = Vec::new();
    revisions.retain(|revision| {
        let is_first = !seen.contains(&revision.course.lineage);
        seen.push(revision.course.lineage.clone());
        is_first
    });
    revisions.reverse();
}

/// The revision that writes the tables which readers know, by the word of the workers; while they say nothing, by the last one.
pub(super) fn stable(world: &World) -> Option<&KnownRevision> {
    let heads = heads(world);
    stable_among(world, &heads).or_else(|| said_to_be_stable(world))
}

/// The same as the status has it.
pub(super) fn said_to_be_stable(world: &World) -> Option<&KnownRevision> {
    let said = world.pipeline.status.as_ref()?.stable_revision.as_ref()?;
    world.revisions.iter().find(|revision| revision.name.0 == *said)
}

/// The same among these.
pub(super) fn stable_among<'a>(world: &World, heads: &[&'a KnownRevision]) -> Option<&'a KnownRevision> {
    let roles: Vec<Option<LineageRole>> = heads.iter().map(|head| role(world, head)).collect();
    let find = |is_it: &dyn Fn(Option<LineageRole>) -> bool| {
        let index = roles.iter().position(|role| is_it(*role))?;
        heads.get(index).copied()
    };
    let says = find(&|role| role == Some(LineageRole::Stable));
    // What one of two is not, the other is.
    let is_silent = |role: Option<LineageRole>| role.is_none();
    let others_deny = heads.len() > 1 && roles.iter().any(Option::is_some);
    let said = world.pipeline.status.as_ref().and_then(|status| status.stable_revision.as_deref());
    says.or_else(|| if others_deny { find(&is_silent) } else { None })
        .or_else(|| heads.iter().copied().find(|head| Some(head.name.0.as_str()) == said))
        .or_else(|| heads.iter().copied().find(|head| !head.course.is_leaving))
}

/// What a revision is to the pipeline, if all its workers say the same.
pub(super) fn role(world: &World, revision: &KnownRevision) -> Option<LineageRole> {
    let shards = shards(world, revision);
    let mut roles = shards.iter().map(|shard| reporting(shard).and_then(|report| report.role));
    let first = roles.next()??;
    roles.all(|role| role == Some(first)).then_some(first)
}

/// What a deleted pipeline's workers ran last; absent when no worker ever ran, which volumes and status
/// tell. The revision itself may be gone already (a foreground deletion takes it away first): then it is
/// what the spec says.
pub(super) fn last(world: &World) -> Result<Option<KnownRevision>, PlanError> {
    let newest = world.revisions.iter().max_by_key(|revision| revision.number);
    let status = world.pipeline.status.as_ref();
    let has_run = !world.claims.is_empty() || status.is_some_and(|status| status.stable_revision.is_some());
    if !has_run {
        return Ok(None);
    }
    if let Some(newest) = newest {
        return Ok(Some(newest.clone()));
    }
    let data = DataAffecting::from(&world.pipeline.spec);
    let image = world.default_image.clone();
    let (name, minted) = (data.name()?, MintedRevision { data, image });
    let course = RevisionCourse::default();
    Ok(Some(KnownRevision { name, number: 0, minted, uid: String::new(), course }))
}

/// Revisions beyond those that are kept, oldest first. None that still has workers.
pub(super) fn too_old(world: &World) -> Vec<&KnownRevision> {
    let mut by_age: Vec<&KnownRevision> = world.revisions.iter().collect();
    by_age.sort_by_key(|revision| revision.number);
    let surplus = by_age.len().saturating_sub(KEPT);
    by_age.into_iter().take(surplus).filter(|revision| world.set(&revision.name).is_none()).collect()
}
