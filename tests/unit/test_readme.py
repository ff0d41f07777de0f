import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_tour_names_what_exists() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    section = re.search(r"^## Find your way\n(.*?)(?=^## |\Z)", readme, re.MULTILINE | re.DOTALL)
    assert section, "README.md has no section 'Find your way'"
    package, story = ROOT / "lartpc_ds", re.findall(r"`([\w/]+\.py)`", section[1].split("|")[0])
    assert len(story) == 7
    assert not [path for path in story if not ((package / path).exists() or (ROOT / path).exists())]
    rows = re.findall(r"^\| `(\w+)/` \| [^|]+ \| (.+) \|$", section[1], re.MULTILINE)
    assert {folder for folder, _ in rows} == {one.parent.name for one in package.glob("*/__init__.py")}
    for folder, places in rows:
        named = re.findall(r"`([\w/.]+(?:\.py|/))`", places)
        assert not [place for place in named if not (package / folder / place).exists()], folder
