"""Rules that the tree itself must keep."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

HEAVY = ("torch", "transformers", "vllm", "docker", "huggingface_hub")

BLOCKED = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {heavy!r}:
            raise ImportError(name + " must not be imported here")
sys.meta_path.insert(0, Blocked())
import pkgutil, importlib, gates, registry
for package in (gates, registry):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
"""


def test_gates_and_registry_import_with_every_heavy_package_unimportable(project: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", BLOCKED.format(heavy=HEAVY)], cwd=project, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr


def test_the_command_line_loads_neither_rich_tables_nor_an_http_client_to_list_candidates(project: Path) -> None:
    script = "import sys, registry.cli; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", script], cwd=project, capture_output=True, text=True, check=True)
    assert not set(run.stdout.split()) & {*HEAVY, "httpx", "rich.table", "rich.progress", "scipy", "numpy"}


CHANGES_FILES = {
    "rename",
    "replace",
    "link",
    "symlink",
    "fsync",
    "unlink",
    "remove",
    "rmdir",
    "rmtree",
    "mkdir",
    "makedirs",
}


def test_only_registry_fs_renames_links_and_fsyncs(project: Path) -> None:
    found = []
    for file in sorted((project / "registry").rglob("*.py")):
        if file.name in ("fs.py", "bulk.py", "syscalls.py"):
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if (
                isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.value.id in ("os", "shutil")
            ):
                if node.attr in CHANGES_FILES:
                    found.append(f"{file.name}:{node.lineno} {node.value.id}.{node.attr}")
            elif isinstance(node, ast.Attribute) and node.attr in (
                "symlink_to",
                "hardlink_to",
                "rename",
                "unlink",
                "mkdir",
                "touch",
            ):
                found.append(f"{file.name}:{node.lineno} .{node.attr}")
    assert found == []


def test_no_verdict_stands_where_candidates_are_made(project: Path) -> None:
    verdicts = re.compile(r"(?<!ast\.)\b(Pass|Fail[A-Z]\w*|Inconclusive)\b")
    places = [project / "Makefile", *(project / "stages").rglob("*.py"), *(project / "recipes").rglob("*.yaml")]
    assert len(places) > 10
    assert [
        (place.name, verdicts.findall(place.read_text())) for place in places if verdicts.search(place.read_text())
    ] == []


def test_no_module_unpickles_or_trusts_remote_code(project: Path) -> None:
    for part in ("gates", "registry", "stages"):
        for file in (project / part).rglob("*.py"):
            text = file.read_text()
            assert not re.search(
                r"^\s*(import|from) (pickle|cloudpickle|dill|joblib)\b|torch\.load\(", text, re.MULTILINE
            ), file
            assert "trust_remote_code=True" not in text, file


def _requirements(project: Path) -> dict[str, list[str]]:
    document = tomllib.loads((project / "pyproject.toml").read_text())["project"]
    return {"core": document["dependencies"], **document["optional-dependencies"]}


def _name(requirement: str) -> str:
    found = re.match(r"[A-Za-z0-9_.-]+", requirement)
    assert found
    return found[0].lower()


def test_every_dependency_is_explained(project: Path) -> None:
    explained = (project / "docs" / "dependencies.md").read_text().lower()
    missing = [
        name
        for group in _requirements(project).values()
        for name in map(_name, group)
        if f"**{name}**" not in explained
    ]
    assert missing == []


@pytest.mark.parametrize("lock", ["core", "prune", "eval", "train", "test", "dev"])
def test_every_lock_holds_what_pyproject_asks_for_with_hashes_and_without_torch(project: Path, lock: str) -> None:
    text = (project / "locks" / f"{lock}.txt").read_text()
    locked = set(re.findall(r"^([a-z0-9_.-]+)==", text, re.MULTILINE))
    assert {_name(item) for item in (*_requirements(project)["core"], *_requirements(project).get(lock, []))} <= locked
    assert not locked & {"torch", "vllm"}
    assert text.count("--hash=sha256:") >= len(locked)


def test_versions_of_what_the_environments_share_are_the_same(project: Path) -> None:
    pins: dict[str, set[str]] = {}
    for lock in ("core", "prune", "eval", "train", "test", "dev"):
        for name, version in re.findall(
            r"^([a-z0-9_.-]+)==([^ ;]+) \\?$", (project / "locks" / f"{lock}.txt").read_text(), re.M
        ):
            pins.setdefault(name, set()).add(version)
    assert {name: versions for name, versions in pins.items() if len(versions) > 1} == {}
