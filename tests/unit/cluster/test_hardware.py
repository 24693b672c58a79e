import os
import platform
import subprocess
import sys

import pytest
import torch

from rpa_ray.cluster import hardware
from rpa_ray.cluster.hardware import NativeDtype, bfloat16_factor, native_dtype
from rpa_ray.config import with_dtype
from rpa_ray.plan import parse_tree

IMITATED = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
"""Has torch compute as on a processor without AVX-512; read where torch is imported."""


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Return a processor with everything, of which a test takes something away."""
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    monkeypatch.setattr(hardware, "bfloat16_factor", lambda: 0.2)
    return monkeypatch


@pytest.mark.parametrize("lacks", ["_is_avx512_bf16_supported", "_is_amx_tile_supported"])
def test_either_kind_of_instructions_makes_it_bfloat16(
    processor: pytest.MonkeyPatch, lacks: str
) -> None:
    processor.setattr(torch.cpu, lacks, lambda: False)
    assert native_dtype(on_gpu=False).dtype == "bfloat16"


def test_a_processor_without_the_instructions_computes_float32(
    processor: pytest.MonkeyPatch,
) -> None:
    # AVX-512 without them, as on the first servers that had it
    processor.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    processor.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    native = native_dtype(on_gpu=False)
    assert (native.dtype, native.reason) == ("float32", "this CPU has no bfloat16 instructions")


@pytest.mark.parametrize(
    ("where", "name", "answer", "reason"),
    [
        (torch.backends.cpu, "get_cpu_capability", "AVX2", "ATEN_CPU_CAPABILITY"),
        (torch.ops.mkldnn, "_is_mkldnn_bf16_supported", False, "ONEDNN_MAX_CPU_ISA"),
        (platform, "machine", "aarch64", "aarch64"),
    ],
)
def test_what_somebody_has_switched_off_is_not_there(
    processor: pytest.MonkeyPatch, where: object, name: str, answer: object, reason: str
) -> None:
    processor.setattr(where, name, lambda: answer)
    native = native_dtype(on_gpu=False)
    assert native.dtype == "float32"
    assert reason in native.reason


def test_gpus_that_are_elsewhere_are_taken_to_compute_bfloat16(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    native = native_dtype(on_gpu=True)
    assert (native.dtype, native.factor) == ("bfloat16", None)


def test_the_two_variables_have_any_processor_compute_float32() -> None:
    code = "from rpa_ray.cluster.hardware import native_dtype\nprint(native_dtype(False).dtype)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **IMITATED},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["float32"]


def test_measuring_leaves_the_number_of_threads_as_it_was() -> None:
    before = torch.get_num_threads()
    assert bfloat16_factor() > 0
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("native", "factor", "asked", "doubt"),
    [
        ("bfloat16", 20.0, "auto", "bfloat16 takes 20 times as long as float32 here (measured)"),
        ("float32", 20.0, "bfloat16", "bfloat16 takes 20 times as long as float32 here (measured)"),
        ("float32", 0.1, "auto", "float32 takes 10 times as long as bfloat16 here (measured)"),
        ("bfloat16", 0.1, "float32", ""),
        ("bfloat16", 2.9, "auto", ""),
        ("float32", 20.0, "auto", ""),
        ("bfloat16", None, "bfloat16", ""),
    ],
)
def test_a_measurement_that_contradicts_by_more_than_three_times_is_said(
    native: str, factor: float | None, asked: str, doubt: str
) -> None:
    found = NativeDtype(dtype=native, reason="", factor=factor)  # type: ignore[arg-type]
    assert found.doubt(asked) == doubt  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], "bfloat16"),
        (["model.dtype=float32"], "float32"),
        (["cluster.zero_stage=0"], "float32"),
    ],
)
def test_auto_is_the_hardwares_type_save_where_zero_keeps_no_masters(
    overrides: list[str], expected: str
) -> None:
    settings = parse_tree({"attack": "sft"}, overrides)
    assert with_dtype(settings, "bfloat16").model.dtype == expected
    assert with_dtype(settings, "float32").model.dtype == "float32"


def test_refusals_that_are_generated_are_written_by_the_type_of_the_cell() -> None:
    tree = {"attack": "sft", "data": {"safe_answers": "generated"}}
    assert with_dtype(parse_tree(tree), "float32").data.refusals.dtype == "float32"
    own = parse_tree(tree, ["data.refusals.dtype=bfloat16"])
    assert with_dtype(own, "float32").data.refusals.dtype == "bfloat16"
