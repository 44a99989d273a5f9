import hashlib
import json
import shutil
import struct
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from probablend import checkpoint
from probablend.checkpoint import (
    available_models,
    find_model,
    load_model,
    load_tensors,
    save_weights,
)


def test_weights_come_back_as_they_went(small_network, small_weights):
    network, meta = load_model(small_weights)
    assert meta["name"] == "small"
    for key, value in small_network.state_dict().items():
        assert torch.equal(value, network.state_dict()[key]), key
    assert not network.training


def test_half_precision_keeps_three_digits(small_network, small_weights, tmp_path):
    _, meta = load_model(small_weights)
    save_weights(tmp_path / "half.safetensors", small_network, meta, half=True)
    network, _ = load_model(tmp_path / "half.safetensors")
    image = torch.randn(1, 1, 32, 32)
    with torch.inference_mode():
        a, b = (n(image).mean(4) for n in (small_network, network))
    assert float((a - b).abs().max()) < 0.01
    assert json.loads((tmp_path / "half.json").read_text())["name"] == "small"


def test_every_shipped_model_loads():
    assert "euclid-vis" in available_models()
    for name in available_models():
        network, meta = load_model(name)
        assert meta["name"] == name
        assert sum(p.numel() for p in network.parameters()) > 1000


@pytest.mark.parametrize("name", available_models())
def test_what_is_said_beside_shipped_weights_is_said_in_them(name):
    path = find_model(name)
    _, meta = load_tensors(path)
    beside = json.loads(path.with_suffix(".json").read_text())
    assert {k: v for k, v in meta.items() if k != "command"} == {
        k: v for k, v in beside.items() if k != "command"
    }
    for image in meta["config"]["bank"].get("psf_images", []):
        assert Path(image).name == image  # no folder of the machine that trained


def test_the_sums_are_those_of_all_shipped_weights():
    folder = Path(str(files("probablend") / "weights"))
    lines = [line.split() for line in (folder / "SHA256SUMS").read_text().splitlines()]
    found = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.glob("*.safe*")}
    assert {name: sha for sha, name in lines} == found, "remake SHA256SUMS, see docs/training.md"


def test_shipped_weights_with_a_changed_byte_are_refused(tmp_path, monkeypatch):
    shutil.copytree(str(files("probablend") / "weights"), tmp_path / "weights")
    monkeypatch.setattr(checkpoint, "files", lambda _: tmp_path)
    path = find_model("pairs-unet")
    assert path.is_relative_to(tmp_path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"not what was shipped: .* wanted, .* install"):
        load_model("pairs-unet")
    assert load_model(path)[1]["name"] == "pairs-unet"  # by its path it is a file like any other
    (tmp_path / "weights" / "SHA256SUMS").unlink()
    with pytest.raises(ValueError, match="SHA-256 nothing was wanted"):
        load_model("field")


def test_a_name_that_is_not_known_lists_those_that_are():
    with pytest.raises(FileNotFoundError, match="unknown model 'nope'; known: "):
        load_model("nope")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_model("nope.safetensors")


def declared(shape, n_bytes):
    """A safetensors file without data, whose header promises them."""
    tensor = {"dtype": "F32", "shape": shape, "data_offsets": [0, n_bytes]}
    header = json.dumps({"__metadata__": {"probablend": "{}"}, "a": tensor}).encode()
    return struct.pack("<Q", len(header)) + header


@pytest.mark.parametrize(
    "content",
    [b"", b"not safetensors", b"\xff" * 64, struct.pack("<Q", 1 << 40) + b"{}",
     declared([1 << 40], 4 << 40), declared([1 << 20, 1 << 20], 0)],
    ids=["empty", "text", "noise", "huge header", "huge tensor", "huge shape"],
)  # fmt: skip
def test_a_file_that_is_no_weight_file_is_refused(tmp_path, content):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="weight file"):
        load_model(path)


def test_weights_that_do_not_fit_their_settings_are_refused(tmp_path, small_weights):
    tensors, meta = load_tensors(small_weights)
    del tensors["head.from_features.bias"]
    path = tmp_path / "short.safetensors"
    save_file(tensors, path, metadata={"probablend": json.dumps(meta)})
    with pytest.raises(ValueError, match="does not hold the weights of its own settings"):
        load_model(path)
    save_file(tensors, path)
    with pytest.raises(ValueError, match="no probablend settings"):
        load_model(path)


def test_weights_that_are_not_finite_are_refused(tmp_path, small_weights):
    tensors, meta = load_tensors(small_weights)
    tensors["head.from_features.bias"][0] = float("nan")
    path = tmp_path / "nan.safetensors"
    save_file(tensors, path, metadata={"probablend": json.dumps(meta)})
    with pytest.raises(ValueError, match="not finite"):
        load_model(path)


@pytest.mark.parametrize(
    ("change", "said"),
    [({"channels": [3000] * 4}, "cannot be built: it is larger than the file"),
     ({"n_convs": 3000}, "cannot be built: it is larger than the file"),
     ({"channels": [10**9, 10**9]}, "a size of 1000000000"),
     ({"channels": [[8], 8]}, "channels"),
     ({"speed": 11}, "speed"),
     ({"kind": "oracle"}, "kind must be one of")],
)  # fmt: skip
def test_a_file_does_not_say_how_much_memory_is_taken(small_weights, tmp_path, change, said):
    """Settings of a network that the file's own weights cannot fill; or of none at all."""
    tensors, meta = load_tensors(small_weights)
    path = tmp_path / "odd.safetensors"
    odd = meta | {"model": meta["model"] | change}
    save_file(tensors, path, metadata={"probablend": json.dumps(odd)})
    with pytest.raises(ValueError, match=said):
        load_model(path)


@pytest.mark.parametrize(
    "settings",
    ["[1, 2]", "null", "[" * 100_000, '{"model": 3}', '{"model": {}, "trained_range": 1}',
     '{"model": {}, "psf_fwhm_pixels": ["a"]}', '{"model": {}, "trained_range": {"flux": "ab"}}'],
    ids=["list", "null", "deep", "number", "range", "width", "text"],
)  # fmt: skip
def test_settings_of_another_kind_are_refused(small_weights, tmp_path, settings):
    path = tmp_path / "odd.safetensors"
    save_file(load_tensors(small_weights)[0], path, metadata={"probablend": settings})
    with pytest.raises(ValueError, match=r"odd\.safetensors"):
        load_model(path)
