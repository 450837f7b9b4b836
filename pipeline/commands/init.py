"""Writes a new project into a folder: params.yaml, dvc.yaml, and the settings of git and DVC.

    pipeline init             # into this folder
    pipeline init digits      # into the folder digits, which is made

The project runs the installed package, so it needs no copy of it. No existing file is overwritten. The folder becomes a
git repository, unless it is in one.
"""

from pathlib import Path

from pipeline import plugins
from pipeline.artifacts import ArtifactError
from pipeline.commands import call, make_parser

FILES = ("params.yaml", "params.schema.json", "dvc.yaml", ".gitignore", ".dvcignore", ".dvc/.gitignore", ".dvc/config")
# DVC would look for the package in the project's folder. `check` takes seconds, and finds what has changed by itself.
WATCHED = "    deps:\n      - pipeline\n"
ALWAYS = "    always_changed: true  # looks at the installed package, which is outside this folder\n"
NEXT = """{folder} is a project now. In it:
    dvc repro                  # train the models of params.yaml and write reports/index.html: minutes on two cores
    git add --all && git commit -m "First results"
    pipeline ui                # the runs in MLflow, at http://127.0.0.1:5000
"""


def main(arguments: list[str]) -> int:
    """Write the files and print what to do with them."""
    parser = make_parser("init", __doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path(), metavar="FOLDER")
    folder = parser.parse_args(arguments).folder.resolve()
    if existing := [name for name in FILES if (folder / name).exists()]:
        msg = f"{folder}: expected a folder without {', '.join(existing)}; nothing was written"
        raise ArtifactError(msg)
    contents = {name: read_template(name) for name in FILES}
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8")
    if not is_in_repository(folder):
        call(["git", "init", "--quiet"], folder)
    print(NEXT.format(folder=folder), end="")
    return 0


def read_template(name: str) -> str:
    """Return a file of a new project: from the installed package, or from the repository that the package is in."""
    installed = plugins.PACKAGE / "project" / name
    path = installed if installed.exists() else plugins.PACKAGE.parent / name
    text = path.read_text(encoding="utf-8")
    if name != "dvc.yaml":
        return text
    if text.count(WATCHED) != 1:
        msg = f"{path}: expected one stage that depends on the folder pipeline, found {text.count(WATCHED)}"
        raise ArtifactError(msg)
    return text.replace(WATCHED, ALWAYS)


def is_in_repository(folder: Path) -> bool:
    """Return whether a folder is in git's working tree."""
    return any((parent / ".git").exists() for parent in (folder, *folder.parents))
