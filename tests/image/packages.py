"""The packages of the serve image: a Python that finds no others."""

import os
import sys
import sysconfig
import venv
from importlib import metadata
from pathlib import Path

from tuneserve.machine.tiers import this_tier

REQUIREMENTS = Path(__file__).parents[2] / "requirements"


def pinned(name: str) -> set[str]:
    lines = (REQUIREMENTS / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    return {line for line in lines if line and not line.startswith("#")}


def python(folder: Path) -> Path:
    """Makes an environment in `folder`, of links to what is installed here; returns its interpreter."""
    venv.create(folder, symlinks=True)
    here = Path(sysconfig.get_path("purelib"))
    extra = "gpu" if this_tier().name == "gpu" else "cpu"
    for name in ("tuneserve", *(line.partition("==")[0] for line in pinned(f"serve-{extra}"))):
        [installed] = metadata.distributions(name=name, path=[str(here)])
        for file in installed.files or ():
            # Of site-packages whole directories, so that their compiled modules are found; of what is beside it, each
            # file. Scripts begin with another interpreter.
            first = file.parts[0] if file.parts[0] != ".." else file
            source = Path(os.path.normpath(here / first))
            link = folder / source.relative_to(sys.prefix)
            if link.parent != folder / "bin" and not link.is_symlink():
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(source)
    return folder / "bin" / "python"
