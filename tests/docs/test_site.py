"""The documents as a site: it builds without a broken link, and says what the code says."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

from tests.paths import ROOT

DOCS = ROOT / "docs"
# Two string literals side by side are one text: `"a " f"b"`.
_SPLIT = re.compile(r'"\s*\n?\s*f?"')


def _pages(nav: object) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    if isinstance(nav, dict):
        return [page for below in nav.values() for page in _pages(below)]
    assert isinstance(nav, list)
    return [page for below in nav for page in _pages(below)]


def test_every_page_is_in_the_navigation_once():
    nav = tomllib.loads((ROOT / "zensical.toml").read_text())["project"]["nav"]
    assert sorted(_pages(nav)) == sorted(path.name for path in DOCS.glob("*.md"))


def test_the_site_builds_with_every_link_and_anchor_leading_somewhere(tmp_path: Path):
    # Built from a copy: the site and its cache are written beside the configuration.
    shutil.copytree(DOCS, tmp_path / "docs")
    shutil.copy(ROOT / "zensical.toml", tmp_path)
    zensical = Path(sys.executable).with_name("zensical")
    built = subprocess.run(
        [zensical, "build", "--strict"], cwd=tmp_path, capture_output=True, text=True
    )
    assert built.returncode == 0, built.stdout + built.stderr
    assert (tmp_path / "site" / "selectors" / "index.html").exists()


def test_a_broken_link_fails_the_build(tmp_path: Path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text("[gone](gone.md)\n")
    (tmp_path / "zensical.toml").write_text('[project]\nsite_name = "x"\n')
    zensical = Path(sys.executable).with_name("zensical")
    built = subprocess.run([zensical, "build", "--strict"], cwd=tmp_path, capture_output=True)
    assert built.returncode != 0


def test_texts_of_the_troubleshooting_page_are_still_said():
    source = "\n".join(
        _SPLIT.sub("", path.read_text())
        for package in ("pipeline", "engines", "learner", "launch")
        for path in sorted((ROOT / package).rglob("*.py"))
    )
    page = (DOCS / "troubleshooting.md").read_text()
    texts = re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)
    assert len(texts) > 15
    assert [text for text in texts if text not in source] == []


def test_settings_that_the_migration_page_names_exist():
    known = set(re.findall(r"^\| `([a-z_.]+)`", (DOCS / "configuration.md").read_text(), re.M))
    page = (DOCS / "migrating.md").read_text()
    last = re.findall(r"^\|.*\| ([^|]+) \|$", page, re.MULTILINE)
    keys = {key for cell in last for key in re.findall(r"`([a-z]+\.[a-z_.]+)(?==|`)", cell)}
    sections = {key.partition(".")[0] for key in known}
    assert len(keys) > 25
    assert {key for key in keys if key.partition(".")[0] in sections} - known == set()
