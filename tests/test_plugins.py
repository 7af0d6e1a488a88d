"""Names of scorers and the like: what cannot be imported is one line."""

import pytest

from p3select import plugins
from p3select.errors import InputError, MissingLibraryError


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """A folder on Python's path."""
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_a_library_that_is_missing(modules):
    (modules / "p_missing.py").write_text("import nowhere_at_all.part\n")
    with pytest.raises(MissingLibraryError, match=r"scorer 'x' needs nowhere_at_all: pip install 'p3select\[hf\]'"):
        plugins.find("scorer", "x", {"x": ("p_missing:Scorer", "hf")})


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("from json.decoder import Newer", "cannot import name 'Newer' from 'json.decoder'"),
        ("import json.newer", "No module named 'json.newer'"),
        ("raise ImportError('libx.so.12:\\n no such file', name='json._c')", "libx.so.12: no such file"),
    ],
)
def test_a_library_of_another_version(modules, line, said):
    (modules / "p_other.py").write_text(f"{line}\n")
    with pytest.raises(InputError) as caught:
        plugins.find("scorer", "x", {"x": ("p_other:Scorer", "vllm")})
    message = str(caught.value)
    assert message.startswith(f"scorer 'x': {said}")
    assert message.endswith("; it needs another version of json: pip install -U 'p3select[vllm]'")
    assert len(message.splitlines()) == 1


def test_what_is_wrong_inside_p3select_is_no_refusal(modules):
    (modules / "p_inside.py").write_text("from p3select.errors import NoSuchError\n")
    with pytest.raises(ImportError, match="NoSuchError") as caught:
        plugins.find("scorer", "x", {"x": ("p_inside:Scorer", "vllm")})
    assert not isinstance(caught.value, InputError)


def test_an_entry_point_or_a_module_that_cannot_be_imported(modules):
    (modules / "p_broken.py").write_text("from json import Newer\n")
    about = modules / "p_broken-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: p-broken\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[p3select.scorers]\nbroken = p_broken:Scorer\n")
    for name in ("broken", "p_broken:Scorer"):
        with pytest.raises(InputError, match=f"scorer '{name}': cannot import name 'Newer' from 'json'"):
            plugins.find("scorer", name, {})
