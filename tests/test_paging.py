"""Page tokens: good for one listing, for its caller, for three days; for nobody to read, make or change."""

import base64
import secrets
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from itsdangerous import TimestampSigner

from lro.errors import InvalidArgument
from lro.limits import Limits
from lro.paging import PageTokens
from lro.testing.contract import START, ManualClock
from tests.records import HOUR, NAME, SECOND

SECRET = bytes(range(32))
LISTING = ("projects/p", "done = true", "ann", None, "ann", "books")
AFTER = (START, f"projects/p/{NAME}")
LONGEST = Limits().page_token

TEXTS = st.none() | st.text(max_size=10)
LISTINGS = st.tuples(*[TEXTS] * 6)


def tokens(secret: bytes = SECRET, listing: tuple[str | None, ...] = LISTING, now: int = START) -> PageTokens:
    return PageTokens(secret, listing, ManualClock(now), longest=LONGEST)


def assert_refused(token: str, by: PageTokens | None = None) -> None:
    with pytest.raises(InvalidArgument) as caught:
        (by or tokens()).open(token)
    assert caught.value.reason == "INVALID_PAGE_TOKEN"
    assert caught.value.metadata == {"field": "pageToken"}
    assert token not in caught.value.message or len(token) < 3


@given(st.integers(-(2**63), 2**63 - 1), st.text(st.characters(codec="utf-8"), max_size=100), LISTINGS)
def test_a_token_stands_for_what_it_was_made_of(created_at: int, name: str, listing: tuple[str | None, ...]) -> None:
    token = tokens(listing=listing).seal((created_at, name))

    assert tokens(listing=listing).open(token) == (created_at, name)
    assert set(token) <= set(string.ascii_letters + string.digits + "-_")


def test_the_longest_name_makes_a_token_that_is_taken() -> None:
    after = (2**63 - 1, "p/" + "x" * 510 + "/" + NAME)
    token = tokens().seal(after)

    assert len(token) == 828 < LONGEST
    assert tokens().open(token) == after


def test_a_token_shows_nothing_of_what_it_holds() -> None:
    made = [tokens().seal(AFTER) for _ in range(100)]
    raw = [base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)) for token in made]

    assert len(set(made)) == 100
    assert all(NAME[-6:].encode() not in one and b"operations" not in one for one in raw)
    for at in range(len(raw[0])):
        assert len({one[at] for one in raw}) > 20, "no byte tells the time, a length or a version"


@given(LISTINGS, LISTINGS)
def test_a_token_is_of_no_use_in_another_listing(one: tuple[str | None, ...], other: tuple[str | None, ...]) -> None:
    token = tokens(listing=one).seal(AFTER)

    if one != other:
        assert_refused(token, tokens(listing=other))


def test_each_part_of_a_listing_counts_by_itself() -> None:
    made = {tokens(listing=listing).seal(AFTER): listing for listing in _neighbours()}
    for token, listing in made.items():
        assert tokens(listing=listing).open(token) == AFTER
        for other in made.values():
            if other != listing:
                assert_refused(token, tokens(listing=other))


def _neighbours() -> list[tuple[str | None, ...]]:
    found: list[tuple[str | None, ...]] = [LISTING, ("a", "b", "c", "", "", ""), ("a", "b,c", "", "", "", "")]
    for at in range(len(LISTING)):
        found += [(*LISTING[:at], value, *LISTING[at + 1 :]) for value in ("", "x", None, "null")]
    return list(dict.fromkeys(found))


def test_a_token_of_another_database_is_refused() -> None:
    assert_refused(tokens(bytes(32)).seal(AFTER))


def test_a_token_lasts_for_three_days() -> None:
    token = tokens().seal(AFTER)

    assert tokens(now=START + 72 * HOUR).open(token) == AFTER
    with pytest.raises(InvalidArgument, match="has expired: begin again without one"):
        tokens(now=START + 72 * HOUR + SECOND).open(token)
    assert_refused(token, tokens(now=START + 10_000 * HOUR))


def test_a_clock_that_is_set_back_spoils_no_token() -> None:
    assert tokens(now=START - HOUR).open(tokens().seal(AFTER)) == AFTER


def test_no_bit_of_a_token_can_be_changed() -> None:
    token = tokens().seal(AFTER)
    raw = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
    for at in range(len(raw) * 8):
        flipped = bytearray(raw)
        flipped[at // 8] ^= 1 << at % 8
        assert_refused(base64.urlsafe_b64encode(flipped).rstrip(b"=").decode())
    for at in range(len(token)):
        for bit in range(7):
            assert_refused(token[:at] + chr(ord(token[at]) ^ 1 << bit) + token[at + 1 :])


def test_no_part_of_a_token_is_one() -> None:
    token = tokens().seal(AFTER)
    for at in range(1, len(token)):
        assert_refused(token[:at])
        assert_refused(token[at:])


def test_nothing_can_be_added_to_a_token() -> None:
    token = tokens().seal(AFTER)
    for more in ("A", "=", "==", " ", "\n", ".", token):
        assert_refused(token + more)
        assert_refused(more + token)
    for _ in range(1000):  # whatever the mask makes of it
        assert_refused(token + secrets.token_urlsafe(3))


@settings(max_examples=300)
@given(st.text() | st.text(string.ascii_letters + string.digits + "-_", max_size=200))
def test_nothing_else_is_a_token(token: str) -> None:
    assert_refused(token)


@pytest.mark.parametrize("token", ["A" * (LONGEST + 1), "A" * 1_000_000, "\ud800", "ü", "\0", "..", "A"])
def test_what_can_be_none_is_refused(token: str) -> None:
    assert_refused(token)


def test_a_signature_alone_makes_no_token() -> None:
    """What was signed under the same secret for something else is not a position."""
    signed = TimestampSigner(SECRET).sign(b"x" * 20)
    assert_refused(base64.urlsafe_b64encode(bytes(12) + signed).rstrip(b"=").decode())
