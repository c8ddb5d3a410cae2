//! A disk whose power can be cut: ext4 on a loop device.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

/// EXT4_IOC_SHUTDOWN with the flag that drops what the journal has not yet written: exactly what was not synced is lost.
/// Perl is part of every Debian and Ubuntu, and calling ioctl from it needs no unsafe code here.
const CUT: &str = r#"open(my $f, "<", $ARGV[0]) or die "open: $!\n"; my $flag = pack("L", 2); ioctl($f, 0x8004587d, $flag) or die "ioctl: $!\n";"#;

/// An ext4 file system on a loop device, unmounted and deleted when dropped. Needs root, or sudo without a password.
#[derive(Debug)]
pub struct LoopDisk {
    folder: TempDir,
    mounted: bool,
}

impl LoopDisk {
    /// Makes and mounts a disk of so many MiB.
    pub fn new(mebibytes: u64) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("quorate-disk-").tempdir()?;
        fs_err::File::create(folder.path().join("image"))?.set_len(mebibytes << 20)?;
        fs_err::create_dir(folder.path().join("mount"))?;
        let mut disk = LoopDisk { folder, mounted: false };
        root(&["mkfs.ext4", "-q", &disk.image()])?;
        disk.mount()?;
        Ok(disk)
    }

    /// Where it is mounted.
    pub fn path(&self) -> PathBuf {
        self.folder.path().join("mount")
    }

    /// Cuts the power: from now on every write fails, and what was not synced is gone after [`Self::power_on`].
    pub fn power_off(&self) -> Result<()> {
        root(&["perl", "-e", CUT, &text(&self.path())])
    }

    /// Mounts it again, as a machine does when it comes back. No process may hold a file of it any more.
    pub fn power_on(&mut self) -> Result<()> {
        root(&["umount", &text(&self.path())])?;
        self.mounted = false;
        self.mount()
    }

    fn mount(&mut self) -> Result<()> {
        root(&["mount", "-o", "loop", &self.image(), &text(&self.path())])?;
        self.mounted = true;
        let owner = format!("{}:{}", nix::unistd::getuid(), nix::unistd::getgid());
        root(&["chown", &owner, &text(&self.path())])
    }

    fn image(&self) -> String {
        text(&self.folder.path().join("image"))
    }
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        if self.mounted && root(&["umount", &text(&self.path())]).is_err() {
            eprintln!("{} stays mounted: a process still holds a file of it", self.path().display());
        }
    }
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn root(words: &[&str]) -> Result<()> {
    let mut words = words.to_vec();
    if !nix::unistd::geteuid().is_root() {
        words.splice(..0, ["sudo", "-n"]);
    }
    let search = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let output = Command::new(words[0])
        .args(&words[1..])
        .env("PATH", search)
        .output()
        .with_context(|| format!("running {words:?}"))?;
    ensure!(output.status.success(), "{words:?} failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}
