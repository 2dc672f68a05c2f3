"""Names of files and folders: any text a user may write becomes one safe name, and two texts never share one."""

import hashlib
import re
import unicodedata

#: digits of a key that are shown, and that end a step's folder name
SHORT = 12
#: bytes of UTF-8 that a name may have on every file system in use, less what temporary names add (`.x.<pid>.tmp`)
LONGEST = 200


def short(key: str) -> str:
    return key[:SHORT]


def safe_name(text: str) -> str:
    """`text` where it can be a file name as it is; otherwise a readable part of it and a hash of the whole.

    The hash is set off by `~`, which no unchanged name holds; so different texts get different names.
    """
    kept = "".join("_" if _unsafe(letter) else letter for letter in text)
    if kept == text and text[:1] not in ("", ".") and len(text.encode()) <= LONGEST:
        return text
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:SHORT]
    return f"{_cut(kept.lstrip('.'), LONGEST - SHORT - 1)}~{digest}"


def folder_name(name: str, key: str) -> str:
    """The folder of a finished step: `<name>-<key12>`."""
    return f"{_cut(safe_name(name), LONGEST)}-{short(key)}"


def key_of(folder: str) -> str | None:
    """The 12 digits that end a step's folder name; None where the name is none that `folder_name` gives."""
    match = re.fullmatch(r"(?s).+-([0-9a-z]{12})", folder)
    return match.group(1) if match else None


def _unsafe(letter: str) -> bool:
    return letter in "/\\~\0" or unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp")


def _cut(text: str, most: int) -> str:
    return text.encode()[:most].decode(errors="ignore")
