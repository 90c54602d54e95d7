//! Acting with another user's rights, on one thread.

use nix::errno::Errno;
use nix::unistd::{Gid, Uid, setfsgid, setfsuid};
use std::io;
use std::thread;

/// Runs `work` on a thread of its own that has this user's rights to files, its groups included, and not root's. Only files
/// and sockets with a path: the thread is root's in every other respect.
///
/// # Errors
/// When the thread can't be started or its groups can't be changed.
pub fn with_rights_of<T: Send>(
    uid: u32,
    gid: u32,
    groups: &[u32],
    work: impl FnOnce() -> T + Send,
) -> io::Result<T> {
    thread::scope(|scope| {
        let thread =
            thread::Builder::new().name("rights".to_owned()).spawn_scoped(scope, || {
                // SAFETY: setgroups reads as many group ids as it is told, and the slice has so many. By the system call itself,
                // for that of the C library changes all threads; this thread ends afterwards.
                let changed =
                    unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) };
                Errno::result(changed)?;
                // Leaving user 0 takes the capabilities for files away, too (capabilities(7)).
                setfsgid(Gid::from_raw(gid));
                setfsuid(Uid::from_raw(uid));
                Ok::<T, Errno>(work())
            })?;
        match thread.join() {
            Ok(result) => result.map_err(io::Error::from),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::with_rights_of;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, chown};

    #[test]
    fn files_are_opened_as_somebody_else() {
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let file = directory.path().join("secret");
        fs::write(&file, "x").unwrap();
        chown(&file, Some(0), Some(12_345)).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        let reads = |groups: &[u32]| {
            with_rights_of(12_346, 12_346, groups, || fs::read(&file).is_ok()).unwrap()
        };
        assert!(reads(&[12_345]));
        assert!(!reads(&[]));
        // This thread is what it was.
        assert!(fs::read(&file).is_ok());
    }
}
