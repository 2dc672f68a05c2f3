"""What it means that a disk refuses, and what to do about it, in one line: what happened, where, what helps."""

import errno
import os
from pathlib import Path

#: exit code of a worker whose disk failed it (EX_IOERR of sysexits.h)
FAILED = 74
#: free bytes below which a disk counts as full, whatever a library made of the error
LEAST = 1 << 16

FULL = "no space is left on its disk; make room there (`cdpo gc` shows what can go)"
READ_ONLY = "it is read-only; make it writable, or name another store (`--store`)"
SILENT = "its disk or network file system does not answer; see to that (`dmesg` may say more)"
MEANINGS = {
    errno.ENOSPC: FULL,
    errno.EDQUOT: "the disk quota is used up; make room (`cdpo gc` shows what can go)",
    # a limit of the shell or the batch system (ulimit -f)
    errno.EFBIG: "a file became larger than is allowed here; raise `ulimit -f`",
    errno.EROFS: READ_ONLY,
    errno.EACCES: "permission denied; see to its owner and mode, or name another store (`--store`)",
    errno.EPERM: "not permitted; see to its owner and mode, or name another store (`--store`)",
    errno.EXDEV: "the folders of one store must be on one file system; make it one, or name another store (`--store`)",
    errno.ENOLCK: "its file system gives no more locks; see to its lock service",
    **dict.fromkeys(
        (
            *(errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.EREMOTEIO, errno.ENODEV, errno.ENXIO, errno.ETIMEDOUT),
            *(errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ESHUTDOWN),
        ),
        SILENT,
    ),
}


def explained(error: BaseException, folder: Path) -> str | None:
    """Why `error` came of the disk that holds `folder`, or of the one that it names; None where neither is to blame.

    Libraries wrap the system's errors in their own, or lose them (torch.save, safetensors): the chain of causes is
    looked through, and then the disk itself is looked at.
    """
    each: BaseException | None = error
    while each is not None:
        if isinstance(each, OSError) and each.errno in MEANINGS:
            return meaning(each) or f"{folder}: {MEANINGS[each.errno]} ({each.strerror})"
        if type(each).__module__.startswith("safetensors") and f"(os error {errno.ENOSPC})" in str(each):
            return f"{folder}: {FULL} ({each})"
        each = each.__cause__ or each.__context__
    trouble = examined(folder)
    return trouble and f"{trouble} ({error})"


def meaning(error: OSError) -> str | None:
    """What an error of the system that names a file means; None where that is not for this module to say."""
    if error.filename is None or error.errno not in MEANINGS:
        return None
    return f"{error.filename}: {MEANINGS[error.errno]} ({error.strerror})"


def examined(folder: Path) -> str | None:
    """What is wrong with a folder, or the disk that holds it; None where nothing is seen to be."""
    try:
        found = os.statvfs(folder)
    except (FileNotFoundError, NotADirectoryError):
        return f"{folder}: it is no longer there; was it removed, or its file system unmounted? bring it back"
    except OSError as error:
        return f"{folder}: {MEANINGS.get(error.errno or 0, SILENT)} ({error.strerror})"
    if found.f_flag & os.ST_RDONLY:
        return f"{folder}: {READ_ONLY}"
    if found.f_bavail * found.f_frsize < LEAST or (found.f_files and not found.f_favail):
        return f"{folder}: {FULL}"
    return None
