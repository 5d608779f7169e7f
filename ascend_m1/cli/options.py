"""Options that several sub-commands share."""

from __future__ import annotations

import argparse
import contextlib
import sys
import warnings
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError

if TYPE_CHECKING:
    from ..sampling import SamplingOptions

# Beside the code and shipped with it.
EMBEDDED = Path(__file__).parent.parent / "checkpoints" / "m1_icd10"


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """--model, --device, --dtype."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        metavar="DIR",
        default=str(EMBEDDED),
        help="checkpoint directory in the published format (default: the embedded m1-icd10)",
    )
    group.add_argument("--device", default="auto", help="auto, cpu, cuda[:N] or npu[:N] (default: auto)")
    group.add_argument(
        "--dtype",
        default="auto",
        help="float32, bfloat16, float16, or auto: the checkpoint's own where the device is fast in it (default: auto)",
    )


def add_adapter_option(parser: argparse.ArgumentParser) -> None:
    """--adapter, and --model without a default, see ``model_and_adapter``."""
    parser.add_argument("--adapter", metavar="DIR", help="a LoRA adapter of PEFT's, as `ascend-m1 train` writes it; "
                        "--model is then the base that it names, unless given")  # fmt: skip
    parser.set_defaults(model=None)


def model_and_adapter(arguments: argparse.Namespace) -> tuple[str, Path | None]:
    """The checkpoint's directory and the adapter's. Raises CheckpointError for an adapter without a description."""
    if arguments.adapter is None:
        return arguments.model or str(EMBEDDED), None
    adapter = Path(arguments.adapter)
    named = adapter_base(adapter)
    return arguments.model or named or str(EMBEDDED), adapter


def adapter_base(adapter: Path) -> str | None:
    """The base that an adapter names, if any. The embedded checkpoint is found although it was elsewhere then.

    Raises:
        CheckpointError, ConfigError: the folder has no description of an adapter.
    """
    from ..checkpoint_files import read_adapter_config

    named = read_adapter_config(adapter).get("base_model_name_or_path")
    if not named:
        return None
    base = Path(str(named))
    return str(EMBEDDED if base.parts[-3:] == EMBEDDED.parts[-3:] and not base.exists() else named)


def add_sampling_options(parser: argparse.ArgumentParser, beams: bool = False) -> None:
    """--max-new-tokens, --temperature and so on; what is not given comes from the checkpoint, else it is greedy."""
    group = parser.add_argument_group(
        "sampling", "not given: as the checkpoint's generation_config.json says, else greedy"
    )
    group.add_argument("--max-new-tokens", type=int, metavar="N", help="the most tokens to generate")
    group.add_argument("--do-sample", action="store_true", help="sample; implied by the next four options")
    group.add_argument("--temperature", type=float, metavar="T", help="0: greedy, the likeliest token always")
    group.add_argument("--top-k", type=int, metavar="K", help="among the K likeliest tokens; 0: all")
    group.add_argument("--top-p", type=float, metavar="P", help="among the likeliest tokens of probability P together")
    group.add_argument(
        "--min-p", type=float, metavar="P", help="no token below P times the likeliest one's probability"
    )
    group.add_argument("--repetition-penalty", type=float, metavar="X", help="above 1: repeat less")
    group.add_argument("--seed", type=int, metavar="N", help="makes sampling repeatable")
    if beams:
        group.add_argument("--num-beams", type=int, default=1, metavar="N", help="beam search, printed when finished")


def add_scheme_options(parser: argparse.ArgumentParser, bits: int | None) -> None:
    """--bits and --group-size of quantised weights; ``bits``: the default, None for weights as they are."""
    remark = "4" if bits else "weights as they are"
    parser.add_argument(
        "--bits",
        type=int,
        default=bits,
        help=f"of a weight; 8: one scale for a row, 4: for a group (default: {remark})",
    )
    parser.add_argument(
        "--group-size",
        type=int,
        metavar="N",
        help="inputs that share a scale: 32, 64, 128 or 256 (default: 128; with 8 bits none)",
    )


def sampling_options(arguments: argparse.Namespace) -> SamplingOptions:
    """The checked options. Raises InputError."""
    from ..sampling import SamplingOptions

    names = ("max_new_tokens", "do_sample", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")
    values = {name: getattr(arguments, name) for name in names}
    return SamplingOptions(**values, num_beams=getattr(arguments, "num_beams", 1))


def decode(data: bytes, source: str) -> str:
    """Text from UTF-8 bytes. Raises InputError naming the source and the first wrong byte."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{source}: byte {error.start} is not valid UTF-8: convert the text to UTF-8") from None


def write(text: str) -> None:
    """Text to stdout at once; what the terminal's encoding lacks becomes a question mark."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, errors="replace").decode(encoding))
    sys.stdout.flush()


def require_extra(extra: str, packages: Sequence[str]) -> None:
    """Raises InputError if a package of an optional part is not installed."""
    absent = [name for name in packages if find_spec(name) is None]
    if absent:
        raise InputError(f"{', '.join(absent)} not installed: {how_to_install(extra)}")


def how_to_install(extra: str) -> str:
    """The remedy for packages of an optional part that are missing."""
    if extra == "mindspore":  # here it would put an older numpy in the place of torch's
        return "it needs an environment of its own, see docs/mindspore.md"
    return f"pip install -e '.[{extra}]' in the repository"


def note(text: str) -> None:
    """A line for the user that is no part of the answer."""
    print(f"ascend-m1: {text}", file=sys.stderr)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars, log lines or warnings from the libraries: stdout is the answer, stderr is for the user."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
