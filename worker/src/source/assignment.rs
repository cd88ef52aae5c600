//! Which shard runs which table. Pure: the same tables give the same answer everywhere.

use std::collections::{BTreeMap, HashMap};

use sha2::{Digest, Sha256};

use crate::change::RelationId;
use crate::change::table::{SourceTable, TableName};

/// Divides tables among `shards` workers. Tables joined by foreign keys go together, so that a source
/// transaction over them stays one transaction in the sink. A group goes where one of its tables is `known` to be
/// already, else where the hash of its smallest table name says; a known table never moves.
pub fn assign_shards(
    tables: &[SourceTable],
    shards: u16,
    known: &BTreeMap<TableName, u16>,
) -> BTreeMap<TableName, u16> {
    let places: HashMap<RelationId, usize> =
        tables.iter().enumerate().map(|(place, table)| (table.id, place)).collect();
    let mut groups = Groups::new(tables.len());
    for (place, table) in tables.iter().enumerate() {
        for peer in table.foreign_key_peers.iter().filter_map(|peer| places.get(peer)) {
            groups.join(place, *peer);
        }
    }
    let mut members: BTreeMap<usize, Vec<&TableName>> = BTreeMap::new();
    for (place, table) in tables.iter().enumerate() {
        members.entry(groups.root(place)).or_default().push(&table.name);
    }
    let mut assignment = BTreeMap::new();
    for names in members.values_mut() {
        names.sort_unstable();
        let by_hash = || names.first().map_or(0, |name| shard_of(&name.quoted(), shards));
        let of_group = names.iter().find_map(|name| known.get(*name).copied()).unwrap_or_else(by_hash);
        for name in names.iter().copied() {
            assignment.insert(name.clone(), known.get(name).copied().unwrap_or(of_group));
        }
    }
    assignment
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
            is_primary_key_deferrable: false,
            identity_columns: Vec::new(),
            is_partitioned: false,
            foreign_key_peers: peers.iter().copied().map(RelationId).collect(),
            estimated_rows: 0,
            steps: crate::change::Steps::default(),
        }
    }

    #[test]
    fn tables_joined_by_foreign_keys_share_a_shard_in_any_order() {
        // 1 - 2 - 3 is a chain that only the middle and the ends name; 99 is not of this pipeline.
        let mut tables: Vec<_> = (10..60).map(|id| table(id, &format!("t{id}"), &[])).collect();
        tables.extend([table(1, "z", &[2, 99]), table(2, "m", &[]), table(3, "a", &[2])]);
        let none = BTreeMap::new();
        let forward = assign_shards(&tables, 7, &none);
        tables.reverse();
        assert_eq!(forward, assign_shards(&tables, 7, &none));
        let shard = |name: &str| forward[&TableName::new("public", name)];
        assert_eq!((shard("z"), shard("z")), (shard("m"), shard("a")));
        assert_eq!(forward.len(), 53);
    }

    #[test]
    fn every_shard_gets_tables_and_none_beyond_the_last() {
        let tables: Vec<_> = (0..200).map(|id| table(id, &format!("t{id}"), &[])).collect();
        let assigned = assign_shards(&tables, 5, &BTreeMap::new());
        for shard in 0..5 {
            assert!(assigned.values().any(|assigned| *assigned == shard), "{shard}");
        }
        assert!(assigned.values().all(|shard| *shard < 5));
    }

    #[test]
    fn assignment_does_not_move_between_versions() {
        let assigned = assign_shards(&[table(1, "orders", &[]), table(2, "items", &[])], 4, &BTreeMap::new());
        assert_eq!(assigned.values().copied().collect::<Vec<_>>(), [1, 1]);
    }

    #[test]
    fn a_known_table_never_moves_and_draws_its_new_peers() {
        let known = BTreeMap::from([(TableName::new("public", "orders"), 2)]);
        let assigned = assign_shards(&[table(1, "orders", &[2]), table(2, "items", &[])], 4, &known);
        assert_eq!(assigned.values().copied().collect::<Vec<_>>(), [2, 2]);
    }
}
