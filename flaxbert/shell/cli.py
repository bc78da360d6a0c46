"""The command line: flags, exit codes, and errors as single lines.

Exit codes: 0 done; 2 usage or config; 3 data; 4 model file or checkpoint; 5 loss not finite;
70 internal; 71 another process lost; 75 interrupted, every finished update saved.
Note: this file imports neither JAX nor anything that does, so that flag errors appear at once.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import difflib
import io
import os
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from absl import flags
from ml_collections import config_flags

from flaxbert.config import Config, Data, Processes, make_config
from flaxbert.errors import ConfigError, InterruptedRun, ModelFileError, exit_code_of
from flaxbert.hosts.join import joined, refuse_several
from flaxbert.shell.console import complain, say
from flaxbert.shell.library_output import be_quiet
from flaxbert.shell.signals import StopSignal, end, install

CONFIG_FLAG = "config"

# Flags that name files and folders, of any command.
_PATHS = ("workdir", "model", "input", "data", "output", "picture", "from", "to")


def run(
    main: Callable[..., None],
    define: Callable[[flags.FlagValues], None],
    description: str | None,
    *,
    processes: Literal["each", "one", "together"] = "each",
) -> None:
    """Parses the command line, calls `main(flags, stop)` and exits with the contract's code.

    Args:
      main: does the work; raises the package's errors.
      define: adds the command's flags to the FlagValues it is given.
      description: printed by --help.
      processes: what happens if Slurm or a TPU pod starts several. "each": they are independent;
        "one": the command refuses them; "together": they join one run, and
        `main(flags, stop, group)` is called.
    """
    # Without PyTorch transformers warns that its own models are not available.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    be_quiet()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # what a terminal cannot show
    stop: StopSignal = install()
    try:
        if any(argument in ("--help", "-h", "-help") for argument in sys.argv[1:]):
            _help(define, description)
            return
        if processes == "together":
            _run_together(main, define, stop)
            return
        if processes == "one":
            refuse_several()
        values = _parse(define)
        main(values, stop)
    except (Exception, InterruptedRun) as error:
        stop.settle()
        code = exit_code_of(error)
        if code == InterruptedRun.exit_code:
            say(f"flaxbert: {error}. Run the same command again.")
        elif hasattr(error, "exit_code"):
            complain(f"flaxbert: error: {error}")
        elif code == ModelFileError.exit_code and isinstance(error, OSError):
            complain(f"flaxbert: error: {error.strerror}: {error.filename}")
        elif code == ConfigError.exit_code:
            complain(
                "flaxbert: error: the device has too little memory for this batch. Raise "
                "config.train.accumulate (0 = chosen), or lower config.train.batch_size or "
                "data.max_length; for evaluate and predict lower --batch_rows."
            )
        else:
            complain(traceback.format_exc().rstrip())
            complain("flaxbert: internal error; please report the lines above")
        end(code)
    finally:
        stop.settle()


def _run_together(
    main: Callable[..., None], define: Callable[[flags.FlagValues], None], stop: StopSignal
) -> None:
    """Calls `main(flags, stop, group)`; an error in one command line ends all processes."""
    values, wrong, lost_after = None, None, Processes().lost_after
    try:
        values = _parse(define)
        lost_after = read_config(values).processes.lost_after
    except Exception as error:
        wrong = error
    with joined(stop, lost_after) as group:
        if wrong is not None:
            raise wrong
        main(values, stop, group)


def define_config(values: flags.FlagValues) -> None:
    """Adds --config=FILE.py[:ARG] and its overrides --config.x.y=VALUE."""
    config_flags.DEFINE_config_file(
        CONFIG_FLAG,
        None,
        "Config file, FILE.py or FILE.py:ARG; single fields by --config.x.y=VALUE.",
        lock_config=True,
        flag_values=values,
    )


def read_config(values: Any) -> Config:
    """Returns the checked config of the --config flag.

    Raises:
      ConfigError: no --config, or a file whose get_config fails.
    """
    if values.config is None:
        raise ConfigError(
            "--config is missing. For example: --config=configs/quickstart.py, or "
            "--config=configs/text.py --config.data.train=FILE"
        )
    return make_config(values.config)


def define_columns(values: flags.FlagValues, *, label: bool) -> None:
    """Adds the flags that name columns; the defaults are those of the run, else of the config."""
    flags.DEFINE_string("text", "", "Column of the text.", flag_values=values)
    flags.DEFINE_string("text_pair", "", "Column of the second text.", flag_values=values)
    if label:
        flags.DEFINE_string("label", "", "Column of the target.", flag_values=values)
        flags.DEFINE_string(
            "label_separator", "", "Splits a cell into several labels.", flag_values=values
        )


def define_split(values: flags.FlagValues, default: str | None) -> None:
    """Adds --split: a split of a run or of its data set."""
    text = "train, validation or test of the run, or a split of its data set."
    flags.DEFINE_string("split", default, text, flag_values=values)


def define_inference(values: flags.FlagValues) -> None:
    """Adds the flags for long texts, memory and dtype."""
    flags.DEFINE_integer(
        "max_length", 0, "Tokens per text; 0 = the run's, else the model's.", flag_values=values
    )
    flags.DEFINE_enum(
        "long",
        "",
        ("", "truncate", "head_tail", "window"),
        "Texts over max_length: keep the beginning; the first quarter and the last three quarters "
        "of the limit; or read all in overlapping windows and average their logits. Empty = "
        "truncate; tagged words are always read in windows.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "stride",
        -1,
        "Tokens that neighbouring windows share; -1 = a quarter of max_length.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "batch_rows",
        0,
        "Rows computed at once by all devices; 0 = chosen. Fewer need less memory.",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "dtype",
        "",
        ("", "float32", "bfloat16"),
        "Compute dtype; empty = that of the --workdir, else float32.",
        flag_values=values,
    )


def inference_options(values: Any, dtype: str) -> dict[str, Any]:
    """Returns the arguments of `Classifier.from_pretrained`; `dtype` if none is given."""
    names = ("max_length", "long", "stride", "batch_rows")
    return {name: values[name].value for name in names} | {"dtype": values.dtype or dtype}


def with_columns(data: Data, values: flags.FlagValues) -> Data:
    """Returns the data config with the columns that were given as flags."""
    names = ("text", "text_pair", "label", "label_separator")
    given = {name: values[name].value for name in names if name in values and values[name].value}
    return dataclasses.replace(data, **given)


def config_name(argv: list[str]) -> str:
    """Returns "quickstart" or "glue-sst2" for the --config of a command line: the run's name."""
    for name, value in _config_arguments(argv):
        if name == CONFIG_FLAG:
            path, _, argument = value.partition(":")
            stem = Path(path).stem
            return f"{stem}-{argument}".replace("/", "-") if argument else stem
    return "run"


