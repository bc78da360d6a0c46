"""python -m flaxbert.train --config=FILE.py[:ARG] [--workdir=DIR] [--config.x.y=VALUE ...]

Fine-tunes a BERT checkpoint. The same command again resumes; a finished run exits 0 at once. This
file tells the story of a run from top to bottom: prepare the data, plan the shapes, restore or load
the state, train, write the results.
"""

from __future__ import annotations

import dataclasses
import functools
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flaxbert import cli
from flaxbert.config import Config, make_config, resume_differences, seed_for, to_dict
from flaxbert.errors import ConfigError, DataError


def define_flags(values: Any) -> None:
    from absl import flags

    cli.define_config(values)
    flags.DEFINE_string(
        "workdir", "", "Where the run lives; default runs/<config>[-ARG].", flag_values=values
    )


def main(values: Any, stop: cli.StopSignal) -> None:
    from flaxbert.storage.lock import locked
    from flaxbert.storage.workdir import open_workdir

    config = cli.read_config(values)
    workdir = open_workdir(values.workdir or Path("runs") / cli.config_name(sys.argv[1:]))
    with locked(workdir.lock):
        run(config, workdir, stop)


def run(config: Config, workdir: Any, stop: cli.StopSignal) -> None:
    """Starts or resumes the run of `config` in an open, locked workdir."""
    start = time.perf_counter()
    if workdir.started:
        _check_same_run(config, workdir)
        if workdir.all_results.is_file():
            say(f"{workdir.root}: this run is finished. Its model is in {workdir.model}.")
            return

    from flaxbert.loop import control
    from flaxbert.loop.optim import make_schedule
    from flaxbert.loop.predict import make_forward
    from flaxbert.loop.sharding import make_mesh, row_multiple, state_shardings
    from flaxbert.loop.step import abstract_state, init_state, make_train_step
    from flaxbert.loop.writer import Writer
    from flaxbert.model.heads import abstract_params
    from flaxbert.storage.checkpoint import Checkpoints
    from flaxbert.storage.workdir import repair_directory
    from flaxbert.tasks import task_for

    repair_directory(workdir.model)
    checkpoints = Checkpoints(workdir.checkpoints, config.checkpoint.keep)
    resumed_from = checkpoints.newest_valid() if workdir.started else None
    facts = {} if resumed_from is None else checkpoints.read_run(resumed_from)

    # Data: text -> examples with label ids; the label map of a resume is the first start's.
    prepared = prepare(config, workdir, resumed=resumed_from is not None)
    bert, data = prepared.bert, prepared.data
    digest = data.train.digest()
    if facts and facts["data"] != digest:
        raise DataError(
            f"config.data: the training data differ from those that {workdir.root} was started "
            "with. Restore them, or start in another workdir."
        )
    _check_best_metric(config, data, bert)

    # Shapes: mesh, dtype, rows per update, number of updates.
    mesh = make_mesh(config.mesh, bert)
    dtype = facts.get("dtype") or resolve_dtype(config.model.dtype)
    plans = _plan(config, data, row_multiple(mesh))
    total, per_epoch = plans.total, plans.per_epoch

    # State: from the newest valid checkpoint, else from the pretrained weights.
    progress = control.Progress()
    if resumed_from is not None:
        state, _ = checkpoints.restore(resumed_from, abstract_state(abstract_params(bert), mesh))
        progress = control.Progress.from_dict(facts)
        say(f"resuming {workdir.root} after update {resumed_from} of {total}")
    else:
        state = init_state(prepared.load_params(), mesh)
        _start_workdir(config, workdir, prepared)

    task = task_for(prepared.labels.problem)
    learning_rate = make_schedule(config.optim, total)
    step = make_train_step(
        bert,
        task,
        mesh=mesh,
        shardings=state_shardings(mesh, state),
        schedule=learning_rate,
        optim=config.optim,
        loss=config.loss,
        dtype=dtype,
    )
    for line in _announcement(config, prepared, plans, mesh, dtype, state):
        say(line)
    update = _compile(step, state, config, plans, data)
    facts = {
        "data": digest,
        "dtype": dtype,
        "labels": list(bert.id2label),
        "model": prepared.model_revision or facts.get("model", config.model.path),
        "config": to_dict(config),
        "versions": _versions(),
    }
    hooks = control.Hooks(
        batch=functools.partial(_train_batch, config, data.train, plans.train),
        update=update,
        learning_rate=lambda step: float(learning_rate(step)),
        evaluate=_evaluation(config, data, plans, make_forward(bert, mesh=mesh, dtype=dtype), task,
                             stop),  # fmt: skip
        export=functools.partial(_export, workdir, config, prepared, facts),
        run_facts=facts,
        interrupted=lambda: stop.requested,
    )
    schedule = control.Schedule(
        total=total,
        per_epoch=per_epoch,
        log_every=config.log.every,
        eval_every=config.train.eval_every or per_epoch,
        save_every=config.checkpoint.every or per_epoch,
        patience=config.train.patience,
        nonfinite_limit=config.train.nonfinite_limit,
        best_metric=config.train.best_metric or task.MAIN_METRIC,
    )
    writer = Writer(workdir.metrics, step=progress.step, total=total)
    try:
        stop.defer()
        state = control.train(state, progress, schedule, hooks, checkpoints, writer)
        if data.validation is None:
            hooks.export(state["params"], progress.step)
            say("no validation data: model/ holds the weights after the last update")
        checkpoints.close()
    finally:
        writer.close()
    _write_results(workdir, progress, data, schedule, time.perf_counter() - start)


