"""What a `config.json` means, said and unsaid, is what the reference makes of it."""

import json

import numpy as np
import pytest
from loaded import DATA
from safetensors.numpy import save_file

from globalres_jax.models.loading import _ends, _folder_family
from globalres_jax.models.rope_options import context_length
from globalres_jax.models.safetensors_folder import SafetensorsFolder

#: Made by transformers, see `make_configurations.py`.
CONFIGURATIONS = json.loads((DATA / "configurations.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with one tensor: configurations are read before any."""
    folder = tmp_path_factory.mktemp("folder")
    save_file({"x": np.zeros(1, np.float32)}, folder / "model.safetensors")
    return folder


def read(folder, options):
    """The source, family and description of a folder with these options."""
    (folder / "config.json").write_text(json.dumps(options))
    source = SafetensorsFolder(folder)
    family = _folder_family(source)
    return family, source.description(family.defaults)


def some(rope, head_dim):
    """The frequencies that the golden file has."""
    half = head_dim // 2
    return rope.frequencies(head_dim)[[0, 1, half // 2, half - 2, half - 1]]


def test_configurations_are_of_all_families():
    kinds = [case["options"]["model_type"] for case in CONFIGURATIONS]
    assert len(kinds) > 50 and len(set(kinds)) == 7
    assert not all("architectures" in case["options"] for case in CONFIGURATIONS)


@pytest.mark.parametrize("case", range(len(CONFIGURATIONS)))
def test_a_configuration_means_what_the_reference_makes_of_it(case, folder):
    options, wanted = (CONFIGURATIONS[case][name] for name in ("options", "shape"))
    family, described = read(folder, options)
    config = family.configure(described)
    attention = config.attention
    scale = attention.head_dim**-0.5 if attention.scale is None else attention.scale
    assert {
        "vocab_size": config.vocab_size,
        "width": config.width,
        "query": attention.num_heads * attention.head_dim,
        "key": attention.num_kv_heads * attention.head_dim,
        "head_dim": attention.head_dim,
        "mlp_width": config.mlp_width,
        "biases": [attention.qkv_bias, attention.out_bias, config.mlp_bias],
        "cap": attention.cap,
        "logit_cap": config.logit_cap,
        "eps": config.norm_eps,
        "tied": config.tied,
        "windows": [layer.window for layer in config.layers],
    } == {name: wanted[name] for name in wanted if name in _COMPARED}
    np.testing.assert_allclose(scale, wanted["scale"], rtol=1e-7)
    for layer in config.layers:
        name = "full" if layer.window is None else "sliding"
        if wanted[name] is None:  # all layers of a model with one rotation slide
            name = "full"
        np.testing.assert_allclose(
            some(layer.rope, attention.head_dim), wanted[name], rtol=1e-6
        )
    assert context_length(described, True) == wanted["max_position_embeddings"]
    eos = wanted["eos"]
    ends = (eos,) if isinstance(eos, int) else eos and tuple(eos)
    assert _ends(folder, described, None) == ends


_COMPARED = (
    *("vocab_size", "width", "query", "key", "head_dim", "mlp_width", "biases"),
    *("cap", "logit_cap", "eps", "tied", "windows"),
)
