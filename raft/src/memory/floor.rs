//! The file of the floor in memory.

use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::engine::FloorFile;
use crate::ids::GroupId;

/// What happens to one write of the floor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FloorFault {
    /// It succeeds.
    #[default]
    None,
    /// The disk answers with an error and keeps nothing of it.
    Error,
    /// The node dies before anything of it is durable.
    CrashBefore,
    /// The node dies when all of it is durable but nobody was told.
    CrashAfter,
    /// The node dies in the middle of it: so many of its bytes are durable, and behind them is what was there.
    Torn(usize),
}

/// Decides the fate of each write. Called with its number, from 0.
pub type FloorHook = dyn FnMut(u64) -> FloorFault + Send;

/// The file of the floor in memory. Each write is durable when it returns. Clones share it, and it outlives the node.
#[derive(Clone, Default)]
pub struct MemoryFloor {
    disk: Arc<Mutex<Disk>>,
    /// The life of the node that uses this handle; the disk refuses a handle of an earlier life.
    life: u64,
}

#[derive(Default)]
struct Disk {
    slots: [Vec<u8>; 2],
    writes: u64,
    life: u64,
    hook: Option<Box<FloorHook>>,
}

fn dead() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "the simulated node has crashed")
}

impl MemoryFloor {
    /// A file in which nothing was ever written, without faults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets what decides the fate of each write from now on.
    pub fn set_hook(&self, hook: impl FnMut(u64) -> FloorFault + Send + 'static) {
        self.disk.lock().hook = Some(Box::new(hook));
    }

    /// The last position that the log of a group must reach, if what is written reads back.
    pub fn promised(&self, group: GroupId) -> Option<u64> {
        crate::log::promised(Arc::new(self.image()), group).ok().flatten()
    }

    /// Whether both slots read back.
    pub fn is_whole(&self) -> bool {
        self.disk.lock().slots.iter().all(|slot| crate::log::reads_back(slot))
    }

    /// Every write succeeds from now on.
    pub fn clear_hook(&self) {
        self.disk.lock().hook = None;
    }

    /// Kills the node: every handle so far fails from now on. Returns the handle for the next start.
    pub fn crash(&self) -> MemoryFloor {
        let mut disk = self.disk.lock();
        disk.life += 1;
        MemoryFloor { disk: self.disk.clone(), life: disk.life }
    }

    /// Writes that succeeded, of all lives.
    pub fn writes(&self) -> u64 {
        self.disk.lock().writes
    }

    /// Changes the bytes of a slot (0 or 1) in place, as bit-rot does. False if nothing was ever written there.
    pub fn damage(&self, slot: usize, change: impl FnOnce(&mut Vec<u8>)) -> bool {
        let mut disk = self.disk.lock();
        let Some(bytes) = disk.slots.get_mut(slot).filter(|bytes| !bytes.is_empty()) else { return false };
        change(bytes);
        true
    }

    /// Takes the file away, as if it had been deleted.
    pub fn delete(&self) {
        self.disk.lock().slots = Default::default();
    }

    /// A copy of the file with no hook, for a look at what would be found after a crash now.
    pub fn image(&self) -> MemoryFloor {
        let image = Disk { slots: self.disk.lock().slots.clone(), ..Disk::default() };
        MemoryFloor { disk: Arc::new(Mutex::new(image)), life: 0 }
    }

    fn alive(&self) -> io::Result<parking_lot::MutexGuard<'_, Disk>> {
        let disk = self.disk.lock();
        if disk.life == self.life { Ok(disk) } else { Err(dead()) }
    }
}

impl FloorFile for MemoryFloor {
    fn read(&self) -> io::Result<[Vec<u8>; 2]> {
        Ok(self.alive()?.slots.clone())
    }

    fn write(&self, slot: usize, bytes: &[u8]) -> io::Result<()> {
        let mut disk = self.alive()?;
        let number = disk.writes;
        let fault = disk.hook.as_mut().map_or(FloorFault::None, |hook| hook(number));
        let written = match fault {
            FloorFault::None | FloorFault::CrashAfter => bytes.len(),
            FloorFault::Error => return Err(io::Error::other("the simulated disk failed to sync")),
            FloorFault::CrashBefore => 0,
            FloorFault::Torn(written) => written.min(bytes.len()),
        };
        let content = disk.slots.get_mut(slot).ok_or(io::ErrorKind::InvalidInput)?;
        if content.len() < written {
            content.resize(written, 0);
        }
        content[..written].copy_from_slice(&bytes[..written]);
        if fault == FloorFault::None {
            disk.writes += 1;
            Ok(())
        } else {
            disk.life += 1;
            Err(dead())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_write_keeps_what_was_behind_it_and_kills_the_handle() {
        let floor = MemoryFloor::new();
        floor.write(1, b"older").expect("written");
        floor.set_hook(|_| FloorFault::Torn(2));
        floor.write(1, b"newer").expect_err("the node died");
        floor.read().expect_err("a dead node reads nothing");
        assert_eq!(floor.crash().read().expect("alive"), [Vec::new(), b"neder".to_vec()]);
    }

    #[test]
    fn a_slot_that_was_never_written_reads_back_and_one_with_other_bytes_does_not() {
        let floor = MemoryFloor::new();
        assert!(floor.is_whole());
        floor.write(0, b"no floor").expect("alive");
        assert!(!floor.is_whole());
        floor.delete();
        assert!(floor.is_whole());
    }
}
