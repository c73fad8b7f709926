"""The walls of the house: who may import whom (see README.md, "Layout")."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("gex_pipeline", "shards", "trainer")
FORBIDDEN = {
    "gex_pipeline": {"trainer"},
    "shards": {"trainer", "gex_pipeline"},
    "trainer": {"gex_pipeline"},
}


def imported_packages(path: Path) -> set[str]:
    """Top-level names of every import statement in a file, also those inside functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_stay_behind_their_walls(package):
    files = list((ROOT / package).rglob("*.py"))
    assert files
    crossings = {str(f.relative_to(ROOT)): imported_packages(f) & FORBIDDEN[package] for f in files}
    assert not {f: names for f, names in crossings.items() if names}


def modules_after_importing(package: str) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after importing every module of a package.

    Backends are left out: they are imported when a config asks for them, and then bring what they need.
    """
    code = (
        "import importlib, pkgutil, sys\n"
        f"import {package} as p\n"
        f"for m in pkgutil.walk_packages(p.__path__, '{package}.'):\n"
        "    if not m.name.endswith('_backend'): importlib.import_module(m.name)\n"
        "print('\\n'.join({name.split('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "package, unwanted",
    [("trainer", {"ray"}), ("gex_pipeline", {"torch", "open_clip"}), ("shards", {"torch", "open_clip", "ray"})],
)
def test_importing_a_package_stays_light(package, unwanted):
    assert not modules_after_importing(package) & unwanted


def test_no_import_circles():
    """Module-level imports inside the project form no cycle."""
    graph = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            graph[name] = module_level_imports(path)
    done, active = set(), []

    def visit(module):
        if module in done or module not in graph:
            return
        assert module not in active, f"import circle: {' -> '.join([*active[active.index(module) :], module])}"
        active.append(module)
        for other in graph[module] - {module}:  # a package that imports its own modules
            visit(other)
        active.pop()
        done.add(module)

    for module in graph:
        visit(module)


def module_level_imports(path: Path) -> set[str]:
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {n for n in names if n.split(".")[0] in PACKAGES}
