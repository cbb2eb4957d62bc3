"""Update the generated pages: docs/config.md from the schema, the tables that README and docs embed, and
results/page.html from the committed records."""

import os
from pathlib import Path

from gcp import command

REPO = Path(__file__).resolve().parents[1]
NOT_KEPT = ("demo", "smoke", "runs")  # folders of results that are not committed: see .gitignore


def run(argv: list) -> None:
    """Parse the arguments, write the pages, and print which ones changed."""
    command.Parser(description=__doc__).parse_args(argv)
    from gcp import storage
    from gcp.report import reference, tables

    pages = [REPO / "README.md", *sorted((REPO / "docs").glob("*.md"))]
    before = {page: page.read_text(encoding="utf-8") for page in pages}
    storage.write_text(REPO / "docs" / "config.md", reference.markdown())
    for page in pages:
        tables.embed(page)
    renew(REPO / "results" / "page.html")
    for page in pages:
        if page.read_text(encoding="utf-8") != before[page]:
            print(f"wrote {page.relative_to(REPO)}")


def renew(path: Path) -> None:
    """Write the page of all committed records again if anything on it has changed, except the time it was made."""
    from gcp import storage
    from gcp.report import page

    os.chdir(REPO)  # paths on the page are relative to the checkout
    data = page.contents(Path("results"), Path("results") / "reference", NOT_KEPT)
    if not path.exists() or page.page({**data, "made": page.made(path)}) != path.read_text(encoding="utf-8"):
        storage.write_text(path, page.page(data))
        print(f"wrote {path.relative_to(REPO)}")


if __name__ == "__main__":
    command.main(run)
