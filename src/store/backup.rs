//! Copying a whole database into a new file: a backup, or the way back from one. The file that is copied is only read.

use std::fs::File;
use std::os::unix::fs::{MetadataExt, fchown};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::check::{CheckError, check};
use super::damage::is_damage;
use super::files::{beside, folder_of, lock, lock_file, private_file, sync_names};
use super::open::is_another_programs;
use super::schema::{self, meta};

/// Why there is no new file.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    #[error("{0} exists: nothing is overwritten")]
    Exists(PathBuf),
    #[error("{0} is a database of another program")]
    Foreign(PathBuf),
    #[error("{0} is being written by another backup or restore")]
    Busy(PathBuf),
    #[error("{0} is in use by a server")]
    InUse(PathBuf),
    #[error("{0} cannot be copied: {1}")]
    Unfit(PathBuf, CheckError),
    #[error("{0} is damaged ({1}; {2} findings in all): `event-pipeline repair` saves the sound part")]
    Damaged(PathBuf, String, usize),
    #[error("{0}: {1}")]
    File(PathBuf, std::io::Error),
    #[error("copy to {0}: {1}")]
    Copy(PathBuf, rusqlite::Error),
}

/// As [`copy`], to where a server will open it.
///
/// # Errors
/// Those of [`copy`], and when a server runs there.
pub fn restore(from: &Path, into: &Path, progress: impl FnMut(u64)) -> Result<u64, CopyError> {
    let failed = |error| CopyError::File(into.to_owned(), error);
    let held = lock(into).map_err(failed)?.ok_or_else(|| CopyError::InUse(into.to_owned()))?;
    let folder = folder_of(into).metadata().map_err(failed)?;
    // Root restores; the server may run as another user, to whom the folder was given.
    let give = |file: &File| drop(fchown(file, Some(folder.uid()), Some(folder.gid())));
    give(&held);
    let events = copy(from, into, progress)?;
    give(&File::open(into).map_err(failed)?);
    Ok(events)
}

/// Copies the record as it is at one moment. A server may run on `from`, and store meanwhile; its write-ahead log grows as
/// long as the copy takes. The copy is checked and synced before it gets its name, so a file with that name is whole. A
/// server that is started on it begins another epoch. Returns how many events it has.
///
/// It goes to `<into>.partial` first, which is removed after an error, and used again where a killed copy left it.
///
/// # Errors
/// When `from` cannot be read, is damaged or of another format or program, or `into` cannot be written or exists. There is
/// no new file then.
pub fn copy(from: &Path, into: &Path, progress: impl FnMut(u64)) -> Result<u64, CopyError> {
    // A log beside the new file would be read as a part of it.
    let new = ["", "-wal", "-shm", "-journal"].map(|end| beside(into, end));
    if let Some(there) = new.iter().find(|file| file.symlink_metadata().is_ok()) {
        return Err(CopyError::Exists(there.clone()));
    }
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |error| CopyError::File(path, error)
    };
    // SQLite would make the file that is missing.
    File::open(from).map_err(failed(from))?;
    if is_another_programs(from).map_err(|error| CopyError::Unfit(from.to_owned(), error.into()))? {
        return Err(CopyError::Foreign(from.to_owned()));
    }
    let partial = beside(into, ".partial");
    private_file(&partial).map_err(failed(&partial))?;
    let held = lock_file(&partial).map_err(failed(&partial))?.ok_or_else(|| CopyError::Busy(partial.clone()))?;
    let copied = held.set_len(0).map_err(failed(&partial)).and_then(|()| {
        write(from, &partial)?;
        let events = look_at(from, &partial, progress)?;
        forget_the_original(&partial).map_err(|error| CopyError::Copy(partial.clone(), error))?;
        held.sync_all().map_err(failed(&partial))?;
        renameat_with(CWD, &partial, CWD, into, RenameFlags::NOREPLACE).map_err(|error| match error {
            rustix::io::Errno::EXIST => CopyError::Exists(into.to_owned()),
            error => CopyError::File(into.to_owned(), error.into()),
        })?;
        // A name that a power cut may take back is none.
        sync_names(folder_of(into)).map_err(failed(into)).inspect_err(|_| drop(std::fs::remove_file(into)))?;
        Ok(events)
    });
    if copied.is_err() {
        for file in ["", "-wal", "-shm", "-journal"].map(|end| beside(&partial, end)) {
            let _ = std::fs::remove_file(file);
        }
    }
    copied
}

/// Writes the copy. `VACUUM INTO` reads in one transaction, and leaves behind what deleted rows left in unused bytes.
fn write(from: &Path, partial: &Path) -> Result<(), CopyError> {
    let copied = schema::open_reader(from)
        .and_then(|source| source.execute("VACUUM INTO ?1", [partial.as_os_str().to_str()]).map(drop));
    copied.map_err(|error| match is_damage(&error) {
        true => CopyError::Damaged(from.to_owned(), error.to_string(), 1),
        false => CopyError::Copy(partial.to_owned(), error),
    })
}

/// The epoch belongs to the file that was copied. And the copy is one file, without a log.
fn forget_the_original(partial: &Path) -> rusqlite::Result<()> {
    let copy = schema::open_writer(partial)?;
    copy.pragma_update(None, "journal_mode", "DELETE")?;
    meta::set(&copy, meta::INODE, 0)
}

/// Checks the copy, and returns how many events it has.
fn look_at(from: &Path, partial: &Path, progress: impl FnMut(u64)) -> Result<u64, CopyError> {
    let (mut first, mut findings) = (None, 0);
    let found = |finding: String| {
        first.get_or_insert(finding);
        findings += 1;
    };
    let events = check(partial, found, progress).map_err(|error| CopyError::Unfit(from.to_owned(), error))?;
    match first {
        None => Ok(events),
        Some(first) => Err(CopyError::Damaged(from.to_owned(), first, findings)),
    }
}
