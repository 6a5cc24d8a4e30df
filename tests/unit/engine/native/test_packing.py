"""Int8 groups, the packed layout, and the file that holds it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from deployments.engine.native.packing import GROUP, pack, quantize_weight
from deployments.engine.native.weight_file import map_weights, read_metadata, write_weights

from .oracle import unpack

sizes = st.integers(1, 200)


@settings(max_examples=30, deadline=None)
@given(n=sizes, k=sizes, seed=st.integers(0, 1000))
def test_quantised_weights_are_within_half_a_step(n: int, k: int, seed: int) -> None:
    weight = torch.randn((n, k), generator=torch.Generator().manual_seed(seed))

    values, scales = quantize_weight(weight)

    restored = (values.unflatten(1, (-1, GROUP)) * scales[:, :, None]).flatten(1)
    steps = scales.repeat_interleave(GROUP, dim=1)
    assert ((restored[:, :k] - weight).abs() <= 0.5001 * steps[:, :k]).all()
    assert values.abs().max() <= 127
    assert not restored[:, k:].any()


def test_zero_weights_stay_zero() -> None:
    values, scales = quantize_weight(torch.zeros((3, 70)))

    assert not values.any()
    assert not scales.any()


@settings(max_examples=30, deadline=None)
@given(n=sizes, k=sizes, seed=st.integers(0, 1000))
def test_packing_loses_nothing(n: int, k: int, seed: int) -> None:
    values, scales = quantize_weight(torch.randn((n, k), generator=torch.Generator().manual_seed(seed)))

    packed = pack(values, scales)

    unpacked_values, unpacked_scales = unpack(packed, n, k)
    assert torch.equal(unpacked_values, values)
    assert torch.equal(unpacked_scales, scales)
    assert packed.nbytes % 64 == 0


def test_the_file_is_mapped_aligned_and_readable_by_others(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    tensors = {
        "bytes": np.arange(128, dtype=np.uint8),
        "halves": np.arange(64, dtype=np.float16).reshape(2, 32),
        "floats": np.arange(16, dtype=np.float32),
    }

    write_weights(file, tensors, {"format": "test"})

    mapped = map_weights(file)
    assert read_metadata(file) == {"format": "test"}
    assert all(tensor.ctypes.data % 64 == 0 and not tensor.flags.writeable for tensor in mapped.values())
    for read in (mapped, load_file(file)):
        assert read.keys() == tensors.keys()
        assert all(np.array_equal(read[name], tensor) for name, tensor in tensors.items())


def test_a_tensor_that_breaks_the_alignment_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="odd"):
        write_weights(tmp_path / "file", {"odd": np.zeros(3, np.uint8)}, {})
