"""Makes `vocabularies.json`: how llama.cpp reads the files of `gguf_vocabularies.py`.

    pip install xllamacpp gguf
    python tests/data/make_vocabularies.py

The wheel's library has llama.cpp's C interface, which is called here. The tests do not
need it.
"""

import ctypes
import json
import sys
import tempfile
from pathlib import Path

import xllamacpp

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from gguf_vocabularies import cases, write  # noqa: E402

TEXTS = ("a ab -- it's 12345 $5..", "x=1+2; --a\n\n  (abc) 1234é", "")
POINTER, INT, BOOL = ctypes.c_void_p, ctypes.c_int32, ctypes.c_bool


class Options(ctypes.Structure):
    """Room for the options of a model, which are only passed on."""

    _fields_ = (("room", ctypes.c_uint8 * 1024),)


def library() -> ctypes.CDLL:
    """llama.cpp, its functions declared."""
    (path,) = Path(xllamacpp.__file__).parent.glob("*.so")
    llama = ctypes.CDLL(str(path))
    declared = {
        "model_default_params": (Options,),
        "model_load_from_file": (POINTER, ctypes.c_char_p, Options),
        "model_get_vocab": (POINTER, POINTER),
        "model_free": (None, POINTER),
        "vocab_n_tokens": (INT, POINTER),
        "vocab_is_eog": (BOOL, POINTER, INT),
        "vocab_bos": (INT, POINTER),
        "vocab_eos": (INT, POINTER),
        "vocab_get_add_bos": (BOOL, POINTER),
        "vocab_get_add_eos": (BOOL, POINTER),
        "tokenize": (INT, POINTER, ctypes.c_char_p, INT, POINTER, INT, BOOL, BOOL),
    }
    for name, (result, *arguments) in declared.items():
        function = getattr(llama, f"llama_{name}")
        function.restype, function.argtypes = result, arguments
    return llama


def read(llama: ctypes.CDLL, path: Path, texts: tuple[str, ...]) -> dict:
    """What llama.cpp makes of a file, and of texts."""
    options = llama.llama_model_default_params()
    model = llama.llama_model_load_from_file(str(path).encode(), options)
    vocab = llama.llama_model_get_vocab(model)
    count = llama.llama_vocab_n_tokens(vocab)

    def tokenize(text: str) -> list[int]:
        raw, room = text.encode(), (INT * 64)()
        found = llama.llama_tokenize(vocab, raw, len(raw), room, 64, True, True)
        return list(room[:found])

    result = {
        "begin": llama.llama_vocab_bos(vocab),
        "end": llama.llama_vocab_eos(vocab),
        "adds_begin": llama.llama_vocab_get_add_bos(vocab),
        "adds_end": llama.llama_vocab_get_add_eos(vocab),
        "ends": [i for i in range(count) if llama.llama_vocab_is_eog(vocab, i)],
        "tokens": [tokenize(text) for text in texts],
    }
    llama.llama_model_free(model)
    return result


def texts(wanted: dict) -> tuple[str, ...]:
    """Texts for a vocabulary; none for one that is too small."""
    return TEXTS if len(wanted["tokens"]) > 9 else ()


def main() -> None:
    llama = library()
    llama.llama_backend_init()
    with tempfile.TemporaryDirectory() as folder:
        found = {
            name: read(llama, write(Path(folder) / "m.gguf", wanted), texts(wanted))
            for name, wanted in cases().items()
        }
    lines = (f"{json.dumps(name)}: {json.dumps(v)}" for name, v in found.items())
    text = ",\n".join(lines)
    (HERE / "vocabularies.json").write_text(f"{{\n{text}\n}}\n")


if __name__ == "__main__":
    main()
