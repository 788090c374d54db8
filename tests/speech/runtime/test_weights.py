"""Weights on their way."""

from __future__ import annotations

import pickle

import torch

from speech.runtime.weights import AdapterBucket, WeightBucket, tensor_digest


def test_a_bucket_is_pickled_without_a_copy_of_its_tensors() -> None:
    """Ray copies buffers that pickle leaves outside straight into its object store."""
    tensors = {
        "matrix": torch.randn(30, 40),
        "half": torch.randn(7).bfloat16(),
        "scalar": torch.tensor(2.0),
        "strided": torch.randn(6, 4).T,
        "learns": torch.nn.Parameter(torch.randn(5)),
    }
    buffers: list[pickle.PickleBuffer] = []
    data = pickle.dumps(WeightBucket.of(tensors), protocol=5, buffer_callback=buffers.append)
    outside = {buffer.raw().nbytes for buffer in buffers}
    assert tensors["matrix"].nbytes in outside and len(data) < 2000
    found = pickle.loads(data, buffers=[bytes(buffer) for buffer in buffers])  # noqa: S301 - of the line above
    assert found.digests == {name: tensor_digest(tensor) for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        assert found.tensors[name].dtype == tensor.dtype and torch.equal(found.tensors[name], tensor), name
        assert tensor_digest(found.tensors[name]) == found.digests[name]


def test_an_adapter_is_pickled_with_its_configuration() -> None:
    adapter = AdapterBucket.pack({"base_model.model.a.lora_A.weight": torch.randn(2, 3)}, {"r": 2, "lora_alpha": 4})
    found = pickle.loads(pickle.dumps(adapter))  # noqa: S301 - of this line
    assert type(found) is AdapterBucket and found.config == adapter.config and found.digests == adapter.digests
    for name, tensor in adapter.tensors.items():
        assert torch.equal(found.tensors[name], tensor) and tensor_digest(tensor) == found.digests[name]


def test_the_digest_is_of_type_shape_and_bytes() -> None:
    tensor = torch.arange(6.0)
    same = (tensor.clone(), torch.arange(12.0)[::2] / 2)
    assert {tensor_digest(t) for t in same} == {tensor_digest(tensor)}
    others = (tensor.reshape(2, 3), tensor.bfloat16(), tensor + 1)
    assert len({tensor_digest(t) for t in (tensor, *others)}) == 4
