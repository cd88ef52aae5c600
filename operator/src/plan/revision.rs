//! Which revision the spec means, and which kept ones are too old.

use penstock_crds::revision::{DataAffecting, MintedRevision};

use super::PlanError;
use crate::world::{KnownRevision, World};

/// Kept revisions, the current one included.
const KEPT: usize = 10;

/// The revision that the spec means.
#[derive(Debug)]
pub(super) enum Target {
    /// It is the newest.
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
    let known = world.revisions.iter().find(|revision| revision.name == name);
    Ok(match known {
        Some(known) if known.minted.data != data => Target::Clash(known.clone()),
        Some(known) if known.number == newest => Target::Minted(known.clone()),
        Some(known) => Target::Mint(KnownRevision { number: newest + 1, ..known.clone() }),
        None => {
            let image = data.image.clone().unwrap_or_else(|| world.default_image.clone());
            Target::Mint(KnownRevision {
                name,
                number: newest + 1,
                minted: MintedRevision { data, image },
                uid: String::new(),
            })
        }
    })
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
    Ok(Some(KnownRevision { name, number: 0, minted, uid: String::new() }))
}

/// Revisions beyond those that are kept, oldest first. None that still has workers.
pub(super) fn too_old(world: &World) -> Vec<&KnownRevision> {
    let mut by_age: Vec<&KnownRevision> = world.revisions.iter().collect();
    by_age.sort_by_key(|revision| revision.number);
    let surplus = by_age.len().saturating_sub(KEPT);
    by_age.into_iter().take(surplus).filter(|revision| world.set(&revision.name).is_none()).collect()
}
