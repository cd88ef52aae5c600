//! Which shard runs which table. Pure: the same tables give the same answer everywhere.

use std::collections::{BTreeMap, HashMap};

use sha2::{Digest, Sha256};

use crate::change::RelationId;
use crate::change::table::SourceTable;

/// Divides tables among `shards` workers. Tables joined by foreign keys go together, so that a source
/// transaction over them stays one transaction in the sink; a group goes where the hash of its smallest table
/// name says.
pub fn assign_shards(tables: &[SourceTable], shards: u16) -> BTreeMap<RelationId, u16> {
    let places: HashMap<RelationId, usize> =
        tables.iter().enumerate().map(|(place, table)| (table.id, place)).collect();
    let mut groups = Groups::new(tables.len());
    for (place, table) in tables.iter().enumerate() {
        for peer in table.foreign_key_peers.iter().filter_map(|peer| places.get(peer)) {
            groups.join(place, *peer);
        }
    }
    let mut smallest = BTreeMap::new();
    for (place, table) in tables.iter().enumerate() {
        let name = smallest.entry(groups.root(place)).or_insert(&table.name);
        *name = (*name).min(&table.name);
    }
    tables
        .iter()
        .enumerate()
        .map(|(place, table)| {
            let name = smallest.get(&groups.root(place)).copied().unwrap_or(&table.name);
            (table.id, shard_of(&name.quoted(), shards))
        })
        .collect()
}

fn shard_of(name: &str, shards: u16) -> u16 {
    let digest = Sha256::digest(name.as_bytes());
    let number = digest.iter().take(8).fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
    u16::try_from(number % u64::from(shards.max(1))).unwrap_or_default()
}

/// Disjoint sets over the places of a slice (union-find with path halving).
struct Groups {
    parents: Vec<usize>,
}

impl Groups {
    fn new(count: usize) -> Self {
        Self { parents: (0..count).collect() }
    }

    fn root(&mut self, mut place: usize) -> usize {
        while self.parents[place] != place {
            self.parents[place] = self.parents[self.parents[place]];
            place = self.parents[place];
        }
        place
    }

    fn join(&mut self, one: usize, other: usize) {
        let (one, other) = (self.root(one), self.root(other));
        self.parents[one] = other;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::ReplicaIdentity;
    use crate::change::table::TableName;

    fn table(id: u32, name: &str, peers: &[u32]) -> SourceTable {
        SourceTable {
            id: RelationId(id),
            name: TableName::new("public", name),
            columns: Vec::new(),
            replica_identity: ReplicaIdentity::Default,
            primary_key: Vec::new(),
            identity_columns: Vec::new(),
            is_partitioned: false,
            foreign_key_peers: peers.iter().copied().map(RelationId).collect(),
            estimated_rows: 0,
        }
    }

    #[test]
    fn tables_joined_by_foreign_keys_share_a_shard_in_any_order() {
        // 1 - 2 - 3 is a chain that only the middle and the ends name; 99 is not of this pipeline.
        let mut tables: Vec<_> = (10..60).map(|id| table(id, &format!("t{id}"), &[])).collect();
        tables.extend([table(1, "z", &[2, 99]), table(2, "m", &[]), table(3, "a", &[2])]);
        let forward = assign_shards(&tables, 7);
        tables.reverse();
        assert_eq!(forward, assign_shards(&tables, 7));
        assert_eq!(forward[&RelationId(1)], forward[&RelationId(2)]);
        assert_eq!(forward[&RelationId(1)], forward[&RelationId(3)]);
        assert_eq!(forward.len(), 53);
    }

    #[test]
    fn every_shard_gets_tables_and_none_beyond_the_last() {
        let tables: Vec<_> = (0..200).map(|id| table(id, &format!("t{id}"), &[])).collect();
        let assigned = assign_shards(&tables, 5);
        for shard in 0..5 {
            assert!(assigned.values().any(|assigned| *assigned == shard), "{shard}");
        }
        assert!(assigned.values().all(|shard| *shard < 5));
    }

    #[test]
    fn assignment_does_not_move_between_versions() {
        let assigned = assign_shards(&[table(1, "orders", &[]), table(2, "items", &[])], 4);
        assert_eq!(assigned.values().copied().collect::<Vec<_>>(), [3, 3]);
    }
}
