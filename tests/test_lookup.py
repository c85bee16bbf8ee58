"""Look-ups: what a caller may not see is refused in one way; and no room of the API side finds records by itself."""

import ast
from pathlib import Path
from typing import get_args

import pytest

import lro
from lro import Operations
from lro.errors import NotFound, PermissionDenied
from lro.lookup import Lookup
from lro.principal import ANYTHING, Permission, Scope
from lro.store import Store
from tests.records import NAME, record

ROOMS = Path(lro.__file__).parent
MAY: dict[str, set[str]] = {
    "operations.py": {"insert", "secret"},
    "lookup.py": {"get", "update", "list"},
    "waits.py": {"watch"},
    **{f"routes/{room.name}": set() for room in (ROOMS / "routes").glob("*.py")},
}


def uses_of_the_store(source: str) -> set[str]:
    """Return what a module does with the store: the methods that it calls, and "as it is" for any other use."""
    tree = ast.parse(source)
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr.strip("_") == "store" and isinstance(node.ctx, ast.Load):
            above = parents[node]
            found.add(above.attr if isinstance(above, ast.Attribute) else "as it is")
    return found


@pytest.mark.parametrize("room", MAY)
def test_only_the_room_of_look_ups_finds_records(room: str) -> None:
    assert uses_of_the_store((ROOMS / room).read_text(encoding="utf-8")) <= MAY[room]


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("await self.store.get(name)", {"get"}),
        ("partial(operations.store.update, name)", {"update"}),
        ("getattr(self._store, 'get')", {"as it is"}),
        ("found = operations.store", {"as it is"}),
        ("self.store = store", set()),
    ],
)
def test_the_checker_sees_every_use(source: str, found: set[str]) -> None:
    assert uses_of_the_store(source) == found


FOREIGN = record(owner="ann", tenant="books")


@pytest.mark.parametrize("permission", get_args(Permission))
@pytest.mark.parametrize("scope", [Scope("bob"), Scope(tenant="music"), Scope("ann", "music"), Scope("")], ids=str)
async def test_a_refusal_does_not_tell_why(store: Store, permission: Permission, scope: Scope) -> None:
    for conceal, kind in (("permission_denied", PermissionDenied), ("not_found", NotFound)):
        lookup = Lookup(store, conceal)  # type: ignore[arg-type]  # one of the two
        refused: set[str] = set()
        for found in (FOREIGN, FOREIGN._replace(deleted_at=1), None):
            with pytest.raises(kind) as caught:
                lookup.seen(found, NAME, permission, scope)
            refused.add(caught.value.status.to_json())
        with pytest.raises(kind) as caught:
            raise lookup.refusal(NAME, permission, None)
        refused.add(caught.value.status.to_json())
        assert len(refused) == 1


async def test_who_may_see_everything_hears_that_nothing_is_there(store: Store) -> None:
    lookup = Lookup(store, "permission_denied")

    with pytest.raises(NotFound, match=NAME):
        await lookup.find(NAME, "operations.get", ANYTHING)
    assert lookup.seen(FOREIGN, NAME, "operations.get", ANYTHING) == FOREIGN


async def test_a_way_to_conceal_that_there_is_not_is_refused(store: Store) -> None:
    with pytest.raises(ValueError, match="'permission_denied' or 'not_found'"):
        Operations(store, conceal="nothing")  # type: ignore[arg-type]  # that is the point