def _help(define: Callable[[flags.FlagValues], None], description: str | None) -> None:
    values = flags.FlagValues()
    define(values)
    print(f"{description}\nFlags:\n{values.get_help()}")


def _parse(define: Callable[[flags.FlagValues], None]) -> Any:
    # config_flags reads overrides from sys.argv itself, so the path is replaced there.
    sys.argv[1:] = _with_found_config(sys.argv[1:])
    values = flags.FlagValues()
    try:
        define(values)
        rest = values(sys.argv)
        # Reading the value runs get_config and applies overrides, so that errors appear here.
        if CONFIG_FLAG in values:
            _raise_deferred_error(values[CONFIG_FLAG].value)
    except ConfigError:
        raise
    except Exception as error:  # config_flags raises errors of many kinds
        raise ConfigError(_readable(error)) from error
    for name in _PATHS:  # a shell leaves the ~ of --workdir=~/runs as it is
        if name in values and values[name].value:
            values[name].value = os.path.expanduser(str(values[name].value))
    if len(rest) > 1:
        raise ConfigError(
            f"unexpected argument {rest[1]!r}. Flags are written --name=value; see --help."
        )
    return values


def _raise_deferred_error(config: Any) -> None:
    """Raises the OSError of a get_config: config_flags keeps it until a field is read."""
    try:
        hasattr(config, "to_dict")
    except OSError as error:
        if isinstance(error.__cause__, OSError):
            raise error.__cause__ from None
        raise


def _with_found_config(argv: list[str]) -> list[str]:
    """Replaces configs/NAME.py by the shipped file when the current folder has none, and ~."""
    for name, value in _config_arguments(argv):
        if name != CONFIG_FLAG:
            continue
        path, colon, argument = value.partition(":")
        given, shipped = Path(os.path.expanduser(path)), _shipped_configs()
        inside = shipped / given.name if given.parent == Path("configs") else given
        if file := next((file for file in (given, inside) if file.is_file()), None):
            found = f"{file}{colon}{argument}"
            joined = [f"--{CONFIG_FLAG}={found}" if a.endswith(f"={value}") else a for a in argv]
            return [found if a == value else a for a in joined]
        names = sorted(f"configs/{entry.name}" for entry in shipped.glob("*.py"))
        near = difflib.get_close_matches(path, names, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ConfigError(
            f"--config: there is no file {path!r}.{hint} Shipped: {', '.join(names)}."
        )
    return argv


def _config_arguments(argv: list[str]) -> list[tuple[str, str]]:
    """Returns (flag name, value) of every flag, with or without "="."""
    found = []
    for index, argument in enumerate(argv):
        if not argument.startswith("-"):
            continue
        name, equals, value = argument.lstrip("-").partition("=")
        if not equals and index + 1 < len(argv):
            value = argv[index + 1]
        found.append((name, value))
    return found


def _shipped_configs() -> Path:
    """Returns configs/ inside the installed package, or beside it in a clone."""
    package = Path(__file__).parents[1]
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def _readable(error: Exception) -> str:
    """Returns the message of a flag or config file error, with the line in the user's own file.

    config_flags wraps an exception of a config file into the text of a traceback: its last line is
    the message, the last file in it is the user's.
    """
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}: {error.msg}"
    text = str(error).strip()
    if text[:1] in ("'", '"'):  # the text of a KeyError is a quoted string
        with contextlib.suppress(ValueError, SyntaxError):
            text = f"--config: there is no field {ast.literal_eval(text)}"
        text = ". ".join(text.splitlines())
    if "Traceback (most recent call last)" in text:
        places = re.findall(r'File "([^"]+)", line (\d+)', text)
        message = text.splitlines()[-1]
        return f"{places[-1][0]}:{places[-1][1]}: {message}" if places else message
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "/site-packages/" not in f.filename and f.filename[0] != "<"]
    last = own[-1] if own else None
    inside_config = last is not None and Path(last.filename).resolve() != Path(__file__).resolve()
    text = text or type(error).__name__
    return f"{last.filename}:{last.lineno}: {text}" if last and inside_config else text
