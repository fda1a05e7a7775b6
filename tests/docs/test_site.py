"""The documents as a site: it builds without a broken link, and says what the code says."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

from launch.docs.site import build
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


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: the site and its cache are written beside the configuration."""
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(DOCS, folder / "docs")
    shutil.copy(ROOT / "zensical.toml", folder)
    assert build(folder) == 0
    return folder / "site"


class Page(HTMLParser):
    """What a page links to, what it loads by itself, and where one can link to in it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.loaded: set[str] = set()
        self.anchors = {"", "__search"}  # the top, and the search that a script makes
        self.feed(path.read_text())
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given.get("id", ""), given.get("name", "")}
        if tag == "a" and "href" in given:
            self.links.add(given["href"])
        elif tag == "link" and given.get("rel") in ("canonical", "edit", "next", "prev"):
            return  # nothing is loaded
        else:
            self.loaded |= {given[name] for name in ("src", "href", "data") if name in given}


def test_every_link_of_the_built_site_leads_somewhere_when_it_is_opened_as_a_file(site: Path):
    pages = {path: Page(path) for path in site.rglob("*.html") if path.name != "404.html"}
    assert len(pages) == len(list(DOCS.glob("*.md")))
    broken: list[str] = []
    for path, page in pages.items():
        for link in page.links:
            if "://" in link or link.startswith("mailto:"):
                continue
            name, _, anchor = unquote(link).partition("#")
            target = (path.parent / name).resolve() if name else path
            known = pages.get(target)
            if known is None and not target.is_file():
                broken.append(f"{path.name}: {link}")
            elif anchor and known is not None and anchor not in known.anchors:
                broken.append(f"{path.name}: {link}: no such heading")
    assert broken == []


def test_the_built_site_loads_nothing_over_a_network(site: Path):
    for path in site.rglob("*.html"):
        for name in Page(path).loaded - {""}:
            assert "://" not in name and not name.startswith("//"), f"{path.name} loads {name}"
            if path.name != "404.html" and not name.startswith("data:"):
                assert (path.parent / name.partition("#")[0].partition("?")[0]).exists(), name
        assert 'class="mermaid"' not in path.read_text(), "its script is fetched from a network"


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
        for package in ("darts", "pipeline", "engines", "learner", "launch")
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
