"""A file system that misbehaves: put this folder on PYTHONPATH, and describe in $FAULTS what goes wrong.

    [{"event": "open", "below": "/path", "error": "EIO", "while": "/path/of/a/file", "program": "cdpo.engine.worker"}]

Python calls that an audit hook can see ("open", "os.scandir", "os.rename", "os.mkdir", "fcntl.flock", ...) and
"os.stat" fail with that error where they touch something below that path; as long as the file `while` exists, and in
processes whose command line holds `program`, where these are given. Everything else is the real thing.
"""

import errno
import json
import os
import sys

FAULTS = [
    fault
    for fault in json.loads(os.environ.get("FAULTS", "[]"))
    if "program" not in fault or any(fault["program"] in word for word in sys.orig_argv)
]
stat = os.stat
inside = False


def fail(event, arguments):
    for fault in FAULTS:
        if fault["event"] != event or not _touches(arguments[0], fault["below"]):
            continue
        if "while" in fault and not _exists(fault["while"]):
            continue
        number = getattr(errno, fault["error"])
        raise OSError(number, os.strerror(number), str(arguments[0]))


def hook(event, arguments):
    global inside
    if inside or not (event == "open" or event.startswith(("os.", "fcntl."))):
        return
    inside = True
    try:
        fail(event, arguments)
    finally:
        inside = False


def failing_stat(path, *arguments, **named):
    fail("os.stat", (path,))
    return stat(path, *arguments, **named)


def _touches(thing, below):
    if isinstance(thing, int):
        # a descriptor
        thing = os.readlink(f"/proc/self/fd/{thing}")
    if not isinstance(thing, (str, os.PathLike)):
        return False
    return (os.path.abspath(thing) + "/").startswith(below.rstrip("/") + "/")


def _exists(path):
    try:
        stat(path)
    except FileNotFoundError:
        return False
    return True


if FAULTS:
    if any(fault["event"] == "os.stat" for fault in FAULTS):
        os.stat = failing_stat
    sys.addaudithook(hook)
