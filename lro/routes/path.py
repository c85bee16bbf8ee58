"""The path of a call: what of it is ours to read, as it was sent, and how its segments are decoded.

Which path is which call is left to the routes.
"""

import re
from urllib.parse import quote, unquote

from starlette.types import Scope

__all__ = ["decode", "relative_path"]


def relative_path(scope: Scope) -> str:
    """Return the path below the mount as it was sent, percent-encodings and all.

    Routing on the decoded path would let `%3Acancel` pass for a verb and `%2F` for a separator (http.proto).
    """
    root: str = scope.get("root_path", "")
    raw = scope.get("raw_path")
    path = quote(scope["path"], safe="/:") if raw is None else raw.decode("latin-1").partition("?")[0]
    segments = path.split("/")
    depth = root.rstrip("/").count("/")
    if unquote("/".join(segments[: depth + 1])) != root.rstrip("/"):
        return quote(scope["path"].removeprefix(root), safe="/:")  # the prefix itself was encoded oddly
    return "/" + "/".join(segments[depth + 1 :])


def decode(segments: str) -> str:
    """Decode a path once, but for `%2F`, which is no separator (http.proto)."""
    return unquote(re.sub("%2[fF]", "%252F", segments))
