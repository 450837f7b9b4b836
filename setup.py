"""Puts the files of a new project into the package, for `pipeline init`. Everything else is in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

# The same as in pipeline/commands/init.py.
FILES = ("params.yaml", "params.schema.json", "dvc.yaml", ".gitignore", ".dvcignore", ".dvc/.gitignore", ".dvc/config")


class BuildWithProject(build_py):
    """Copies the files next to the modules; an editable installation finds them in the repository."""

    def run(self) -> None:
        """Build the modules, then copy."""
        super().run()
        if self.editable_mode:
            return
        for name in FILES:
            target = Path(self.build_lib, "pipeline", "project", name)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(name, target)


setup(cmdclass={"build_py": BuildWithProject})