@dataclasses.dataclass(frozen=True)
class Prepared:
    """Everything that is known before a device is asked."""

    bert: Any  # BertConfig with the run's labels
    labels: Any  # data.check.Labels
    data: Any  # Splits
    tokenizer_files: list[Path]
    load_params: Callable[[], Any]  # reads the pretrained weights
    model_revision: str


@dataclasses.dataclass(frozen=True)
class Splits:
    train: Any  # Examples
    validation: Any  # Examples or None
    lines: list[str]  # what to tell about the data


@dataclasses.dataclass(frozen=True)
class Plans:
    train: Any  # data.pack.Plan
    validation: Any  # data.pack.Plan or None
    total: int  # updates
    per_epoch: int


def prepare(config: Config, workdir: Any, *, resumed: bool) -> Prepared:
    """Reads and checks model folder and data. A resume reads the model's files in the workdir."""
    from flaxbert.data import check
    from flaxbert.data.tokenize import FILES, Tokenizer, resolve_max_length
    from flaxbert.tasks import HF_PROBLEM_TYPES, problem_of
    from flaxbert.weights.folder import read_config, read_model, with_labels
    from flaxbert.weights.hub import resolve_model

    folder, revision = (
        (workdir.tokenizer, "") if resumed else resolve_model(config.model.path, config.model.revision)
    )  # fmt: skip
    bert, ignored = read_config(folder)
    tokenizer = Tokenizer(folder, vocab_size=bert.vocab_size, pad_token_id=bert.pad_token_id)
    max_length = resolve_max_length(config.data.max_length, bert.max_position_embeddings)

    train_rows, validation_rows, task_names = read_training_rows(config)
    check.check_texts(train_rows)
    separator = config.data.label_separator
    if resumed:
        labels = check.Labels(problem_of(bert.problem_type, bert.num_labels), bert.id2label)
    else:
        known = check.Known(bert.id2label if bert.has_label_names else (), task_names)
        labels = check.learn_labels(train_rows, config.data.problem, separator, known)
    check.check_options(labels, config.loss.label_smoothing, config.loss.class_weights)
    if config.data.validation_fraction and validation_rows is None:
        train_rows, validation_rows = check.split_validation(
            train_rows,
            labels,
            config.data.validation_fraction,
            seed_for(config, "data"),
            separator,
        )
    lines: list[str] = []
    train = make_examples(train_rows, labels, tokenizer, max_length, separator, lines, "training")
    validation = (
        make_examples(validation_rows, labels, tokenizer, max_length, separator, lines, "validation")
        if validation_rows is not None
        else None
    )
    bert = with_labels(bert, labels.names, HF_PROBLEM_TYPES[labels.problem])

    def load_params() -> Any:
        loaded = read_model(folder, bert, seed_for(config, "init"), ignored)
        for note in loaded.notes:
            say(f"{config.model.path}: {note}")
        return loaded.params

    files = [folder / name for name in FILES if (folder / name).is_file()]
    splits = Splits(train, validation, lines)
    return Prepared(bert, labels, splits, files, load_params, revision)


