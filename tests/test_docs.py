"""The pages: that links lead somewhere, and that the README is short."""

import re
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def test_links_lead_somewhere() -> None:
    root = DOCS.parent
    for page in (root / "README.md", *DOCS.glob("*.md"), root / "helm" / "README.md"):
        for target, _, section in re.findall(r"\]\((?!https?:)([^)#]*)(#([^)]*))?\)", page.read_text(encoding="utf-8")):
            found = page.parent / target if target else page
            assert found.exists(), f"{page.name}: {target}"
            titles = re.findall(r"^#+ (.*)$", found.read_text(encoding="utf-8"), re.MULTILINE)
            assert not section or section in {title.lower().replace(" ", "-") for title in titles}, (page.name, section)


def test_the_readme_is_short() -> None:
    assert len((DOCS.parent / "README.md").read_text(encoding="utf-8").splitlines()) < 120
