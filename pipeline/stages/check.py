"""Stage check: refuses a params.yaml that any later stage would refuse, before DVC removes that stage's outputs.

    python -m pipeline.stages check

Every other stage comes after it, and depends on the code that it finds for that stage: data/code/<stage>/<key>.json.
Results of runs that params.yaml no longer names are moved to .state/removed, so that no report counts them. Folders
for your own files are made where no source reads them: git cannot hold them empty, and DVC stops where one is missing.
"""

import shutil
import time
from pathlib import Path

from pipeline import artifacts, code, params
from pipeline.artifacts import ArtifactError
from pipeline.params import NONE
from pipeline.runtime.requirements import require_network, require_run


def main() -> None:
    """Check every section, and write data/code and the empty start and network."""
    settings = params.load()
    for source in settings.data.values():
        if not source.READS_PATH:
            make_folder(Path(source.path))
    for problem in params.find_bad_paths(settings):
        print(problem)  # DVC stops there only if it needs the data
    for name in settings.networks:
        require_network(name, settings, {})
    for name in settings.runs:
        require_run(name, settings, {})
    require_watched(settings)
    for folder in (artifacts.REPORTS / "runs", artifacts.PREPARED):  # the report of a project without runs needs them
        folder.mkdir(parents=True, exist_ok=True)
    for change in code.write_all(settings):
        print(f"code of {change}")
    for folder in (artifacts.RUNS / NONE / "model", artifacts.NETWORKS / NONE):
        artifacts.write_json(folder / "config.json", None)
    for name, folder in ((artifacts.REPORTS.name, artifacts.REPORTS / "runs"), ("data", artifacts.RUNS)):
        set_aside(folder, {*settings.runs, NONE}, name)
    print(f"params.yaml: {len(settings.runs)} runs, all keys known and in range")


def require_watched(settings: params.Params) -> None:
    """Refuse plug-ins of other packages where DVC would not run this stage after an edit of them.

    Raises:
        ArtifactError: with the line that dvc.yaml lacks.
    """
    roots = {name for instance in code.list_instances(settings) for name in code.find_roots(*instance, settings)}
    foreign = sorted(name for name in roots if not code.is_own(name))
    path = Path("dvc.yaml")
    if foreign and path.exists():
        stage = params.read_mapping(path, "a mapping with stages", params.FOLDER)["stages"]["check"]
        if not stage.get("always_changed"):
            msg = f"{path}: stages.check: expected `always_changed: true` in the place of deps, got none; DVC does not "
            raise ArtifactError(msg + f"watch the package of {', '.join(foreign)}")


def make_folder(path: Path) -> None:
    """Make the folder that a source ignores and DVC asks for; one that a .dvc file describes is for `dvc pull`."""
    if not any(each.with_name(f"{each.name}.dvc").exists() for each in (path, *path.parents) if each.name):
        path.mkdir(parents=True, exist_ok=True)


def set_aside(folder: Path, names: set[str], title: str) -> None:
    """Move the subfolders that have none of the names to .state/removed."""
    for path in sorted(folder.glob("*/")):
        if path.name not in names:
            target = artifacts.STATE / "removed" / f"{path.name}-{title}-{time.time_ns()}"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(path, target)
            print(f"params.yaml has no run {path.name}: {path} is now {target}")