def read_training_rows(config: Config) -> tuple[Any, Any, tuple[str, ...]]:
    """Returns (training rows, validation rows or None, label names known from the task)."""
    from flaxbert.data import sources

    data = config.data
    sources.check_task(data.task)
    if data.task == "rotten_tomatoes":
        return (*sources.read_rotten_tomatoes(), sources.KNOWN_LABELS[data.task])
    if not data.train:
        raise ConfigError("config.data.train is empty: name the training file.")
    columns = {"text": data.text, "text_pair": data.text_pair, "label": data.label}
    train = sources.read_rows(data.train, **columns)
    validation = sources.read_rows(data.validation, **columns) if data.validation else None
    return train, validation, ()


def make_examples(
    rows: Any,
    labels: Any,
    tokenizer: Any,
    max_length: int,
    separator: str,
    lines: list[str],
    name: str,
) -> Any:
    """Checks and tokenizes one split; appends what should be told about it to `lines`."""
    from flaxbert.data import check
    from flaxbert.data.batches import Examples
    from flaxbert.tasks import task_for

    empty = check.check_texts(rows)
    targets = check.canonical_targets(rows, labels, separator)
    tokens = tokenizer.encode(rows.texts, rows.pairs, max_length=max_length)
    lengths = tokens.lengths
    line = (
        f"{name}: {len(rows)} rows, {lengths.mean():.1f} tokens on average, longest "
        f"{lengths.max()}, {tokens.truncated} cut to {max_length}"
    )
    if labels.problem != "regression":
        counts = check.label_counts(targets, labels)
        line += "; " + ", ".join(f"{label} {count}" for label, count in counts.items())
    lines.append(line)
    if empty:
        lines.append(f"{name}: WARNING: {empty} rows have an empty text")
    if tokens.unknown_share > 0.2:
        lines.append(
            f"{name}: WARNING: {100 * tokens.unknown_share:.0f} % of the tokens are unknown to the "
            "vocabulary; is this the right model for these texts?"
        )
    return Examples(tokens, task_for(labels.problem).encode(targets, labels.names))


def resolve_dtype(asked: str) -> str:
    """Returns the compute dtype; auto is bfloat16 on TPUs and on GPUs from Ampere on.

    On CPUs auto is float32: bfloat16 products were no faster there in this program.
    """
    if asked != "auto":
        return asked
    import jax

    device = jax.devices()[0]
    if device.platform == "tpu":
        return "bfloat16"
    capability = str(getattr(device, "compute_capability", "0"))
    return "bfloat16" if device.platform == "gpu" and float(capability) >= 8 else "float32"


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _check_same_run(config: Config, workdir: Any) -> None:
    from flaxbert.storage.workdir import read_json

    stored = make_config(read_json(workdir.config))
    differences = resume_differences(stored, config)
    if differences:
        listed = "\n".join(f"  config.{name}: {old!r} -> {new!r}" for name, old, new in differences)
        raise ConfigError(
            f"--workdir: {workdir.root} holds a run with another config:\n{listed}\n"
            "Name another --workdir, or put these fields back."
        )


