"""Rules: how a service takes calls, whatever they are for: who may call, from where, how much, and how strictly.

Made once where routes are made, and asked by every exchange.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal

from lro.errors import LROError
from lro.limits import Limits
from lro.principal import Authorization, Permission, Scope, denied

__all__ = ["Refusal", "Rules", "UnknownFields", "rules_of"]

UnknownFields = Literal["reject", "ignore"]

Refusal = Callable[[str, Permission, Scope | None], LROError]
"""What a caller hears, by name, permission and scope, None for a call that was denied whole."""


def _denied(name: str, permission: Permission, scope: Scope | None) -> LROError:
    del scope
    return denied(permission, name)


@dataclass(frozen=True, slots=True)
class Rules:
    """How calls are taken.

    Attributes:
        auth: The two hooks.
        limits: How large a body may be, how deep, and how long it may take.
        lenient: Ignore parameters and body members that are not known, instead of refusing them.
        origins: Whose pages may change something from a browser, beside the service's own.
        refusal: What a caller hears whose call for one operation is denied.
    """

    auth: Authorization
    limits: Limits = field(default_factory=Limits)
    lenient: bool = False
    origins: frozenset[str] = frozenset()
    refusal: Refusal = _denied


def rules_of(
    auth: Authorization,
    *,
    limits: Limits | None = None,
    unknown_fields: UnknownFields = "reject",
    allowed_origins: Iterable[str] = (),
    refusal: Refusal = _denied,
) -> Rules:
    """Return the rules that the options of routes say.

    Raises:
        TypeError: auth has not the two hooks.
        ValueError: unknown_fields is neither of its words, or an allowed origin is none.
    """
    if not callable(getattr(auth, "authenticate", None)) or not callable(getattr(auth, "authorize", None)):
        msg = f"auth={auth!r}: give an object with authenticate and authorize, or AllowAnonymous() for no checks"
        raise TypeError(msg)
    if unknown_fields not in ("reject", "ignore"):
        msg = f"unknown_fields={unknown_fields!r}: use 'reject' or 'ignore'"
        raise ValueError(msg)
    origins = frozenset([allowed_origins] if isinstance(allowed_origins, str) else allowed_origins)
    for origin in origins:
        scheme, separator, host = origin.partition("://")
        if scheme not in ("http", "https") or not separator or not host or "/" in host:
            msg = f"allowed_origins: {origin!r} is no origin: write one as in https://app.example.com"
            raise ValueError(msg)
    return Rules(auth, limits or Limits(), unknown_fields == "ignore", origins, refusal)
