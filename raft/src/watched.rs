//! A state store under watch: whoever reads a row that the disk has damaged, the group hears of it.

use std::io;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use crate::health::{Health, is_damage};
use crate::machine::{Reread, RowBatch, RowVisitor, StateStore, Table};

/// Passes everything on, and notes what goes wrong.
pub(crate) struct Watched {
    store: Arc<dyn StateStore>,
    health: Arc<Health>,
    /// The first error that is no damage.
    failed: Mutex<Option<String>>,
}

impl Watched {
    pub(crate) fn new(store: Arc<dyn StateStore>, health: Arc<Health>) -> Arc<Watched> {
        Arc::new(Watched { store, health, failed: Mutex::default() })
    }

    /// An error of the disk that is no damage, if there was one.
    pub(crate) fn failed(&self) -> Option<String> {
        self.failed.lock().clone()
    }

    fn judged<T>(&self, result: io::Result<T>) -> io::Result<T> {
        result.inspect_err(|error| {
            self.health.judge("the state database", error);
            if !is_damage(error) {
                self.failed.lock().get_or_insert_with(|| error.to_string());
            }
        })
    }
}

impl StateStore for Watched {
    fn get(&self, table: Table, key: &[u8]) -> io::Result<Option<Bytes>> {
        self.judged(self.store.get(table, key))
    }
    fn get_many(&self, table: Table, keys: &[&[u8]]) -> io::Result<Vec<Option<Bytes>>> {
        self.judged(self.store.get_many(table, keys))
    }
    fn scan(&self, table: Table, from: &[u8], visit: &mut RowVisitor<'_>) -> io::Result<()> {
        self.judged(self.store.scan(table, from, visit))
    }
    fn write(&self, rows: &RowBatch, applied: &[u8]) -> io::Result<()> {
        self.judged(self.store.write(rows, applied))
    }
    fn applied(&self) -> io::Result<Option<Bytes>> {
        self.judged(self.store.applied())
    }
    fn flush(&self) -> io::Result<()> {
        self.judged(self.store.flush())
    }
    fn checkpoint(&self, dir: &Path) -> io::Result<()> {
        self.judged(self.store.checkpoint(dir))
    }
    fn report_damage(&self, reason: &str) {
        self.health.damage(format!("the state database: {reason}"));
    }
    fn reread(&self, from: &[u8], max_bytes: usize) -> io::Result<Reread> {
        self.judged(self.store.reread(from, max_bytes))
    }
}