def _check_best_metric(config: Config, data: Splits, bert: Any) -> None:
    """Refuses a metric name that the task does not compute, before training instead of after."""
    import difflib

    import numpy as np

    from flaxbert.tasks import problem_of, task_for

    asked = config.train.best_metric
    if not asked:
        return
    task = task_for(problem_of(bert.problem_type, bert.num_labels))
    labels = data.train.labels[:2]
    names = ["loss", *task.metrics(np.zeros((len(labels), bert.num_labels)), labels)]
    if asked not in names:
        near = difflib.get_close_matches(asked, names, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(
            f"config.train.best_metric: expected one of {', '.join(names)}, got {asked!r}.{hint}"
        )


def _plan(config: Config, data: Splits, rows: int) -> Plans:
    from flaxbert.data.batches import plan_inference, plan_training, steps_per_epoch, total_steps

    count, train = len(data.train), config.train
    total = total_steps(count, train.batch_size, epochs=train.epochs, steps=train.steps)
    plan = plan_training(
        data.train,
        batch_size=train.batch_size,
        seed=seed_for(config, "data"),
        steps=total,
        packing=config.data.packing,
        accumulate=train.accumulate,
        row_multiple=rows,
        row_length=config.data.row_length,
    )
    validation = None
    if data.validation is not None:
        validation = plan_inference(
            data.validation.tokens.lengths,
            row_multiple=rows,
            row_length=plan.row_length,
            packing=config.data.packing,
        )
    return Plans(plan, validation, total, steps_per_epoch(count, train.batch_size))


def _start_workdir(config: Config, workdir: Any, prepared: Prepared) -> None:
    """Writes config.json first: from then on the folder is this run's."""
    import shutil

    from flaxbert.storage.workdir import write_json

    write_json(workdir.config, to_dict(config))
    workdir.tokenizer.mkdir(exist_ok=True)
    for path in prepared.tokenizer_files:
        shutil.copyfile(path, workdir.tokenizer / path.name)
    write_json(workdir.tokenizer / "config.json", prepared.bert.to_dict())


def _announcement(
    config: Config, prepared: Prepared, plans: Plans, mesh: Any, dtype: str, state: Any
) -> list[str]:
    import jax

    count = sum(leaf.size for leaf in jax.tree.leaves(state["params"]))
    device = jax.devices()[0]
    plan, train = plans.train, config.train
    axes = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    shapes = ", ".join(f"{rows} x {plan.row_length}" for rows in plan.row_counts)
    per_update = f" in {plan.accumulate} micro-batches" if plan.accumulate > 1 else ""
    epochs = plans.total / plans.per_epoch
    return [
        f"devices: {mesh.devices.size} {device.device_kind} ({device.platform}); mesh {axes}",
        f"model: {config.model.path}, {count / 1e6:.1f} M parameters, {dtype} compute, float32 "
        "parameters",
        f"target: {prepared.labels.problem}, labels {', '.join(prepared.labels.names[:20])}",
        *prepared.data.lines,
        f"training: {plans.total} updates ({epochs:.2f} epochs) of {train.batch_size} "
        f"sequences{per_update}",
        f"rows: {shapes} tokens ({config.data.packing}), up to {plan.slots} sequences a row, "
        f"{100 * (1 - plan.efficiency):.1f} % padding",
    ]


def _compile(step: Any, state: Any, config: Config, plans: Plans, data: Splits) -> Any:
    """Compiles every planned shape before the first update; returns update(state, batch)."""
    import numpy as np

    from flaxbert.data.batches import lay_out
    from flaxbert.data.pack import Placement
    from flaxbert.loop.step import compile_steps

    none = np.zeros(0, np.int32)
    empty = Placement(none, none, none, 0)
    shapes = {
        rows: lay_out(data.train, none, empty, plans.train, rows)
        for rows in plans.train.row_counts
    }
    seeds = {"dropout": np.uint32(seed_for(config, "dropout"))}
    start = time.perf_counter()
    compiled = compile_steps(step, state, shapes, seeds)
    say(f"compiled {len(compiled)} shapes in {time.perf_counter() - start:.1f} s")

    def update(state: Any, batch: Any) -> Any:
        return compiled[batch["input_ids"].shape[1]](state, batch, seeds)

    return update


def _train_batch(config: Config, examples: Any, plan: Any, step: int) -> tuple[Any, dict[str, int]]:
    from flaxbert.data.batches import train_batch

    batch = train_batch(
        examples,
        plan,
        batch_size=config.train.batch_size,
        seed=seed_for(config, "data"),
        step=step,
    )
    counts = {
        "examples": int((batch["example_ids"] >= 0).sum()),
        "real_tokens": int((batch["sequence_ids"] > 0).sum()),
        "computed_tokens": batch["sequence_ids"].size,
    }
    return batch, counts


def _evaluation(
    config: Config, data: Splits, plans: Plans, forward: Any, task: Any, stop: cli.StopSignal
) -> Callable[[Any], dict[str, Any]] | None:
    if data.validation is None:
        return None
    from flaxbert.data.batches import inference_batches
    from flaxbert.loop.evaluate import evaluate

    def evaluation(params: Any) -> dict[str, Any]:
        return evaluate(
            forward,
            params,
            inference_batches(data.validation, plans.validation),
            data.validation.labels,
            task=task,
            loss=config.loss,
            stop=stop.check,
        )

    return evaluation


def _export(
    workdir: Any, config: Config, prepared: Prepared, facts: dict[str, Any], params: Any, step: int
) -> None:
    """Writes model/ whole: beside it first, then switched."""
    import shutil

    from flaxbert.storage.workdir import replace_directory
    from flaxbert.weights.card import model_card
    from flaxbert.weights.folder import write_model

    staged = workdir.model.with_name(workdir.model.name + ".new.tmp")
    shutil.rmtree(staged, ignore_errors=True)
    write_model(staged, prepared.bert, params, prepared.tokenizer_files)
    told = {
        "started from": facts["model"],
        "task": config.data.task,
        "updates": step,
        "sequences per update": config.train.batch_size,
        "peak learning rate": config.optim.learning_rate,
        "seed": config.seed,
        "compute dtype": facts["dtype"],
        **facts["versions"],
    }
    (staged / "README.md").write_text(model_card(prepared.bert, told, {}), encoding="utf-8")
    replace_directory(staged, workdir.model)


def _write_results(
    workdir: Any, progress: Any, data: Splits, schedule: Any, seconds: float
) -> None:
    """Writes train_results.json, eval_results.json and, last, all_results.json."""
    from flaxbert.storage.workdir import write_json

    total = progress.total
    wall = progress.wall_seconds
    train = {
        "epoch": schedule.epoch(progress.step),
        "train_loss": total.loss / max(total.updates, 1),
        "train_runtime": wall,
        "train_samples": len(data.train),
        "train_samples_per_second": progress.steady_examples / max(progress.steady_seconds, 1e-9),
        "train_samples_per_second_overall": total.examples / max(wall, 1e-9),
        "train_steps_per_second": progress.step / max(wall, 1e-9),
        "train_steps": progress.step,
        "train_nonfinite_updates": progress.nonfinite_updates,
    }
    results = dict(train)
    write_json(workdir.results("train"), train)
    if progress.best is not None:
        best = hf_results(progress.best["results"], "eval")
        write_json(workdir.results("validation"), best)
        results |= best
        say(f"best: {schedule.best_metric} {progress.best['value']:.4f} after update "
            f"{progress.best['step']}")  # fmt: skip
    results["epoch"] = train["epoch"]
    write_json(workdir.all_results, results)
    say(
        f"done in {seconds:.0f} s: {train['train_samples_per_second']:.1f} sequences/s in training; "
        f"model in {workdir.model}"
    )


def hf_results(results: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Names metrics as the Hugging Face Trainer does: eval_accuracy, eval_loss, ..."""
    plain = ("epoch", "step")
    return {name if name in plain else f"{prefix}_{name}": v for name, v in results.items()}


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "transformers")
    own = {"flaxbert": __import__("flaxbert").__version__, "python": platform.python_version()}
    return own | {name: version(name) for name in names}


if __name__ == "__main__":
    cli.run(main, define_flags, __doc__)
