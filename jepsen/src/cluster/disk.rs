//! Where a node keeps its data: a folder, or an ext4 file system of its own on a loop device, whose power can be cut.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use parking_lot::Mutex;

use super::tool;

/// EXT4_IOC_SHUTDOWN with the flag that drops what the journal has not yet written: exactly what was not synced is
/// lost. Perl is part of every Debian and Ubuntu, and calling ioctl from it needs no unsafe code here.
const CUT: &str = r#"open(my $f, "<", $ARGV[0]) or die "open: $!\n"; my $flag = pack("L", 2); ioctl($f, 0x8004587d, $flag) or die "ioctl: $!\n";"#;

/// How long a disk that nobody needs any more may be busy.
const RELEASED: Duration = Duration::from_secs(5);

/// What a node's data is kept on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskKind {
    /// A folder in the run's directory.
    Folder,
    /// An ext4 file system of so many MiB on a loop device. Power cuts, stalls and a full disk need it.
    Loop {
        /// Its size.
        mib: u64,
    },
}

/// One node's disk.
#[derive(Debug)]
pub(super) struct Disk {
    /// The folder, or the mount.
    root: PathBuf,
    image: Option<PathBuf>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    mounted: bool,
    cut: bool,
    frozen: bool,
}

impl Disk {
    /// Makes an empty one. A loop disk's image goes into `folder`, its mount to `mount`.
    pub(super) fn make(kind: DiskKind, folder: &Path, mount: PathBuf) -> Result<Disk> {
        let DiskKind::Loop { mib } = kind else {
            let root = folder.join("disk");
            fs_err::create_dir_all(&root)?;
            return Ok(Disk { root, image: None, state: Mutex::default() });
        };
        let image = folder.join("disk.img");
        fs_err::File::create(&image)?.set_len(mib << 20)?;
        fs_err::create_dir_all(&mount)?;
        // No blocks kept back for root: a full disk is to be full for the node too.
        tool::run(&["mkfs.ext4".as_ref(), "-q".as_ref(), "-m".as_ref(), "0".as_ref(), image.as_os_str()])?;
        let disk = Disk { root: mount, image: Some(image), state: Mutex::default() };
        disk.mount()?;
        Ok(disk)
    }

    pub(super) fn data(&self) -> PathBuf {
        self.root.join("data")
    }

    pub(super) fn has_power_switch(&self) -> bool {
        self.image.is_some()
    }

    pub(super) fn is_cut(&self) -> bool {
        self.state.lock().cut
    }

    /// Cuts the power: from now on every write fails, and what was not synced is gone after [`Self::power_on`]. True if
    /// a write was seen to fail.
    pub(super) fn power_off(&self) -> Result<bool> {
        tool::run(&["perl".as_ref(), "-e".as_ref(), CUT.as_ref(), self.root.as_os_str()])?;
        self.state.lock().cut = true;
        let refused = File::create(self.root.join("probe")).and_then(|mut file| file.write_all(b"x"));
        Ok(refused.is_err_and(|error| error.raw_os_error() == Some(Errno::EIO as i32)))
    }

    /// Mounts it again, as a machine does when it comes back. No process may hold a file of it any more.
    pub(super) fn power_on(&self) -> Result<()> {
        if self.image.is_none() {
            return Ok(());
        }
        self.unmount()?;
        self.mount()
    }

