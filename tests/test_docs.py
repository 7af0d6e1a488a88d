"""What the README and the documentation say is run, or compared with what is there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(kind):
    return re.findall(rf"^```{kind}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_the_readme_runs(tmp_path, smollm2, minilm):
    for name in ("examples", "models"):
        (tmp_path / name).symlink_to(ROOT / name)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    commands = [block for block in blocks("sh") if "examples/gsm8k.parquet" in block]
    assert len(commands) == 1
    codes = blocks("python")
    assert len(codes) == 3
    shell = ["bash", "-ec", commands[0]]
    for call in (shell, *([sys.executable, "-W", "error", "-c", code] for code in codes)):
        done = subprocess.run(call, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{call[-1]}\n{done.stdout}{done.stderr}"
    assert len((tmp_path / "runs/readme/epoch-1.jsonl").read_text().splitlines()) == 10


def test_the_command_page_is_what_the_commands_say():
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / "make_cli.py", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_links_lead_somewhere():
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        text = page.read_text(encoding="utf-8")
        for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", text):
            path = (page.parent / target).resolve() if target else page
            assert path.exists(), f"{page.name}: {target}"
            if anchor:
                headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
                known = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
                assert anchor in known, f"{page.name}: #{anchor}"
