"""Runs the stages of a run, each as a process, unless its output is complete for the same inputs and settings."""

import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from stages.command import UserError
from stages.forecast import Forecast
from stages.launch import Launcher
from stages.lock import run_lock
from stages.settings import Settings
from stages.stage import Job, Stage


class Runner:
    """A run's config and folder, and what starts its stages."""

    def __init__(self, config: Path, settings: Settings, folder: Path, launcher: Launcher):
        self.config, self.settings, self.folder, self.launcher = config, settings, folder, launcher
        self.forecast = Forecast(settings)

    def run_stage(self, stage: Stage, out: Path, t: int = 0, **inputs: Any) -> Path:
        return self.run_job(stage, stage.job(self.settings, out, t, **inputs))

    def run_shared(self, stage: Stage, job: Job, shared: Path, inner: str = "", name: str = "") -> Path:
        """Run a job in the folder `inner` of one that several runs share, and may want at the same time."""
        with run_lock(shared, wait=True):
            return self.run_job(stage, replace(job, out=shared / inner), name)

    def run_job(self, stage: Stage, job: Job, name: str = "") -> Path:
        """Run a job of a stage, unless it is complete; the output folder. `name`: the stage's name in the forecast."""
        name = name or "/".join(job.out.parts[-2:])
        if job.complete:
            self.forecast.done(name)
            return job.out
        weights = sum(path.stat().st_size for model in job.paths("model") for path in model.glob("*.safetensors"))
        if (free := shutil.disk_usage(self.folder).free) < 7 * weights:  # a training state in fp32, and a checkpoint
            raise UserError(f"{self.folder}: {free / 1e9:.1f} GB are free, {7 * weights / 1e9:.1f} needed; make room")
        with self.forecast.stage(name) as note:
            share = f"  ({note})" if note else ""
            print(f"[{time.strftime('%H:%M:%S')}] {stage.module} -> {job.out}{share}", flush=True)
            words = stage.arguments(self.config, job)
            self.start(stage.module, words, "-".join(job.out.parts[-2:]), stage.ranks != "one")
        return job.out

    def start(self, module: str, words: Sequence[str | Path], name: str, distributed: bool = False) -> None:
        """Run a module as a process, or on all ranks; SystemExit if it fails."""
        if code := self.launcher.run(module, words, name, distributed):
            raise SystemExit(code)
