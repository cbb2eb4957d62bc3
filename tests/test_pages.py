"""Generated pages say what the code says."""

from pathlib import Path

from gcp.report import reference

DOCS = Path(__file__).parents[1] / "docs"


def test_the_page_of_configuration_keys_is_that_of_the_schema():
    assert (DOCS / "config.md").read_text(encoding="utf-8") == reference.markdown(), "run python scripts/docs.py"
