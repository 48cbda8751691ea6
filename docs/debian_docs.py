"""Makes the corpus of the study on real text from packages of Debian, on a Debian or Ubuntu machine.

apt-get update -o Acquire::Languages=en           # as root: package lists with their descriptions
python docs/debian_docs.py --to data/study/debian_docs.jsonl.gz

Some 65,000 documents, 80 MB: descriptions of packages, and parts of files of documentation. What a release of Debian
holds differs from the next one's, so the corpus is like the one of the records and not the same.
"""

import argparse
import gzip
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

# Name of a source, the package that apt finds it by, and what its files are named.
SOURCES = (
    ("linux_kernel_docs", "linux-doc", "Documentation/**/*.rst.gz"),
    ("python_docs", "python3-doc", "html/_sources/**/*.rst.txt"),
    ("postgresql_docs", "postgresql-doc", "html/*.html"),
    ("libreoffice_help", "libreoffice-help-en-us", "en-US/text/**/*.html"),
    ("anarchist_faq", "anarchism", "html/*.html"),
)
TRANSLATIONS = "/var/lib/apt/lists/*_main_i18n_Translation-en*"
LONGEST, SHORTEST_PART, SHORTEST_DESCRIPTION = 4000, 400, 200  # characters
BLOCKS = {"p", "div", "br", "li", "tr", "pre", "table", "h1", "h2", "h3", "h4", "h5", "dt", "dd", "title", "hr", "td"}


class _Text(HTMLParser):
    """The text of a page, blocks apart by an empty line."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[str] = []
        self.hidden = 0

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.hidden += tag in ("script", "style")
        if tag in BLOCKS:
            self.pieces.append("\n\n")

    def handle_endtag(self, tag: str) -> None:
        self.hidden -= tag in ("script", "style")
        if tag in BLOCKS:
            self.pieces.append("\n\n")

    def handle_data(self, data: str) -> None:
        if not self.hidden:
            self.pieces.append(data)


def text_of(file: Path) -> str:
    """A file's text, of which no more than one line in a row is empty."""
    content = file.read_bytes()
    text = (gzip.decompress(content) if file.suffix == ".gz" else content).decode(errors="replace")
    if file.suffix == ".html":
        page = _Text()
        page.feed(text)
        text = "".join(page.pieces)
    lines = "\n".join(line.rstrip() for line in text.splitlines())
    return re.sub(r"\n{3,}", "\n\n", lines).strip()


def parts(text: str) -> Iterator[str]:
    """Paragraphs in a row that have up to `LONGEST` characters together; of one that is longer, its beginning."""
    part = ""
    for paragraph in text.split("\n\n"):
        if part and len(part) + 2 + len(paragraph) > LONGEST:
            yield part
            part = ""
        part = f"{part}\n\n{paragraph}" if part else paragraph[:LONGEST]
    yield part


def files(package: str, pattern: str, folder: Path) -> list[tuple[str, Path]]:
    """The files of a package, of it or of the one that it stands for, with their names in the place of the pattern."""
    for _ in range(2):  # python3-doc and others hold nothing but the name of the release's
        subprocess.run(["apt-get", "download", package], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        (archive,) = folder.glob(f"{package}_*.deb")
        subprocess.run(["dpkg-deb", "-x", archive, folder / package], check=True)
        if found := sorted(file for file in (folder / package).glob(f"usr/share/**/{pattern}") if file.is_file()):
            top = pattern.split("**")[0].rsplit("/", 1)[0]
            return [(str(file).split(f"/{top}/", 1)[1], file) for file in found if not file.is_symlink()]
        depends = subprocess.run(["apt-cache", "depends", package], check=True, capture_output=True, text=True).stdout
        package = re.findall(r"Depends: (\S+-doc\S*)", depends)[0]
    sys.exit(f"{package} has no file {pattern}: its layout is another one in this release, see SOURCES")


def documents(folder: Path) -> Iterator[dict[str, str]]:
    """All documents: `id` tells source, file and the number of the part in its source."""
    for source, package, pattern in SOURCES:
        found = files(package, pattern, folder)
        numbered = enumerate((name, part) for name, file in found for part in parts(text_of(file)))
        for number, (name, part) in numbered:
            if len(part) >= SHORTEST_PART:
                yield {"id": f"{source}/{name}#{number}", "text": part, "source": source}
    command = f"/usr/lib/apt/apt-helper cat-file {TRANSLATIONS}"
    listed = subprocess.run(["sh", "-c", command], check=True, capture_output=True, text=True).stdout
    for entry in sorted(set(listed.split("\n\n"))):
        name, _, described = (entry.partition("Description-en: ")[part] for part in range(3))
        name = name.removeprefix("Package: ").split("\n")[0]
        described = re.sub(r"^ \.?", "", described.replace("\n", "\n\n", 1), flags=re.MULTILINE)
        if len(described) >= SHORTEST_DESCRIPTION:
            yield {"id": f"debpkg/{name}", "text": f"{name}: {described.strip()}", "source": "debpkg"}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--to", type=Path, required=True, metavar="FILE.jsonl.gz")
    to = parser.parse_args().to
    to.parent.mkdir(parents=True, exist_ok=True)
    count = size = 0
    texts = set()
    with tempfile.TemporaryDirectory() as folder, gzip.open(to, "wt", encoding="utf-8") as stream:
        for document in documents(Path(folder)):
            if document["text"] not in texts:
                texts.add(document["text"])
                count, size = count + 1, size + len(document["text"])
                stream.write(json.dumps(document, ensure_ascii=False) + "\n")
    print(f"{count:,} documents, {size:,} characters in {to}")


if __name__ == "__main__":
    main()
