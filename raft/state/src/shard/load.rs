//! Rebuilding the machine from its rows.

use super::collections::Slot;
use super::point::{decode_with_crc, row_of_key};
use super::{Shard, table};
use crate::records::{Changes, Only};
use crate::{CollectionId, Fault};

/// Takes in stored rows one after another, in any order, and makes the machine of them.
#[derive(Debug, Default)]
pub struct Loader {
    shard: Shard,
    changes: Changes,
}

impl Loader {
    /// A loader that has seen no row.
    pub fn new() -> Self {
        Loader::default()
    }

    /// Takes in a row. Rows of tables that are not in [`Shard::TABLES`] are passed over.
    ///
    /// # Errors
    /// Faults when the row does not decode or came before.
    pub fn row(&mut self, table: u8, key: &[u8], value: &[u8]) -> Result<(), Fault> {
        let Loader { shard, changes } = self;
        match table {
            table::META => shard.meta.load(key, value, changes),
            table::COLLECTION => shard.collections.load(key, value, changes),
            table::REQUEST => shard.requests.load(key, value, changes),
            table::POINT => self.point(key, value),
            _ => Ok(()),
        }
    }

    fn point(&mut self, key: &[u8], value: &[u8]) -> Result<(), Fault> {
        let Some((collection, row)) = row_of_key(key) else {
            return Err(Fault::Broken { what: format!("a key of {} bytes in the table of points", key.len()) });
        };
        let (point, crc) = decode_with_crc(value)
            .map_err(|source| Fault::Undecodable { what: format!("row {row} of collection {collection}"), source })?;
        if !self.shard.collections.load_point(collection, point.id, Slot { row, crc }, &mut self.changes) {
            let what = format!("collection {collection} has two rows of the point {:?}", point.id);
            return Err(Fault::Broken { what });
        }
        Ok(())
    }

    /// The machine.
    ///
    /// # Errors
    /// Faults when the rows contradict each other.
    pub fn finish(self) -> Result<Shard, Fault> {
        let mut shard = self.shard;
        shard.hash = self.changes.hash();
        if shard.meta.get(&Only).is_none() && shard.collections.records().len() > 0 {
            return Err(Fault::Broken { what: "there are rows but not the one that says how far they go".to_owned() });
        }
        if let Some((id, _)) = shard.collections.all_points().find(|(id, _)| shard.collections.live(*id).is_none()) {
            return Err(orphans(id));
        }
        shard.collections.derive();
        shard.requests.derive();
        Ok(shard)
    }
}

fn orphans(collection: CollectionId) -> Fault {
    Fault::Broken { what: format!("there are points of collection {collection}, which is not there") }
}

impl Shard {
    /// The tables whose rows [`Shard::load`] needs: all there are.
    pub const TABLES: [u8; 4] = [table::META, table::COLLECTION, table::REQUEST, table::POINT];

    /// Rebuilds the machine from its rows, given as (table, key, value) in any order.
    ///
    /// # Errors
    /// Faults when a row does not decode or rows contradict each other.
    pub fn load<K, V>(rows: impl IntoIterator<Item = (u8, K, V)>) -> Result<Shard, Fault>
    where
        K: AsRef<[u8]>,
        V: AsRef<[u8]>,
    {
        let mut loader = Loader::new();
        for (table, key, value) in rows {
            loader.row(table, key.as_ref(), value.as_ref())?;
        }
        loader.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::Command;
    use crate::shard::testing::{Slice, point};
    use crate::{Operation, RequestId};

    fn slice() -> Slice {
        let mut slice = Slice::with_collection(2);
        slice.run(Command::DropCollection { id: CollectionId(2), generation: 9 }).expect("never refused");
        slice.upsert(vec![point("a", 2), point("b", 2)]);
        let ids = vec!["a".to_owned()];
        let command = Command::Delete { collection: CollectionId(1), generation: 5, ids };
        let request = Some(RequestId((1_750_000_000_000 << 80) | (7 << 76) | 1));
        assert!(slice.operate(vec![Operation { request, command }]).replies[0].is_ok());
        slice
    }

    /// If this fails, stored databases would not be read any more: raise the version of the codec instead.
    #[test]
    fn the_rows_of_version_1_are_frozen() {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let lines: Vec<String> =
            slice().rows.iter().map(|((table, key), value)| format!("{table} {} {}", hex(key), hex(value))).collect();
        assert_eq!(lines.join("\n"), include_str!("../../tests/frozen/shard-rows-v1.txt").trim_end());
    }

    #[test]
    fn damaged_or_missing_rows_are_faults() {
        let slice = slice();
        for table in Shard::TABLES {
            let flipped = Shard::load(slice.rows.iter().map(|((of, key), value)| {
                let mut value = value.to_vec();
                if *of == table {
                    *value.last_mut().expect("no row is empty") ^= 1;
                }
                (*of, key, value)
            }));
            assert!(matches!(flipped, Err(Fault::Undecodable { .. })), "table {table}");
        }
        for table in [table::META, table::COLLECTION] {
            let rows = slice.rows.iter().filter(|((of, _), _)| *of != table);
            let missing = Shard::load(rows.map(|((of, key), value)| (*of, key, value)));
            assert!(matches!(missing, Err(Fault::Broken { .. })), "table {table}");
        }
    }
}
