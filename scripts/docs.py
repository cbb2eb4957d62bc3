"""Bring the generated pages up to date: docs/config.md from the schema, and the tables that README and docs embed."""

from pathlib import Path

from gcp import command

REPO = Path(__file__).resolve().parents[1]


def run(argv: list) -> None:
    """Parse, write, say what changed."""
    command.Parser(description=__doc__).parse_args(argv)
    from gcp import storage
    from gcp.report import reference, tables

    pages = [REPO / "README.md", *sorted((REPO / "docs").glob("*.md"))]
    before = {page: page.read_text(encoding="utf-8") for page in pages}
    storage.write_text(REPO / "docs" / "config.md", reference.markdown())
    for page in pages:
        tables.embed(page)
    for page in pages:
        if page.read_text(encoding="utf-8") != before[page]:
            print(f"wrote {page.relative_to(REPO)}")


if __name__ == "__main__":
    command.main(run)
