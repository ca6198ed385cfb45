//! Files and folders around the database: their names, their permissions, and the lock.

use std::fs::{DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// The file that has the name of another one with `end` after it.
pub fn beside(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(end);
    name.into()
}

/// Whether there is a file with something in it.
pub fn has_content(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|file| file.len() > 0)
}

/// The folder that a file or folder is in.
pub fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Creates a folder if it is missing. It is there after a power cut, too: the folder around each new one is synced.
pub fn make_folder(folder: &Path) -> std::io::Result<()> {
    let new: Vec<_> = folder.ancestors().take_while(|f| !f.as_os_str().is_empty() && !f.exists()).collect();
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    new.into_iter().try_for_each(|new| sync_names(folder_of(new)))
}

/// Syncs the names in a folder, if that is possible: the folder may belong to another user, or be on a file system that
/// cannot.
pub fn sync_names(folder: &Path) -> std::io::Result<()> {
    use std::io::ErrorKind::{InvalidInput, PermissionDenied, Unsupported};
    match File::open(folder).and_then(|folder| folder.sync_all()) {
        Err(error) if matches!(error.kind(), InvalidInput | PermissionDenied | Unsupported) => Ok(()),
        done => done,
    }
}

/// Free bytes of the volume of a folder; `None` if its file system does not say.
pub fn free_bytes(folder: &Path) -> Option<u64> {
    // A path without a folder is in the working directory.
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    rustix::fs::statvfs(folder).ok().map(|volume| volume.f_bavail * volume.f_frsize)
}

/// Locks `<database>.lock` for as long as the returned file is open, so that one server at a time writes. `None` if
/// another program has the lock.
pub fn lock(database: &Path) -> std::io::Result<Option<File>> {
    lock_file(&beside(database, ".lock"))
}

/// Locks a file, and makes it if it is missing, for as long as the returned file is open. `None` if another program has
/// the lock.
pub fn lock_file(path: &Path) -> std::io::Result<Option<File>> {
    let file = OpenOptions::new().create(true).truncate(false).read(true).write(true).mode(0o600).open(path)?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Makes sure that the database exists and that only its owner can read it; SQLite gives the files
/// beside it the same permissions.
pub fn private_file(path: &Path) -> std::io::Result<()> {
    let file = OpenOptions::new().create(true).truncate(false).read(true).write(true).mode(0o600).open(path)?;
    let mut permissions = file.metadata()?.permissions();
    if permissions.mode() & 0o077 != 0 {
        permissions.set_mode(0o600);
        file.set_permissions(permissions)?;
    }
    Ok(())
}
