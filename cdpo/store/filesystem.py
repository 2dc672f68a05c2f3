"""What kind of file system a folder is on, and whether `flock` can be trusted there."""

import errno
import fcntl
import functools
import os
import re
from pathlib import Path

#: file systems that several machines mount, by the kernel's name. Where they have flock at all, a mount option, a
#: restarted server or an old version makes it hold on one machine only, and nothing tells.
NETWORK = (
    *("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "coda", "ncpfs", "virtiofs"),
    *("lustre", "gpfs", "beegfs", "ceph", "glusterfs", "orangefs", "pvfs2", "panfs", "wekafs", "acfs", "gfs2", "ocfs2"),
)
#: programs that serve a local disk through FUSE; all others may be serving anything
LOCAL_FUSE = ("fuseblk", "fuse.fuse-overlayfs")
#: how a file system says that it has no flock
WITHOUT = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


def kind(path: Path, mounts: str = "/proc/self/mountinfo") -> str:
    """The kernel's name of the file system that holds the existing `path`: ext4, nfs4, lustre, fuse.sshfs, ..."""
    wanted, found, longest = os.path.realpath(path), "unknown", 0
    with open(mounts, encoding="utf-8", errors="surrogateescape") as stream:
        for line in stream:
            before, _, after = line.partition(" - ")
            point = re.sub(r"\\([0-7]{3})", lambda each: chr(int(each[1], 8)), before.split()[4])
            # of two mounts on one point the later hides the earlier
            if (wanted + "/").startswith(point.rstrip("/") + "/") and len(point) >= longest:
                found, longest = after.split()[0], len(point)
    return found


@functools.cache
def has_flock(folder: Path) -> bool:
    """Whether a `flock` taken in this existing folder holds against every process that can reach it."""
    called = kind(folder)
    if called in NETWORK or (called.startswith("fuse") and called not in LOCAL_FUSE):
        return False
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in WITHOUT:
            return False
        raise
    finally:
        os.close(descriptor)
    return True
