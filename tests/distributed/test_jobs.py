"""Jobs on the command line: one speaks for all, differing hosts do not start, none is left over."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.checkpoints import EOS_TOKEN_IDS, make_tensors, write_checkpoint, write_weights
from tests.distributed.jobs import Process, end, free_ports, start
from tests.model.tiny_models import TINY_MODELS

GENERATE = ["-m", "mlx_qwen3.cli", "generate", "Hello", "--raw", "--temperature", "0"]
# Seconds in which all must have ended.
SOON = 5.0


@pytest.fixture(scope="module")
def endless(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that never ends its reply."""
    folder = tmp_path_factory.mktemp("endless") / "endless"
    shutil.copytree(checkpoint, folder)
    tensors = make_tensors(TINY_MODELS["dense"].config, seed=0)
    for token_id in EOS_TOKEN_IDS:
        tensors["lm_head.weight"][token_id] = 0  # far below the candidates
    write_weights(folder, tensors)
    return folder


def generating(model: Path, parallel: str, *options: str) -> list[str]:
    return [*GENERATE, "-m", str(model), "--parallel", parallel, *options]


@pytest.mark.parametrize("parallel", ["tensor", "pipeline"])
def test_the_launcher_of_mlx_runs_a_job_and_one_process_prints(
    checkpoint: Path, parallel: str
) -> None:
    command = [sys.executable, *generating(checkpoint, parallel, "--max-tokens", "8", "--json")]
    launcher = Path(sys.executable).with_name("mlx.launch")
    ports = ["--starting-port", str(free_ports(1)[0])]
    job = subprocess.Popen(
        [str(launcher), "-n", "2", "--backend", "ring", *ports, "--", *command],
        stdin=subprocess.PIPE,  # the launcher reads it until it is through
        stdout=subprocess.PIPE,
        text=True,
    )
    with job:
        out = job.stdout.read() if job.stdout else ""
    alone = subprocess.run(
        [sys.executable, *GENERATE, "-m", str(checkpoint), "--max-tokens", "8"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert out.count('"text"') == 1
    assert alone.stdout.strip() in out


def test_hosts_with_different_weights_do_not_start(checkpoint: Path, tmp_path: Path) -> None:
    """The headers of both are the same: one may be a fine-tune of the other."""
    other = write_checkpoint(tmp_path / "other", TINY_MODELS["dense"].config, seed=1)
    job = start([generating(model, "tensor") for model in (checkpoint, other)], tmp_path)
    for code, out, stderr in end(job):
        assert (code, out) == (1, "")
        assert "weights of rank 1 differ from those of rank 0" in stderr


def test_a_model_that_cannot_be_split_says_why(
    tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    model = tiny_folder("gqa-1")
    for code, out, stderr in end(start([generating(model, "tensor")] * 2, tmp_path)):
        assert (code, out) == (1, "")
        assert "2 processes cannot share 3 attention heads evenly" in stderr


def test_a_process_alone_is_told_how_to_start_others(checkpoint: Path) -> None:
    alone = subprocess.run(
        [sys.executable, *generating(checkpoint, "tensor")], capture_output=True, text=True
    )
    assert alone.returncode == 1
    assert "mlx.launch" in alone.stderr


def begun(model: Path, parallel: str, size: int, folder: Path) -> list[Process]:
    """Processes in the midst of a reply without end."""
    options = ["--max-tokens", "1000000", "--max-kv-size", "64"]
    job = start([generating(model, parallel, *options)] * size, folder)
    assert job[0].stdout is not None
    assert job[0].stdout.read(1)
    return job


def end_within(job: list[Process], victim: int) -> list[str]:
    """What the others say; fails if one of them is still there when all should be gone."""
    others = [process for rank, process in enumerate(job) if rank != victim]
    deadline = time.monotonic() + SOON
    try:
        said = [one.communicate(timeout=max(deadline - time.monotonic(), 0.1)) for one in others]
    finally:
        for process in job:
            process.kill()
        job[victim].communicate()
    assert [one.returncode for one in others] == [1] * len(others)
    return [stderr for _, stderr in said]


@pytest.mark.parametrize(("parallel", "victim"), [("tensor", 1), ("tensor", 0), ("pipeline", 1)])
def test_a_killed_process_ends_the_job(
    endless: Path, tmp_path: Path, parallel: str, victim: int
) -> None:
    job = begun(endless, parallel, 2, tmp_path)
    job[victim].kill()
    (said,) = end_within(job, victim)
    assert f"rank {victim} (127.0.0.1) has ended; this ends the job on all hosts" in said


@pytest.mark.parametrize("victim", [0, 1])
def test_a_hanging_process_ends_the_job(endless: Path, tmp_path: Path, victim: int) -> None:
    job = begun(endless, "tensor", 2, tmp_path)
    os.kill(job[victim].pid, signal.SIGSTOP)
    (said,) = end_within(job, victim)
    assert f"rank {victim} (127.0.0.1) has not answered for" in said


@pytest.mark.slow
def test_four_processes_name_the_one_that_is_gone(endless: Path, tmp_path: Path) -> None:
    job = begun(endless, "tensor", 4, tmp_path)
    job[2].kill()
    assert all("rank 2" in said for said in end_within(job, 2))
