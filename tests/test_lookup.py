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


ROUTES = sorted((ROOMS / "routes").glob("*.py"))
BOUND = {  # what a route must say of its caller in each call of these, that code of the service's own may leave out
    "get": {"scope"},
    "get_record": {"scope"},
    "list": {"scope", "principal"},
    "cancel": {"scope", "requester"},
    "delete": {"scope"},
    "wait": {"scope", "principal"},
    "start": {"principal"},
}


def unbound_calls(source: str) -> list[str]:
    """Return the uses of Operations in a module that leave out who calls, or what it may touch."""
    tree = ast.parse(source)
    calls = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    found: list[str] = []
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Attribute)
            and node.attr in BOUND
            and isinstance(node.value, (ast.Name, ast.Attribute))
            and ast.unparse(node.value).rpartition(".")[2].strip("_") == "operations"
        ):
            call = calls.get(id(node))
            said = set() if call is None else {keyword.arg for keyword in call.keywords}
            if not BOUND[node.attr] <= said:
                found.append(ast.unparse(node))
    return found


def test_no_route_forgets_who_calls() -> None:
    uses = 0
    for room in ROUTES:
        source = room.read_text(encoding="utf-8")
        assert unbound_calls(source) == [], room.name
        uses += sum(source.count(f"_operations.{method}(") for method in BOUND)
    assert uses >= 6, "the calls have another form now: look for that"


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("await self._operations.get(name)", ["self._operations.get"]),
        ("await self._operations.get(name, scope=visible)", []),
        ("await operations.wait(name, scope=visible)", ["operations.wait"]),
        ("partial(self._operations.delete, scope=visible)", ["self._operations.delete"]),
        ("await self._operations.start(job, params)", ["self._operations.start"]),
        ("self._operations.limits", []),
    ],
)
def test_the_checker_of_routes_sees_what_is_left_out(source: str, found: list[str]) -> None:
    assert unbound_calls(source) == found


def test_every_handler_asks_the_hooks_first_or_is_handed_what_they_granted() -> None:
    handlers = 0
    for room in ("operations.py", "jobs.py", "openapi.py", "routing.py"):
        for node in ast.walk(ast.parse((ROOMS / "routes" / room).read_text(encoding="utf-8"))):
            arguments = {one.arg for one in node.args.args} if isinstance(node, ast.AsyncFunctionDef) else set()
            if isinstance(node, ast.AsyncFunctionDef) and "exchange" in arguments:
                handlers += 1
                begins = " ".join(ast.unparse(one) for one in node.body[:3])
                assert "visible" in arguments or "exchange.authorize(" in begins, f"{room}: {node.name}"
    assert handlers >= 10


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
