"""What other engines and precisions would make of the U-Net, beside the way it runs.

Megapixels per second of the network alone on one image, and how far the probabilities of the
classes move. Engines that are not installed are left out.

python benchmarks/engines.py -o benchmarks/engines.json
"""

import argparse
import sys
import time
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from probablend import __version__
from probablend.checkpoint import load_model
from probablend.emulate.blend import FieldConfig, draw_field
from probablend.emulate.sources import open_source
from probablend.evaluate.record import write_json
from probablend.models.blocks import ConvBlock
from probablend.models.field import FieldNetwork
from probablend.survey import get_survey


class Trunk(nn.Module):
    """Encoder, decoder and heads: cells in, features, heat and plain logits out."""

    def __init__(self, network: FieldNetwork) -> None:
        super().__init__()
        self.encoder, self.decoder = network.encoder, network.decoder
        self.heat, self.head = network.heat, network.head

    def forward(self, cells: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        features = self.decoder(self.encoder(cells))[0]
        logits = self.head(self.head.from_features(features.movedim(1, -1)), None)
        return features, self.heat(features), logits


def folded(trunk: Trunk) -> Trunk:
    """Batch normalisation as part of the convolution before it."""
    trunk = deepcopy(trunk)
    for block in [m for m in trunk.modules() if isinstance(m, ConvBlock)]:
        layers = list(block)
        for k in range(0, len(layers), 3):
            block[k], block[k + 1] = fuse_conv_bn_eval(layers[k], layers[k + 1]), nn.Identity()
    return trunk


def engines(trunk: Trunk, cells: Tensor) -> dict[str, Callable[[Tensor], tuple[Tensor, ...]]]:
    last = cells.to(memory_format=torch.channels_last)
    last_trunk = deepcopy(trunk).to(memory_format=torch.channels_last)
    fused = folded(last_trunk)

    def half(x: Tensor) -> tuple[Tensor, ...]:
        with torch.autocast("cpu", torch.bfloat16):
            return tuple(t.float() for t in last_trunk(x))

    def narrow(x: Tensor) -> tuple[Tensor, ...]:
        return tuple(t.float() for t in bf16(x.bfloat16()))

    bf16 = deepcopy(fused).bfloat16()
    compiled = torch.compile(fused)
    ways = {
        "eager, channels first": lambda: trunk(cells),
        "eager, channels last (as shipped)": lambda: last_trunk(last),
        "… normalisation folded in": lambda: fused(last),
        "… and torch.compile": lambda: compiled(last),
        "bfloat16, autocast": lambda: half(last),
        "bfloat16 throughout, folded": lambda: narrow(last),
    }
    try:
        import openvino

        model = openvino.convert_model(trunk, example_input=cells, input=list(cells.shape))
        for name, hint in (("OpenVINO, single", "f32"), ("OpenVINO, bfloat16", "bf16")):
            ready = openvino.compile_model(
                model, "CPU", {"INFERENCE_PRECISION_HINT": hint,
                               "INFERENCE_NUM_THREADS": torch.get_num_threads()},
            )  # fmt: skip
            ways[name] = lambda ready=ready: tuple(
                torch.from_numpy(np.array(v)) for v in ready(cells.numpy()).values()
            )
    except ImportError:
        pass
    return ways


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, default=Path("engines.json"))
    parser.add_argument("--size", type=int, default=1312, help="side of the image, pixels")
    parser.add_argument("--repeat", type=int, default=3)
    arguments = parser.parse_args()
    survey = get_survey("euclid-vis")
    galaxies = open_source("parametric", survey, "test", n_galaxies=800, n_stars=30, seed=5)
    config = FieldConfig(size=arguments.size, density=160.0)
    scene = draw_field(galaxies, config, generator=np.random.default_rng(5))
    network, _ = load_model("field")
    assert isinstance(network, FieldNetwork)
    signal = torch.from_numpy(np.asarray(scene.image / scene.rms, np.float32))[None, None]
    cells = torch.nn.functional.pixel_unshuffle(torch.asinh(signal), network.config.stem)
    width = torch.full_like(cells[:, :1], float(np.log(survey.psf_fwhm_pixels)))
    # ln of the noise factors
    white = torch.zeros_like(width).expand(-1, network.config.n_noise_factors, -1, -1)
    cells = torch.cat([cells, width, white], dim=1)
    rows, wanted = {}, None
    for name, run in engines(Trunk(network).eval(), cells).items():
        try:
            said = run()
        except Exception as error:  # an engine that does not work here is a result
            if wanted is None:
                raise  # but not the one that the others are compared with
            rows[name] = {"error": str(error).split("\n")[0][:200]}
            continue
        seconds = []
        for _ in range(arguments.repeat):
            began = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - began)
        n = network.config.n_classes
        p = said[2].unflatten(-1, (n, -1)).softmax(dim=-2)
        wanted = p if wanted is None else wanted
        rows[name] = {
            "megapixels_per_second": arguments.size**2 / 1e6 / min(seconds),
            "largest_change_of_a_probability": float((p - wanted).abs().max()),
            "mean_change_of_a_probability": float((p - wanted).abs().mean()),
        }
        print(name, rows[name], flush=True)
    report = {
        "command": "python benchmarks/engines.py " + " ".join(sys.argv[1:]),
        "version": __version__,
        "threads": torch.get_num_threads(),
        "size": arguments.size,
        "engines": rows,
    }
    write_json(arguments.output, report)
    arguments.output.with_suffix(".md").write_text(table(report))


def table(report: dict) -> str:
    lines = [
        f"`{report['command']}`, {report['threads']} threads, one image of {report['size']}² "
        "pixels, the network alone.", "",
        "| | Mpx/s | largest, mean change of a probability |",
        "|---|---|---|",
    ]  # fmt: skip
    for name, row in report["engines"].items():
        if "error" in row:
            lines.append(f"| {name} | does not run: {row['error']} | |")
        else:
            lines.append(
                f"| {name} | {row['megapixels_per_second']:.2f} | "
                f"{row['largest_change_of_a_probability']:.0e}, "
                f"{row['mean_change_of_a_probability']:.0e} |"
            )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