    /// A disk that is still in use is still mounted, and must not be mounted once more on top of itself. Who looked at
    /// it a moment ago, such as the kernel on behalf of a process that has just ended, lets go of it soon.
    fn unmount(&self) -> Result<()> {
        if !self.state.lock().mounted {
            return Ok(());
        }
        let begun = Instant::now();
        loop {
            match tool::run(&["umount".as_ref(), self.root.as_os_str()]) {
                Ok(_) => break,
                Err(error) if !error.to_string().contains("busy") || begun.elapsed() > RELEASED => return Err(error),
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        }
        self.state.lock().mounted = false;
        Ok(())
    }

    fn mount(&self) -> Result<()> {
        let image = self.image.as_ref().context("only a loop disk is mounted")?;
        tool::run(&["mount".as_ref(), "-o".as_ref(), "loop".as_ref(), image.as_os_str(), self.root.as_os_str()])?;
        *self.state.lock() = State { mounted: true, ..State::default() };
        Ok(())
    }

    /// Stalls it: whoever writes or syncs waits until [`Self::thaw`]. True if the kernel says that it is frozen.
    pub(super) fn freeze(&self) -> Result<bool> {
        self.state.lock().frozen = true;
        let freeze = ["fsfreeze".as_ref(), "-f".as_ref(), self.root.as_os_str()];
        tool::run(&freeze)?;
        // It can be frozen once only.
        Ok(tool::run(&freeze).is_err_and(|error| error.to_string().contains("busy")))
    }

    pub(super) fn thaw(&self) -> Result<()> {
        if std::mem::take(&mut self.state.lock().frozen) {
            tool::run(&["fsfreeze".as_ref(), "-u".as_ref(), self.root.as_os_str()])?;
        }
        Ok(())
    }

    /// Fills it to the last block, also what became free since the last call. True if a write was then seen to fail.
    pub(super) fn fill(&self) -> Result<bool> {
        if self.image.is_none() {
            bail!("only a disk of its own is filled: start the cluster with loop disks");
        }
        let file = fs_err::OpenOptions::new().create(true).append(true).open(self.ballast())?;
        let mut length = i64::try_from(file.metadata()?.len())?;
        let mut piece: i64 = 1 << 30;
        while piece >= 4096 {
            match fallocate(file.file(), FallocateFlags::empty(), length, piece) {
                Ok(()) => length += piece,
                Err(Errno::ENOSPC | Errno::EFBIG) => piece /= 2,
                Err(error) => return Err(error).context("filling the disk"),
            }
        }
        let probe = self.root.join("probe");
        let written = File::create(&probe).and_then(|mut file| {
            file.write_all(&[1; 64 << 10])?;
            file.sync_all()
        });
        // The probe may not be there at all, for the same want of room.
        let _ = std::fs::remove_file(&probe);
        Ok(written.is_err_and(|error| error.kind() == ErrorKind::StorageFull))
    }

    /// Gives the room back.
    pub(super) fn free(&self) -> Result<()> {
        match std::fs::remove_file(self.ballast()) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error).context("removing the ballast"),
            _ => Ok(()),
        }
    }

    fn ballast(&self) -> PathBuf {
        self.root.join("ballast")
    }

    /// Empties it, as for a new machine.
    pub(super) fn wipe(&self) -> Result<()> {
        match std::fs::remove_dir_all(self.data()) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error).context("emptying a data directory"),
            _ => Ok(()),
        }
    }

    /// Removes the data for good. The mount, if any, is gone by now.
    pub(super) fn remove(&self) -> Result<()> {
        match &self.image {
            Some(image) => Ok(fs_err::remove_file(image)?),
            None => Ok(fs_err::remove_dir_all(&self.root)?),
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed step fails the test")]
mod tests {
    use super::*;

    /// The file systems that are mounted at a place: one on top of the other if it was mounted twice.
    fn mounted_at(path: &Path) -> usize {
        let table = std::fs::read_to_string("/proc/mounts").unwrap();
        table.lines().filter(|line| line.split(' ').nth(1) == path.to_str()).count()
    }

    #[test]
    fn a_disk_that_is_in_use_is_never_mounted_twice() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let mount = folder.path().join("mount");
        let disk = Disk::make(DiskKind::Loop { mib: 16 }, folder.path(), mount.clone()).unwrap();
        let held = File::create(mount.join("held")).unwrap();
        let refused = disk.power_on().unwrap_err();
        assert!(refused.to_string().contains("busy"), "{refused}");
        assert_eq!(mounted_at(&mount), 1);
        drop(held);
        disk.power_on().unwrap();
        assert_eq!(mounted_at(&mount), 1, "and the next try finds it as it is");
        disk.unmount().unwrap();
        assert_eq!(mounted_at(&mount), 0);
    }
}
