"""The house: what a module may import, what the package shows, what must not exist."""

import ast
import tomllib
from pathlib import Path

import p3select

ROOT = Path(p3select.__file__).parent
# Each imports only from those before it.
ORDER = [
    "machine",
    "errors",
    "plugins",
    "fingerprints",
    "progress",
    "dataset",
    "run",
    "actions",
    "tokens",
    "shards",
    "tokenised",
    "distributed",
    "scorers.batches",
    "scorers",
    "difficulties",
    "paces",
    "index",
    "encoders",
    "embeddings",
    "reuse",
    "scoring",
    "refreshing",
    "rescoring",
    "scores",
    "tradeoff",
    "kernel",
    "limits",
    "neighbors",
    "selectors",
    "partition",
    "constraints",
    "selection",
    "exporters",
    "validation",
    "loops",
    "strategies",
    "trainings",
    "comparison",
    "scorers.transformers",
    "scorers.trial",
    "scorers.vllm",
    "scorers.server",
    "figures",
    "page",
    "tables",
    "trainers",
    "demo",
    "cli",
]


def layer(module):
    """The longest entry of ORDER that the module's name begins with."""
    names = [name for name in ORDER if module == name or module.startswith(name + ".")]
    return ORDER.index(max(names, key=len)) if names else None


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "p3select":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("p3select."):
            yield node.module.removeprefix("p3select.")
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("p3select."):
                    yield alias.name.removeprefix("p3select.")


def test_imports_go_one_way():
    for path in ROOT.rglob("*.py"):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        if name.startswith("__"):
            continue
        own = layer(name)
        assert own is not None, f"{name} has no place in the order"
        for other in imported(path):
            if layer(other) is not None:
                assert layer(other) <= own, f"{name} imports {other}"


def test_no_junk_drawers():
    assert not {path.stem for path in ROOT.rglob("*.py")} & {"utils", "helpers", "common", "misc", "base"}


def test_the_public_names_are_locked():
    assert sorted(p3select.__all__) == [
        "Dataset",
        "InputError",
        "MismatchError",
        "MissingLibraryError",
        "P3Error",
        "Run",
        "Selection",
        "compare",
        "difficulty",
        "dpp",
        "embed",
        "export",
        "loop",
        "pace",
        "report",
        "score",
        "select",
        "validate",
    ]
    for name in p3select.__all__:
        assert getattr(p3select, name).__doc__, name


def test_version_changelog_and_pyproject_agree():
    project = tomllib.loads((ROOT.parent / "pyproject.toml").read_text())["project"]
    changelog = (ROOT.parent / "CHANGELOG.md").read_text()
    newest = next(line for line in changelog.splitlines() if line.startswith("## "))
    assert project["version"] == p3select.__version__ == newest.split()[1]
