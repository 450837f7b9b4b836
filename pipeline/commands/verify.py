"""Hashes every object that DVC's cache holds of the outputs in dvc.lock, and names those that are missing or broken.

    pipeline verify                  # after a crash, a full disk, a new disk; before `dvc push`
    pipeline verify data/runs/gan    # only outputs below a path

DVC itself reports neither. To mend a broken object, delete it; then `dvc pull` if a remote has it, or else
`dvc commit` if the file in the working folder is right, or `dvc repro --force` of its stage.
"""

from pathlib import Path
from typing import Any

from pipeline.artifacts import ArtifactError
from pipeline.commands import make_parser
from pipeline.history import dvc_cache, dvc_lock


def main(arguments: list[str]) -> int:
    """Print each object that is wrong; status 1 if there is one."""
    parser = make_parser("verify", __doc__)
    parser.add_argument("paths", nargs="*", type=Path, metavar="PATH", help="outputs, or folders of them; default: all")
    options = parser.parse_args(arguments)
    known = {Path(out.fs_path): out for out in dvc_cache.list_outputs()}
    found: dict[Path, Any] = {} if options.paths else known
    for path in options.paths:
        place = path.resolve()
        below = {out: known[out] for out in known if out.is_relative_to(place) or place.is_relative_to(out)}
        if not below:
            msg = f"{path}: expected an output of {dvc_lock.PATH}, a file in one, or a folder that holds one"
            raise ArtifactError(msg)
        found |= below
    outs = [*found.values()]
    count = broken = 0
    for entry in dvc_cache.list_entries(outs):
        count += 1
        if wrong := entry.explain(hashed=True):
            broken += 1
            print(wrong)
    print(f"{count} objects of {len(outs)} outputs: {broken or 'none'} missing or broken")
    return int(broken > 0)
