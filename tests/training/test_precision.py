"""The training precision and the device."""

from __future__ import annotations

import pytest
import torch

from txclf.config.sections import Compute
from txclf.core.errors import ConfigError
from txclf.training.precision import choose_precision, uses_gpu


@pytest.mark.parametrize(
    ("setting", "gpu", "expected"),
    [("fp32", False, "32-true"), ("fp32", True, "32-true"), ("bf16", False, "bf16-mixed"), ("fp16", True, "16-mixed")],
)
def test_choose_precision_takes_the_setting(setting: str, gpu: bool, expected: str) -> None:
    assert choose_precision(setting, gpu) == (expected, "as the run file says")


def test_choose_precision_fp16_without_gpu_raises() -> None:
    with pytest.raises(ConfigError, match=r"`train\.precision: fp16` needs a GPU. Set `auto`, `bf16` or `fp32`"):
        choose_precision("fp16", gpu=False)


def test_choose_precision_auto_is_bf16_if_the_cpu_has_it() -> None:
    chosen, why = choose_precision("auto", gpu=False)
    fast = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    assert chosen == ("bf16-mixed" if fast else "32-true")
    assert "AMX" in why or "AVX512-BF16" in why


def test_uses_gpu_if_there_is_one() -> None:
    assert uses_gpu(Compute(workers=0)) == torch.cuda.is_available()
    assert uses_gpu(Compute(workers=2, gpus_per_worker=1))
    assert not uses_gpu(Compute(workers=2, gpus_per_worker=0))
