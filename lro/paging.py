"""Page tokens: where a listing goes on, for nobody to read, to make or to take elsewhere (AIP-158, *Opacity*).

A token is good for the listing, the filter and the caller that it was made for, and for three days. It carries no
authorization. What it holds is masked: it may name an operation that the caller was not shown.
"""

import base64
import hashlib
import hmac
import json
import secrets
import struct
from collections.abc import Sequence
from datetime import timedelta

from itsdangerous import BadData, TimestampSigner, want_bytes

from lro.clock import Clock, moment
from lro.errors import invalid

__all__ = ["MAX_AGE", "PageTokens"]

MAX_AGE = timedelta(days=3)

_NONCE, _BLOCK = 12, 32  # bytes
_TIME = struct.Struct(">q")


class PageTokens:
    """Makes and reads the tokens of one listing.

    Args:
        secret: The key that all processes of the database share.
        listing: All that must be the same on the next page, JSON values.
        clock: Where the age of a token is read.
        longest: Characters of a token that is looked at; the longest name makes one of 828.
    """

    def __init__(self, secret: bytes, listing: Sequence[str | None], clock: Clock, *, longest: int) -> None:
        salt = hashlib.sha256(json.dumps(listing).encode()).digest()
        self._clock = clock
        self._longest = longest
        self._signer = _Signer(secret, salt, digest_method=hashlib.sha256)
        self._signer.clock = clock
        self._mask = hmac.digest(secret, b"page token", "sha256")

    def seal(self, after: tuple[int, str]) -> str:
        """Return the token of a page that begins after this (created_at, name)."""
        created_at, name = after
        nonce = secrets.token_bytes(_NONCE)
        signed = self._signer.sign(_TIME.pack(created_at) + name.encode())
        return _encode(nonce + self._masked(nonce, signed))

    def open(self, token: str) -> tuple[int, str]:
        """Return what a token stands for.

        Raises:
            InvalidArgument: It is not one of this listing, or has expired; reason INVALID_PAGE_TOKEN.
        """
        try:
            if len(token) > self._longest:
                raise ValueError(len(token))
            sealed = _decode(token)
            signed = self._masked(sealed[:_NONCE], sealed[_NONCE:])
            value, made_at = self._signer.unsign(signed, return_timestamp=True)
        except (BadData, ValueError) as error:
            what = "is not a token of this listing: begin again without one"
            raise invalid("pageToken", what, reason="INVALID_PAGE_TOKEN") from error
        if moment(self._clock.now()) - made_at > MAX_AGE:
            what = "has expired: begin again without one"
            raise invalid("pageToken", what, reason="INVALID_PAGE_TOKEN")
        return _TIME.unpack_from(value)[0], value[_TIME.size :].decode()

    def _masked(self, nonce: bytes, text: bytes) -> bytes:
        """Return the text with a stream of bytes laid over it that only the secret and the nonce give; and back."""
        blocks = range(-(-len(text) // _BLOCK))
        stream = b"".join(hmac.digest(self._mask, nonce + bytes([block]), "sha256") for block in blocks)
        return bytes(one ^ other for one, other in zip(text, stream, strict=False))


class _Signer(TimestampSigner):
    """Signs with the time of our clock, and takes a signature in the one form in which it was made."""

    clock: Clock

    def get_timestamp(self) -> int:
        return self.clock.now() // 1_000_000

    def verify_signature(self, value: str | bytes, sig: str | bytes) -> bool:
        """Compare the signatures as they are written: decoding one, as the base class does, overlooks bytes amiss."""
        return hmac.compare_digest(self.get_signature(value), want_bytes(sig))


def _encode(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _decode(token: str) -> bytes:
    """Return what `_encode` made a token of.

    Raises:
        ValueError: It was made otherwise.
    """
    raw = base64.b64decode(token.encode("ascii") + b"=" * (-len(token) % 4), altchars=b"-_", validate=True)
    if _encode(raw) != token:
        msg = "its last character has bits too many"
        raise ValueError(msg)
    return raw
