"""The path of a call: what of it is ours to read, as it was sent, and what a resource's name looks like in it.

The verb stands behind a literal colon, segments between literal slashes; only then is anything decoded
(google/api/http.proto). Which path is which call is left to the routes.
"""

import re
from urllib.parse import quote, unquote, unquote_to_bytes

from starlette.types import Scope

from lro.errors import invalid

__all__ = ["check_name", "decode", "relative_path", "sent_path"]

MAX_NAME = 600  # characters: a parent has 512 at most

_PLAIN = re.compile(r"[A-Za-z0-9._~-]+(?:/[A-Za-z0-9._~-]+)*")
_DOTS = re.compile(r"(?:.*/)?\.\.?(?:/.*)?")


def sent_path(scope: Scope) -> str:
    """Return the path as it was sent, percent-encodings and all; a server that hands on no raw one loses them."""
    path: str = scope["path"]
    raw: bytes | None = scope.get("raw_path")
    if raw is not None:
        sent = raw.partition(b"?")[0].decode("latin-1")
        if sent == path or unquote_to_bytes(sent).decode(errors="replace") == path:
            return sent
    return quote(path, safe="/:", errors="replace")  # a middleware changed the one and not the other


def relative_path(scope: Scope) -> str:
    """Return the path below the mount as it was sent; "" if the mount took half a segment for a whole one.

    Routing on the decoded path would let `%3Acancel` pass for a verb and `%2F` for a separator.
    """
    root: str = scope.get("root_path", "").rstrip("/")
    if root and not scope["path"].startswith(root):  # a proxy took its prefix off, and told the app: root_path="/api"
        root = root.removeprefix(scope.get("app_root_path", "").rstrip("/"))
    segments = sent_path(scope).split("/")
    depth = root.count("/") + 1
    return "/" + "/".join(segments[depth:]) if unquote("/".join(segments[:depth])) == root else ""


def decode(segments: str) -> str:
    """Decode a path once, but for `%2F`, which is no separator."""
    return unquote(re.sub("%2[fF]", "%252F", segments)) if "%" in segments else segments


def check_name(name: str) -> None:
    """Refuse what can't be a resource's name, whichever there are.

    Raises:
        InvalidArgument: It is too long, or a segment is empty, `.` or `..`, or has other characters.
    """
    if len(name) > MAX_NAME:
        raise invalid("name", f"is longer than {MAX_NAME} characters")
    if not _PLAIN.fullmatch(name) or ("." in name and _DOTS.fullmatch(name)):
        raise invalid("name", "is no resource name: segments of letters, digits and . _ ~ - with one / between them")
