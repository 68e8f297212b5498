"""The website: built once, without a warning; then every link of every page is followed, as far as it is our own."""

import json
import subprocess
import sys
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit

import pytest
from address import ANSWERS, HOST, NOTEBOOKS, ROOT, address
from helpers import as_phone, chromium

COLAB = f"https://colab.research.google.com/github/{address().removeprefix(HOST)}"
BADGE = "https://colab.research.google.com/assets/colab-badge.svg"


class Page(HTMLParser):
    """What a page holds: its links, what it loads, the places that a link can name, and its images with their texts."""

    def __init__(self, text):
        super().__init__()
        self.links, self.loads, self.places, self.images, self.classes = [], [], {""}, [], set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        has = dict(attributes)
        self.places |= {has.get("id"), has.get("name")}
        self.classes |= set((has.get("class") or "").split())
        self.links += [has[key] for key in ("href", "src", "action") if has.get(key)]
        self.loads += [has[key] for key in ("href", "src") if has.get(key) and tag not in ("a", "area")]
        if tag == "img":
            self.images.append((has["src"], has.get("alt")))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the website."""
    folder = tmp_path_factory.mktemp("website") / "site"
    command = [sys.executable, ROOT / "scripts" / "website.py", folder]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site):
    """Every page, by its file."""
    files = [path for path in sorted(site.rglob("*.html")) if "_static" not in path.parts]  # the theme's are no pages
    return {path: Page(path.read_text(encoding="utf-8")) for path in files}


def wrong(url, path, pages, site):
    """Return what is wrong with a link, if something is."""
    parts = urlsplit(url)
    for start, kind in ((f"{address()}/blob/main/", "file"), (f"{address()}/tree/main/", "dir"), (COLAB, "file")):
        if url.startswith(start):
            inside = url.removeprefix(start).removeprefix("/blob/main/")
            return "" if getattr(ROOT / unquote(inside), f"is_{kind}")() else f"not a {kind} of the repository"
    if parts.scheme or parts.netloc:
        return "" if parts.scheme in ("https", "data") else "not https"
    target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    if not (target.is_file() and target.is_relative_to(site)):
        return "no such file"
    return "" if target not in pages or unquote(parts.fragment) in pages[target].places else "no such place"


def test_every_link_leads_somewhere(site, pages):
    found = [
        (str(path.relative_to(site)), url, wrong(url, path, pages, site)) for path in pages for url in pages[path].links
    ]
    assert len(found) > 1000 and not [link for link in found if link[2]]
    broken = ("nothing.html", "#nothing", "http://example.com", f"{address()}/blob/main/tests", f"{COLAB}/blob/main/x")
    for url in broken:
        assert wrong(url, site / "index.html", pages, site)


def test_nothing_but_the_badges_is_loaded_from_elsewhere(pages):
    assert {url for page in pages.values() for url in page.loads if urlsplit(url).netloc} == {BADGE}


def test_every_page_leads_to_all_others_and_to_the_drawing_page(site, pages):
    made = {path for path in pages if path.parent.name != "draw"}
    for path in made:
        linked = {(path.parent / unquote(urlsplit(url).path)).resolve() for url in pages[path].links}
        assert made - {path, site / "index.html", site / "README.html"} <= linked
        assert site / "draw" / "index.html" in linked


@pytest.mark.parametrize("path", [*NOTEBOOKS, *ANSWERS], ids=lambda path: path.stem)
def test_a_notebook_is_whole(site, pages, path):
    """It has its neighbours, Colab, its images with the texts of plots.show, and a first cell that is closed."""
    inside = path.relative_to(ROOT)
    page = pages[site / inside.with_suffix(".html")]
    assert {"left-prev", "right-next", "tag_hide-input"} <= page.classes
    assert f"{COLAB}/blob/main/{inside.as_posix()}" in page.links
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", []) if "image/png" in output.get("data", {})]
    shown = [alt for source, alt in page.images if "/_images/" in source]
    assert shown == [output["metadata"]["image/png"]["alt"] for output in outputs]


def test_every_image_has_a_text(pages):
    assert not [(path, source) for path, page in pages.items() for source, alt in page.images if not alt]


def test_the_search_knows_the_notebooks(site):
    text = (site / "searchindex.js").read_text(encoding="utf-8")
    index = json.loads(text[text.index("{") : text.rindex("}") + 1])
    assert index["docnames"][index["terms"]["milder"]] == "notebooks/07_target_8k"


@pytest.mark.slow
def test_no_page_scrolls_sideways_on_a_phone(pages, tmp_path):
    with chromium(tmp_path) as browser:
        as_phone(browser)
        for path in pages:
            browser.get(path.as_uri())
            assert browser.execute_script("return document.documentElement.scrollWidth") == 400, path
