"""Hooks of mkdocs.yml: pages of the API reference, and links to files of the repository outside docs/.

The reference has one page for each package. The pages are generated from the folders, so a moved module needs
no edit here. README.md becomes the site's first page. The other root documents become pages of the same name.
A linked file that is no document is copied to `files/`. A link to a folder becomes plain text.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
PACKAGES = ("unweft", "peers", "transport", "coordinator_free", "emulation")
DOCUMENTS = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "reporting.md",  # docs/security.md has the name
}
LINK = re.compile(r"(?<!!)\[(?P<text>[^\]\n]*)\]\((?P<target>[^)\s#:]+)(?P<anchor>#[^)\s]*)?\)")
IMAGE = re.compile(r"(?<=\]\()docs/(?=[^)\s]+\.(?:png|svg)\))")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the root documents, the files that pages link to, and the pages of the reference."""
    for name, uri in DOCUMENTS.items():
        files.append(File.generated(config, uri, content=(ROOT / name).read_text(encoding="utf-8")))
    for path in sorted(_linked_files(files)):
        uri = f"files/{path.as_posix()}"
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / path)))
    for package in _packages():
        uri = f"reference/{'.'.join(package.parts)}.md"
        files.append(File.generated(config, uri, content=_reference(package)))
    return files


def on_page_markdown(markdown: str, /, page: Page, **_: Any) -> str:
    """Point links to the repository's files at the site's copies."""
    uri = page.file.src_uri
    if uri == DOCUMENTS["README.md"]:
        markdown = IMAGE.sub("", markdown)
    return LINK.sub(lambda link: _rewritten(link, uri), markdown)


def _linked_files(files: Files) -> set[Path]:
    """Files of the repository outside docs/ that a page links to and that are no pages."""
    found = set()
    for file in files.documentation_pages():
        for link in LINK.finditer(file.content_string):
            path = _in_repository(file.src_uri, link["target"])
            if _is_copied(path):
                found.add(path)
    return found


def _is_copied(path: Path) -> bool:
    return path.parts[:1] != ("docs",) and str(path) not in DOCUMENTS and (ROOT / path).is_file()


def _in_repository(uri: str, target: str) -> Path:
    """The path, from the root of the repository, that a link of the page `uri` means."""
    sources = {uri: name for name, uri in DOCUMENTS.items()}
    source = Path(sources.get(uri, f"docs/{uri}"))
    return Path(os.path.normpath(source.parent / target))


def _rewritten(link: re.Match[str], uri: str) -> str:
    path = _in_repository(uri, link["target"])
    anchor = link["anchor"] or ""
    if str(path) in DOCUMENTS:
        target = DOCUMENTS[str(path)]
    elif _is_copied(path):
        target = f"files/{path.as_posix()}"
    elif path.parts[:1] == ("docs",):
        target = path.relative_to("docs").as_posix()
    elif (ROOT / path).is_dir():
        return link["text"]
    else:
        return link[0]  # mkdocs warns about it
    return f"[{link['text']}]({_relative(target, uri)}{anchor})"


def _relative(target: str, uri: str) -> str:
    return PurePosixPath(os.path.relpath(target, PurePosixPath(uri).parent)).as_posix()


def _packages() -> Iterator[Path]:
    """Every folder with Python modules, from the root of the repository."""
    for package in PACKAGES:
        folders = {path.parent for path in (ROOT / package).rglob("*.py")}
        yield from sorted(folder.relative_to(ROOT) for folder in folders)


def _reference(package: Path) -> str:
    """The page of one package: its docstring, then its modules in the order of their names."""
    name = ".".join(package.parts)
    modules = sorted(p.stem for p in (ROOT / package).glob("*.py") if p.stem not in ("__init__", "__main__"))
    own = f"::: {name}\n    options:\n      members: false\n      show_root_heading: false\n"
    return "\n".join([f"# {name}\n", own, *(f"::: {name}.{module}\n" for module in modules)])
