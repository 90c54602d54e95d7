//! The access control list of a socket (acl(5)), as the attribute that the kernel keeps it in.

use rustix::fs::{XattrFlags, getxattr, removexattr, setxattr};
use rustix::io::Errno;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;

/// The attribute that holds an access control list, and its version (`linux/posix_acl_xattr.h`).
pub(super) const ATTRIBUTE: &str = "system.posix_acl_access";
const ACL_VERSION: u32 = 2;

/// The largest list that is read: the kernel's own limit for attributes.
const LARGEST_ACL: usize = 65_536;

/// Tags of entries.
mod tag {
    pub(super) const USER_OBJECT: u16 = 0x01;
    pub(super) const USER: u16 = 0x02;
    pub(super) const GROUP_OBJECT: u16 = 0x04;
    pub(super) const GROUP: u16 = 0x08;
    pub(super) const MASK: u16 = 0x10;
    pub(super) const OTHER: u16 = 0x20;
}

/// The id of entries that have none.
const NO_ID: u32 = u32::MAX;

/// An entry of an access control list.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct Entry {
    tag: u16,
    id: u32,
    permissions: u16,
}

/// Refuses the user. The mask stays what the group's permissions were, so that nobody else gains or loses.
pub(super) fn refuse(entries: &mut Vec<Entry>, uid: u32) {
    entries.retain(|entry| entry.tag != tag::USER || entry.id != uid);
    if !entries.iter().any(|entry| entry.tag == tag::MASK) {
        let group = entries.iter().find(|entry| entry.tag == tag::GROUP_OBJECT);
        let permissions = group.map_or(0, |group| group.permissions);
        entries.push(Entry { tag: tag::MASK, id: NO_ID, permissions });
    }
    entries.push(Entry { tag: tag::USER, id: uid, permissions: 0 });
    entries.sort_unstable();
}

/// Takes the refusal away.
pub(super) fn allow(entries: &mut Vec<Entry>, uid: u32) {
    let refusal = Entry { tag: tag::USER, id: uid, permissions: 0 };
    entries.retain(|entry| *entry != refusal);
    if !entries.iter().any(|entry| matches!(entry.tag, tag::USER | tag::GROUP)) {
        entries.retain(|entry| entry.tag != tag::MASK);
    }
}

/// Changes the list of a socket. A list that says no more than the mode is taken away.
pub(super) fn change(path: &Path, how: impl FnOnce(&mut Vec<Entry>)) -> io::Result<()> {
    let metadata = fs::symlink_metadata(path)?;
    if !metadata.file_type().is_socket() {
        return Ok(());
    }
    let mut buffer = vec![0; LARGEST_ACL];
    let mut entries = match getxattr(path, ATTRIBUTE, buffer.as_mut_slice()) {
        Ok(length) => decode(buffer.get(..length).unwrap_or(&[])),
        Err(Errno::NODATA) => of_mode(metadata.permissions().mode()),
        Err(error) => return Err(error.into()),
    };
    how(&mut entries);
    if entries.iter().any(|entry| matches!(entry.tag, tag::USER | tag::GROUP)) {
        setxattr(path, ATTRIBUTE, &encode(&entries), XattrFlags::empty())?;
        return Ok(());
    }
    match removexattr(path, ATTRIBUTE) {
        Err(Errno::NODATA) | Ok(()) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The list that a mode stands for.
fn of_mode(mode: u32) -> Vec<Entry> {
    let permissions = |shift: u32| u16::try_from(mode >> shift & 7).unwrap_or(0);
    vec![
        Entry { tag: tag::USER_OBJECT, id: NO_ID, permissions: permissions(6) },
        Entry { tag: tag::GROUP_OBJECT, id: NO_ID, permissions: permissions(3) },
        Entry { tag: tag::OTHER, id: NO_ID, permissions: permissions(0) },
    ]
}

fn encode(entries: &[Entry]) -> Vec<u8> {
    let mut bytes = ACL_VERSION.to_le_bytes().to_vec();
    for entry in entries {
        bytes.extend(entry.tag.to_le_bytes());
        bytes.extend(entry.permissions.to_le_bytes());
        bytes.extend(entry.id.to_le_bytes());
    }
    bytes
}

fn decode(bytes: &[u8]) -> Vec<Entry> {
    let entries = bytes.get(4..).unwrap_or(&[]);
    entries
        .chunks_exact(8)
        .filter_map(|entry| {
            Some(Entry {
                tag: u16::from_le_bytes(entry.get(..2)?.try_into().ok()?),
                permissions: u16::from_le_bytes(entry.get(2..4)?.try_into().ok()?),
                id: u32::from_le_bytes(entry.get(4..8)?.try_into().ok()?),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::credentials::with_rights_of;
    use std::os::unix::net::{UnixListener, UnixStream};

    #[test]
    fn a_refusal_comes_and_goes_and_leaves_the_mode() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("docker.sock");
        let _listener = UnixListener::bind(&path).unwrap();
        std::os::unix::fs::chown(&path, Some(0), Some(12_345)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o660)).unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let connects = |uid: u32| {
            with_rights_of(uid, uid, &[12_345], || UnixStream::connect(&path).is_ok()).unwrap()
        };
        assert!(connects(12_346));
        change(&path, |entries| refuse(entries, 12_346)).unwrap();
        // Once more changes nothing.
        change(&path, |entries| refuse(entries, 12_346)).unwrap();
        assert!(!connects(12_346));
        // Another member of the group goes on.
        assert!(connects(12_347));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        change(&path, |entries| refuse(entries, 12_347)).unwrap();
        change(&path, |entries| allow(entries, 12_346)).unwrap();
        assert!(connects(12_346) && !connects(12_347));
        change(&path, |entries| allow(entries, 12_347)).unwrap();
        assert!(connects(12_347));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        let mut buffer = vec![0; 1024];
        assert_eq!(getxattr(&path, ATTRIBUTE, buffer.as_mut_slice()), Err(Errno::NODATA));
    }
}
