"""What `--verbose` says of loading is true, or not said."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from globalres_jax import models
from globalres_jax.commands import loading
from globalres_jax.commands.loading import Loading, load_measured
from globalres_jax.models import placement


def parameter_bytes(draft, dtype=jnp.float32):
    """Loads the embedded target and counts."""
    target, draft, measured = load_measured("embedded", draft, jnp.dtype(dtype))
    assert measured.seconds > 0
    text = f"parameters {measured.parameter_bytes / 1e9:.3f} GB"
    assert text in str(measured)
    return target, draft, measured.parameter_bytes


def test_shared_parameters_count_once_and_halves_as_halves():
    target, draft, both = parameter_bytes("embedded-draft")
    sizes = [sum(x.nbytes for x in jax.tree.leaves(m)) for m in (target, draft)]
    assert both == sum(sizes)
    for other in ("layers:0-1", "prompt-lookup"):
        assert parameter_bytes(other)[-1] == sizes[0]
    half = parameter_bytes("embedded-draft", jnp.bfloat16)[-1]
    assert both / 2 < half < 0.51 * both  # norms stay float32


def test_numbers_are_as_the_device_likes_them(monkeypatch):
    """Float32 on a CPU, bfloat16 on accelerators, where the user does not say."""
    assert placement.default_dtype() == jnp.float32
    model, _, measured = load_measured("embedded-draft", "prompt-lookup")
    assert "float32 on cpu: parameters" in str(measured)
    assert model.init_cache(1, 2).keys[0].dtype == jnp.float32
    device = jax.devices()[0]
    gpu = SimpleNamespace(platform="gpu", device_kind="NVIDIA H100")
    monkeypatch.setattr(placement, "first_device", lambda mesh=None: gpu)
    half = placement.default_dtype()
    assert half == jnp.bfloat16
    # Nothing can be placed on a device that is not there.
    monkeypatch.setattr(placement, "first_device", lambda mesh=None: device)
    for module in (loading, models.loading):
        monkeypatch.setattr(module, "default_dtype", lambda mesh=None: half)
    monkeypatch.setattr(loading, "first_device", lambda: gpu)
    model, _, measured = load_measured("embedded-draft", "prompt-lookup")
    assert "bfloat16 on NVIDIA H100: parameters" in str(measured)
    for loaded in (model, models.load("embedded-draft")):
        assert loaded.init_cache(1, 2).keys[0].dtype == jnp.bfloat16


def test_a_peak_before_loading_is_not_said_to_be_of_loading():
    peak = loading._peak()
    if peak is not None:  # a peak that loading a few megabytes cannot reach
        held = loading._status("VmRSS") or 0
        np.ones((peak - held) // 8 + 10_000_000)
        assert loading._peak() > peak
    measured = load_measured("embedded", "embedded-draft", jnp.dtype("float32"))[-1]
    assert measured.peak_bytes is None and "peak" not in str(measured)


@pytest.mark.parametrize("now", [5_000_000, None])
def test_a_peak_while_loading_is_said(monkeypatch, now):
    peaks = iter([6_000_000, 9_000_000])
    monkeypatch.setattr(loading, "_peak", lambda: next(peaks))
    monkeypatch.setattr(loading, "_status", lambda word: now)
    monkeypatch.setattr(models, "load_pair", lambda *_: ((), ()))
    measured = load_measured("embedded", "embedded-draft", jnp.dtype("float32"))[-1]
    wanted = Loading(measured.seconds, "float32 on cpu", 0, now, 9_000_000)
    assert measured == wanted
    assert "peak memory of the process while loading 0.009 GB" in str(measured)
    assert ("(0.005 GB when it began)" in str(measured)) == (now is not None)
