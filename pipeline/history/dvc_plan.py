"""Asks DVC which stage instances there are, which of them need one another, and which are not up to date.

`dvc repro` runs the instances of its plan one after another. `pipeline repro` runs those that do not need one another
side by side, each as a `dvc repro` of its own, so that only DVC decides what is run, restored and stored.
"""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from typing import Any

from pipeline import artifacts, params
from pipeline.artifacts import ArtifactError
from pipeline.history import dvc_lock


class Plan:
    """The instances that some targets need, in the order of `dvc repro`.

    needs: by instance the instances whose outputs it reads.
    """

    def __init__(self, targets: Sequence[str] = ()) -> None:
        """Read the project in the working folder; without targets the plan has every stage.

        Raises:
            ArtifactError: if DVC cannot read it, or knows no such target.
        """
        from dvc.repo.reproduce import collect_stages, get_active_graph, plan_repro

        with explain():
            self.repo = open_repo()
            with self.repo.lock:
                stages = collect_stages(self.repo, targets or ["dvc.yaml"])
                graph = get_active_graph(self.repo.index.graph)
                steps = plan_repro(graph, stages)
        self.needs: dict[str, set[str]] = {
            stage.addressing: {other.addressing for other in graph.successors(stage)} for stage in steps
        }
        self.locked = list(dvc_lock.read_stages())

    def is_stale(self, name: str) -> bool:
        """Say whether `dvc repro` would run, or restore, an instance as the files are now.

        Raises:
            ArtifactError: if DVC cannot tell, for example because a foreign process writes the instance's files.
        """
        with explain(), self.repo.lock:
            self.repo._reset()  # noqa: SLF001 - as DVC itself does under its lock: other processes write dvc.lock
            (stage,) = self.repo.stage.collect(name)
            return bool(stage.changed())

    def sort_lock(self) -> None:
        """Give dvc.lock the order that `dvc repro` leaves: the entries that it had, then the new ones as planned."""
        from dvc.utils.serialize import dumps_yaml, parse_yaml_for_update

        with explain(), self.repo.lock:
            if not dvc_lock.PATH.exists():
                return
            lock = parse_yaml_for_update(dvc_lock.PATH.read_text(encoding="utf-8"), str(dvc_lock.PATH))
            stages = lock.get("stages") or {}
            order = [name for name in dict.fromkeys([*self.locked, *self.needs, *stages]) if name in stages]
            if order != list(stages):
                for name in order:
                    stages[name] = stages.pop(name)
                artifacts.write_bytes(dvc_lock.PATH, dumps_yaml(lock).encode())


def open_repo(*, waits: bool = True) -> Any:
    """Return DVC's project of the working folder; `waits`: whether its lock waits for other processes of DVC.

    Raises:
        ArtifactError: if there is no project.
    """
    from dvc.repo import Repo  # half a second, which only those need who ask

    logging.getLogger("dvc").setLevel(logging.WARNING)
    with explain():
        return Repo(_wait_for_lock=waits)


@contextlib.contextmanager
def explain() -> Iterator[None]:
    """Turn an error of DVC into one of ours, with the key of params.yaml that is wrong: DVC does not name it."""
    from dvc.exceptions import DvcException

    try:
        yield
    except DvcException as error:
        msg = f"DVC cannot do it: {error}"
        try:
            params.load()
        except params.ParamsError as wrong:
            msg = f"{msg}; {wrong}"
        raise ArtifactError(msg) from error
