"""The trackers that there are. Their packages are imported when one is opened, in the thread of the queue."""

from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from controlplane.contract.rundir import RunInfo
from controlplane.contract.yamlfile import FileError
from trainer.logs.queue import LogQueue, Tracker
from trainer.settings import Log


def opened(spec: Log, info: RunInfo, config: Mapping[str, Any], folder: Path) -> LogQueue | None:
    """The queue in front of the tracker that the recipe asks for; None where it asks for none.

    Args:
        config: the resolved recipe, shown beside the curves.
        folder: where a tracker keeps its own files.

    Raises:
        FileError: its package is not installed.
    """
    if spec.kind == "none":
        return None
    if find_spec(spec.kind) is None:
        raise FileError(f"log.kind: {spec.kind} is not installed; pip install 'scalerl[{spec.kind}]', or log.kind=none")
    kinds: dict[str, Callable[..., Tracker]] = {"wandb": _Wandb, "trackio": _Trackio}
    return LogQueue(partial(kinds[spec.kind], spec, info, config, folder), spec.queue)


class _Wandb:
    """Weights & Biases. Its own variables decide the rest: WANDB_MODE=offline, WANDB_ENTITY, WANDB_API_KEY."""

    def __init__(self, spec: Log, info: RunInfo, config: Mapping[str, Any], folder: Path) -> None:
        wandb: Any = import_module("wandb")
        folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=spec.project,
            name=info.name,
            id=info.run_uid,
            resume="allow",
            dir=str(folder),
            config=dict(config),
            settings=wandb.Settings(console="off", disable_git=True, save_code=False),
        )
        # A rollback takes the step back, and wandb drops what is logged behind its own counter.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, figures: Mapping[str, float]) -> None:
        self._run.log(dict(figures))

    def close(self) -> None:
        self._run.finish()


class _Trackio:
    """trackio, local unless TRACKIO_SPACE_ID or the like says otherwise; TRACKIO_DIR is where it keeps its files."""

    def __init__(self, spec: Log, info: RunInfo, config: Mapping[str, Any], folder: Path) -> None:
        trackio: Any = import_module("trackio")
        self._run = trackio.init(
            project=spec.project,
            name=f"{info.name}-{info.run_uid[:8]}",
            config=dict(config),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def log(self, figures: Mapping[str, float]) -> None:
        self._run.log(dict(figures), step=int(figures["step"]))

    def close(self) -> None:
        self._run.finish()
