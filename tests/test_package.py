"""The package itself: what `import lro` costs and exports, and what a wheel carries."""

import importlib
import subprocess
import sys
import zipfile
from pathlib import Path

import lro
from tests.servers import REPOSITORY


def test_the_three_lists_of_exports_are_the_same() -> None:
    assert sorted(lro.__all__) == sorted(lro._MODULES)
    for name, module in lro._MODULES.items():
        value = getattr(lro, name)
        assert value is getattr(importlib.import_module(module), name)
        assert name in importlib.import_module(module).__all__
    source = Path(lro.__file__).read_text(encoding="utf-8").split("if TYPE_CHECKING:")[1].split("__all__")[0]
    for name, module in lro._MODULES.items():
        line = next(line for line in source.splitlines() if f"from {module} import" in line)
        assert name in line.replace(",", " ").split()


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(lro, "Nonsense")
    assert set(lro.__all__) <= set(dir(lro))


def test_import_lro_does_not_pay_for_starlette_pydantic_or_a_store() -> None:
    code = "import lro, sys; print([m for m in ('starlette', 'pydantic', 'anyio') if m in sys.modules])"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert ended.stdout.strip() == "[]"


def test_operations_do_not_pay_for_filters_before_the_first() -> None:
    code = "from lro import Operations; import sys; print([m for m in ('lark', 'lro.filter') if m in sys.modules])"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert ended.stdout.strip() == "['lro.filter']"


def test_a_wheel_carries_the_migrations_and_runs_where_it_is_installed(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(REPOSITORY)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    installed = tmp_path / "installed"
    zipfile.ZipFile(wheel).extractall(installed)
    code = (
        "import lro, anyio, sys\n"
        "from lro.store import open_store\n"
        f"assert lro.__file__.startswith({str(installed)!r}), lro.__file__\n"
        "async def main():\n"
        f"    async with open_store('sqlite:///{tmp_path}/wheel.db') as store:\n"
        "        print(await store.get('operations/x'))\n"
        "anyio.run(main)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code],
        cwd=installed,
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": "."},
    )

    assert "lro/migrations/sqlite/0001_operations.sql" in names
    assert "lro/py.typed" in names
    assert not any(name.startswith(("tests/", "benchmarks/", "migrations/")) for name in names)
    assert ended.stdout.strip() == "None", ended.stderr
