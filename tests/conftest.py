import atexit
import gc
import os
import shutil
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Importing jaxlib beside libtpu must not look for a machine that has one.
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")

import jaxlib.version

# Compilation is most of what the tests take. Less optimised programs compile in a
# quarter of the time, and with XLA's older emitters for CPUs in a third of that; to
# split a program among threads is more work. Child processes inherit this.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
_flags = ["--xla_cpu_parallel_codegen_split_count=1"]
if jaxlib.version.__version_info__ < (0, 11):
    # Later ones end the process at an option that they do not know, and have no others.
    _flags.append("--xla_cpu_use_fusion_emitters=false")
for _flag in _flags:
    if _flag not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_flag}".strip()

# No operation is told which lines of Python it comes from: a twentieth of all.
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")

# One compilation cache for all workers and the processes that tests start, made anew
# by whoever starts them all, who also takes it away.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _cache = tempfile.mkdtemp(prefix="globalres_jax_tests_")
    atexit.register(shutil.rmtree, _cache, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import jax
import numpy as np
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")

#: Where random keys are what is tested, or close to it: folders and files.
_WITH_KEYS = ("draft_laws", "drafters", "test_text_law", "test_categorical")

if "PYTEST_XDIST_WORKER" in os.environ:
    # A worker has told all that it knows; to take its programs apart takes seconds.
    atexit.register(os._exit, 0)


def pytest_sessionfinish():
    """At its end pytest looks over all there is five times, which takes seconds."""
    gc.freeze()


def pytest_collection_finish():
    """What was imported stays, and need not be looked over while programs are made."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)


@pytest.fixture(autouse=True, scope="module")
def keys_are_used_once(request):
    """A key used twice is an error; the check takes its part of every compilation."""
    path = request.path
    with jax.debug_key_reuse(not {path.parent.name, path.stem}.isdisjoint(_WITH_KEYS)):
        yield


@pytest.fixture
def optimised():
    """Programs as users run them, for tests of the solver's float32 arithmetic."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture
def both_precisions():
    """Float64 allowed, for tests of float32 arithmetic beside it."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def float64(both_precisions):
    """Double precision: mathematics, not what users run."""
    return np.float64


@pytest.fixture(scope="module")
def pair():
    """Models of the two Markov chains that whole texts are tested with."""
    import jax.numpy as jnp
    from markov_pairs import DRAFT, TARGET

    import globalres_jax as gr

    return tuple(
        gr.testing.markov_model(jnp.asarray(x, jnp.float32)) for x in (TARGET, DRAFT)
    )


def distributions(vocab_size: int, seed: int, count: int):
    """Random pairs (p, q) of every sparsity, some entries exactly zero."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        pair = rng.dirichlet(np.full(vocab_size, rng.choice([0.1, 0.5, 2.0])), 2)
        if rng.random() < 0.3:
            pair[0, rng.integers(vocab_size)] = 0
        if rng.random() < 0.3:
            pair[1, rng.integers(vocab_size)] = 0
        yield tuple(pair / pair.sum(1, keepdims=True))


def adversarial(vocab_size: int):
    """The traps: ties, p = q, disjoint, one-hot, zeros, tiny numbers."""
    v = vocab_size
    uniform = np.full(v, 1 / v)
    one_hot = np.eye(v)[v - 1]
    left, right = np.zeros(v), np.zeros(v)
    left[: v // 2], right[v // 2 :] = 1 / (v // 2), 1 / (v - v // 2)
    skewed = np.arange(1, v + 1) / np.arange(1, v + 1).sum()
    tiny = np.full(v, 1e-30)
    tiny[0] = 1
    return {
        "ties": (uniform, uniform),
        "equal": (skewed, skewed),
        "disjoint": (left, right),
        "one-hot p": (one_hot, skewed),
        "one-hot q": (skewed, one_hot),
        "both one-hot, same": (one_hot, one_hot),
        "both one-hot, different": (one_hot, np.eye(v)[0]),
        "zeros in q": (skewed, left),
        "zeros in p": (left, skewed),
        "tiny p": (tiny, skewed),
        "tiny q": (skewed, tiny),
        "reversed": (skewed, skewed[::-1].copy()),
    }


def draft_laws(q: np.ndarray, n: int, seed: int = 0):
    """Every law of n drafts that q allows, by name."""
    import globalres_jax as gr

    rng = np.random.default_rng(seed)
    vocab_size = len(q)
    others = rng.dirichlet(np.full(vocab_size, 0.7), n - 1).reshape(n - 1, vocab_size)
    laws = {
        "iid": gr.IID(q, n),
        "independent": gr.Independent(np.concatenate([q[None], others])),
        "deterministic": gr.Deterministic(rng.permutation(vocab_size)[:n], vocab_size),
    }
    if (q > 0).sum() >= n:
        laws["without replacement"] = gr.WithoutReplacement(q, n)
        laws["top plus sample"] = gr.TopPlusSample(q, n)
    return laws
