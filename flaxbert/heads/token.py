"""Token classification (BertForTokenClassification): a tag for each word, entities from tags.

A row is a list of words and a list of tags. A word's label is at its first piece; its other pieces
and the special tokens have none. Each word gets exactly one tag: long rows are read in overlapping
windows, and a word is trained and predicted where it has the most context.
"""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from array import array
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from flaxbert.config import Config
from flaxbert.data import cells, checks, report
from flaxbert.data.bad_rows import Sieve, where
from flaxbert.data.batches import Examples
from flaxbert.data.checks import Known, Labels
from flaxbert.data.long import Cut, cut_for
from flaxbert.data.report import About
from flaxbert.data.rows import Rows, list_names, shown
from flaxbert.data.tokenize import Tokenizer, Tokens
from flaxbert.errors import ConfigError, DataError
from flaxbert.heads import Head, Names
from flaxbert.heads.targets import single_label
from flaxbert.metrics import classification, entities, tag_schemes
from flaxbert.metrics.tag_schemes import PLAIN, TagSet
from flaxbert.model import dropout as drop
from flaxbert.model.bert import Linear, Places
from flaxbert.model.bert_config import BertConfig
from flaxbert.model.bert_model import BertModel, BertWithHead

# Punctuation around a word of a plain text is a separate word; punctuation inside a word is not.
# Combining marks belong to the character before them: `word_spans` replaces each by U+0300.
_WORD = re.compile(r"\S+")
_INSIDE = re.compile(
    "(?:[\\w\u0300]+\\.){2,}(?=[^\\w]*$)"  # an abbreviation, and nothing but punctuation after it
    "|\\w(?:\\S*\\w)?\u0300*|[^\\w\\s]\u0300*"
)
_JOINERS = "\u200c\u200d"


CHOICES = {"scheme": ("auto", "IOB1", "IOB2", "BIOES", "BILOU", "BMES", "IO", "plain")}


@dataclasses.dataclass(frozen=True)
class Options:
    scheme: str = "auto"  # of the tags in the data; auto = detected from the training tags


class BertForTokenClassification(BertWithHead):
    """A classifier on every token; there is no pooler."""

    first_only = False

    def __init__(self, config: BertConfig, dtype: jnp.dtype, *, rngs: nnx.Rngs) -> None:
        self.bert = BertModel(config, dtype, pooler=False, rngs=rngs)
        self.classifier = Linear(config.hidden_size, config.num_labels, config, dtype, rngs=rngs)
        self.rate = config.head_dropout

    def head(self, states: Float[Array, "B L D"], places: Places) -> Float[Array, "B L C"]:
        bits = places.bits(0, drop.HEAD)
        if bits is not None and self.rate:
            states = drop.dropout(states, self.rate, bits)
        return self.classifier(states)


class TokenHead(Head):
    name = "token"
    architecture = "BertForTokenClassification"
    module = BertForTokenClassification
    layout = "token"
    long = ("window",)  # so that every word gets a tag

    # Data

    def usable(self, rows: Rows, config: Config) -> Rows:
        data = config.data
        sieve = Sieve(rows, data.on_bad_row)
        fix = 'Expected a list of words, as in {"tokens": ["EU", "rejects"], ...}.'
        missing = where(not isinstance(words, (str, list)) for words in rows.texts)
        sieve.refuse(missing, "the words are missing", fix)
        broken = [
            i
            for i in sieve.kept()
            if not all(isinstance(w, str) and cells.is_encodable(w) for w in rows.texts[i])
        ]
        sieve.refuse(broken, "a word is no string, or has half of a surrogate pair", fix)
        rows = sieve.left()
        if rows.pairs is not None:
            raise ConfigError(
                "data.text_pair: a row of word tags has one list of words. Leave it empty."
            )
        if data.on_empty != "keep":
            sieve = Sieve(rows, data.on_empty)
            sieve.refuse(self.empty(rows), "there is no word", "Remove the row.")
            rows = sieve.left()
        return rows

    def empty(self, rows: Rows) -> list[int]:
        return [i for i, words in enumerate(rows.texts) if not _words(words)]

    def learn_labels(self, rows: Rows, config: Config, known: Known) -> Labels:
        """Takes the checkpoint's tags if they are the data's, sorts plain tags by number or code
        point, and else takes O, and B- and I- of every type."""
        for field in ("problem", "label_separator", "on_single_class"):
            if getattr(config.data, field) != getattr(Config().data, field):
                raise ConfigError(f"config.data.{field} has no effect on word tags. Leave it out.")
        rows, tags = self._tags(rows, config)
        used = {tag for row in tags for tag in row}
        if len(used) == len(known.checkpoint) and _are_ids(used, known.checkpoint):
            return Labels(self.name, tuple(known.checkpoint))
        scheme = tag_schemes.scheme_for(tags, self._scheme(config))
        if scheme == PLAIN:
            names = sorted(used, key=_natural)
        else:
            types = {tag[2:] for row in tag_schemes.to_iob2(tags, scheme) for tag in row} - {""}
            names = tag_schemes.iob2_labels(types)
        for order in (known.checkpoint, known.task):
            if set(order) == set(names):
                return Labels(self.name, tuple(order))
        return Labels(self.name, tuple(names))

    def labelled(self, rows: Rows, labels: Labels, config: Config) -> tuple[Rows, list[Any]]:
        rows, tags = self._tags(rows, config)
        tags = _as_labels(tags, labels.names, self._scheme(config))
        names = set(labels.names)
        sieve = Sieve(rows, config.data.on_bad_row)
        unknown = [i for i, row in enumerate(tags) if not names.issuperset(row)]
        got = next((tag for i in unknown[:1] for tag in tags[i] if tag not in names), "")
        sieve.refuse(
            unknown,
            "a tag is not among those of the training data or the model",
            f"Expected {list_names(labels.names)}.",
            f" (got {shown(got)})",
        )
        tags = [tags[i] for i in sieve.kept()]
        rows = sieve.left()
        checks.refuse_nothing(rows)
        if not any(tags):
            raise DataError(f"{rows.source}: has no word. Expected at least one.")
        return rows, tags

    def _scheme(self, config: Config) -> str:
        return vars(config.head)[self.name].scheme

    def _tags(self, rows: Rows, config: Config) -> tuple[Rows, list[list[str]]]:
        """Returns the rows that have a tag for each word, and these tags as they are."""
        if rows.targets is None:
            raise DataError(f"{rows.source}: has no tag column. Name it by data.label.")
        sieve = Sieve(rows, config.data.on_bad_row)
        fix = "Expected two lists of one length: words and their tags."
        both = zip(rows.texts, rows.targets, strict=True)
        other = where(not isinstance(tags, list) or isinstance(words, str) for words, tags in both)
        sieve.refuse(other, "the words or the tags are no list", fix)
        wrong = [i for i in sieve.kept() if len(rows.texts[i]) != len(rows.targets[i])]
        sizes = next(((len(rows.texts[i]), len(rows.targets[i])) for i in wrong), (0, 0))
        sieve.refuse(wrong, f"there are {sizes[0]} words and {sizes[1]} tags", fix)
        names = {i: [cells.name_of(tag) for tag in rows.targets[i]] for i in sieve.kept()}
        odd = [i for i, row in names.items() if not all(row)]
        sieve.refuse(odd, "a tag is neither a word nor a whole number", fix)
        hidden = [i for i, row in names.items() if "-1" in row or "-100" in row]
        sieve.refuse(hidden, "a tag is negative, which marks words without one", "Remove the row.")
        return sieve.left(), [names[i] for i in sieve.kept()]  # type: ignore[misc]

    def check_options(self, labels: Labels, config: Config) -> None:
        checks.check_options(labels, config.loss)

    def encode(
        self, rows: Rows, tokenizer: Tokenizer, max_length: int, cut: Cut | None = None
    ) -> Examples:
        """Returns the rows' sequences; extra has "word_tokens", the token that predicts each word,
        and "word_bounds": row i has the words [bounds[i], bounds[i + 1])."""
        cut = cut or cut_for("window", max_length // 4)
        ids, first, context = bytearray(), bytearray(), bytearray()
        lengths, whole, owners, bounds = array("i"), array("i"), array("q"), array("q", [0])
        unknown = pieces = long = 0
        sentences = [_words(words) for words in rows.texts]
        for row, (row_ids, row_words) in enumerate(tokenizer.encode_words(sentences)):
            unknown += int(np.sum(row_ids == tokenizer.unk_token_id))
            pieces += len(row_ids)
            row_ids = np.concatenate(
                [[tokenizer.cls_token_id], row_ids, [tokenizer.sep_token_id]], dtype=np.int32
            )
            begins = np.diff(row_words, prepend=-1) > 0
            # The word's number in the split at its first piece, else -1.
            number = np.where(begins, bounds[-1] + row_words, -1)
            number = np.concatenate([[-1], number, [-1]]).astype(np.int64)
            special = np.zeros(len(row_ids), np.bool_)
            special[[0, -1]] = True
            kept = [np.arange(len(row_ids))]
            if len(row_ids) > max_length:
                kept, long = cut(special, max_length), long + 1
            for part in kept:
                ids += row_ids[part].tobytes()
                first += number[part].tobytes()
                place = np.arange(len(part), dtype=np.int32)
                context += np.minimum(place, len(part) - 1 - place).tobytes()
                lengths.append(len(part))
                owners.append(row)
            whole.append(len(row_ids))
            bounds.append(bounds[-1] + len(sentences[row]))
        flat = np.frombuffer(ids, np.int32)
        tokens = Tokens(
            flat.astype(tokenizer.id_dtype),
            np.zeros(len(flat), np.uint8),
            np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]),
            long,
            unknown / pieces if pieces else 0.0,
            uncut_lengths=np.array(whole, np.int32) if long else None,
            owners=np.array(owners) if len(owners) > len(rows) else None,
            ordinary=pieces,
        )
        answering = _most_context(np.frombuffer(first, np.int64), np.frombuffer(context, np.int32))
        extra = {"word_tokens": answering, "word_bounds": np.array(bounds)}
        return Examples(tokens, np.full(len(flat), -1, np.int32), "token", extra)

    def with_targets(self, examples: Examples, targets: Sequence[Any], names: Names) -> Examples:
        ids = {name: index for index, name in enumerate(names)}
        labels = np.full(len(examples.labels), -1, np.int32)
        labels[examples.extra["word_tokens"]] = [ids[tag] for row in targets for tag in row]
        return dataclasses.replace(examples, labels=labels)

    def describe_targets(self, rows: Rows, targets: Sequence[Any], labels: Labels) -> About:
        counts = Counter(tag for row in targets for tag in row)
        words = max(1, sum(counts.values()))
        values = {
            "words": words,
            "labels": {tag: counts[tag] for tag in labels.names},
            "label_shares": {tag: counts[tag] / words for tag in labels.names},
        }
        lines = [f"{len(rows)} rows, {words} words; {report.shares_line(values)}"]
        scheme = scheme_of(labels.names)
        if scheme != PLAIN:
            irregular = tag_schemes.irregular_words(targets, scheme)
            used, ids, sentences = tag_schemes.flatten(targets)
            tag_set = TagSet.make(used, scheme)
            found = tag_set.entities(ids, sentences).types
            kinds = Counter(tag_set.types[kind] for kind in found.tolist())
            values["entities"] = dict(sorted(kinds.items()))
            listed = ", ".join(f"{kind} {count}" for kind, count in kinds.most_common(20))
            lines.append(f"{kinds.total()} entities; {listed or 'none'}")
            if irregular:
                where = ", ".join(rows.where(i) for i in dict.fromkeys(i for i, _ in irregular[:9]))
                lines.append(
                    f"WARNING: {len(irregular)} tags do not follow {scheme} ({where}), such as an "
                    "I- that begins an entity; the default scores count such entities, the strict "
                    "ones do not"
                )
        return lines, values

    # Training

    def loss_sums(self, *arguments: Any, **options: Any) -> tuple[Any, Any]:
        """Returns the two sums of torch.nn.CrossEntropyLoss over all words."""
        return single_label.loss_sums(*arguments, **options)

    # Results

    def answers(self, outputs: np.ndarray, examples: Examples) -> Float[np.ndarray, "W C"]:
        return outputs[examples.extra["word_tokens"]]

    def gold(self, examples: Examples) -> Int[np.ndarray, " W"]:
        return examples.labels[examples.extra["word_tokens"]]

    def main_metric(self, names: Names) -> str:
        return "accuracy" if scheme_of(names) == PLAIN else "f1"

    def metrics(self, answers: np.ndarray, examples: Examples, names: Names) -> dict[str, float]:
        """Returns scores of entities as seqeval's default mode, micro-averaged, the strict F1, and
        the accuracy of words; for plain tags the accuracy, and F1 as the mean over tags."""
        told = self.report(answers, examples, names)
        if "strict" not in told:
            return {"accuracy": told["accuracy"], "f1_macro": told["macro"]["f1"]}
        micro = {name: told["micro"][name] for name in ("precision", "recall", "f1")}
        return micro | {"f1_strict": told["strict"]["micro"]["f1"], "accuracy": told["accuracy"]}

    def report(self, answers: np.ndarray, examples: Examples, names: Names) -> dict[str, Any]:
        bounds = examples.extra["word_bounds"]
        sentences = np.repeat(np.arange(len(bounds) - 1), np.diff(bounds))
        gold, predicted = self.gold(examples), np.argmax(answers, axis=-1)
        return entities.report(gold, predicted, sentences, names, scheme_of(names))

    def readable(
        self, answers: np.ndarray, examples: Examples, rows: Rows, names: Names, top_k: int = 0
    ) -> list[dict[str, Any]]:
        """Returns {"words", "tags", "scores"} and, unless tags are plain, "entities" of each row.

        An entity is {"type", "text", "start", "end" (words, the end exclusive), "score"}; if the
        row was a text, not a list, also {"start_char", "end_char"}, positions in that text.
        """
        probabilities = classification.softmax(answers.astype(np.float64))
        scheme = scheme_of(names)
        tag_set = None if scheme == PLAIN else TagSet.make(names, scheme)
        records = []
        for text, (start, end) in zip(
            rows.texts, pairwise(examples.extra["word_bounds"].tolist()), strict=True
        ):
            own, words = probabilities[start:end], _words(text)
            best = own.argmax(axis=-1)
            record: dict[str, Any] = {
                "words": words,
                "tags": [names[tag] for tag in best],
                "scores": own.max(axis=-1).tolist() if len(own) else [],
            }
            if tag_set:
                spans = word_spans(text) if isinstance(text, str) else ()
                found = entities.scored_entities(own, tag_set, spans) if len(own) else []
                for entity in found:
                    chosen = words[entity["start"] : entity["end"]]
                    entity["text"] = (
                        text[entity["start_char"] : entity["end_char"]]
                        if isinstance(text, str)
                        else " ".join(chosen)
                    )
                record["entities"] = found
            records.append(record)
        return records

    def no_answer(self, names: Names) -> dict[str, Any]:
        fields = dict.fromkeys(("words", "tags", "scores", *self.csv_columns(names)))
        return {field: [] for field in fields}

    def csv_columns(self, names: Names) -> Sequence[str]:
        return ("words", "tags") if scheme_of(names) == PLAIN else ("words", "tags", "entities")

    def summary(self, record: dict[str, Any], names: Names) -> str:
        return " ".join(record["tags"])


def _as_labels(tags: list[list[str]], names: Names, choice: str) -> list[list[str]]:
    """Converts tags to a model's labels: ids to names, and entities of any scheme to IOB2.

    Tags that cannot be converted are returned unchanged; the caller refuses them.
    """
    used = {tag for row in tags for tag in row}
    if not used <= set(names) and _are_ids(used, names):
        return [[names[int(tag)] for tag in row] for row in tags]
    types = {name[2:] for name in names} - {""}
    entities = used - {"O", "o"}
    if choice == PLAIN or not entities or set(names) != set(tag_schemes.iob2_labels(types)):
        return tags
    scheme = choice
    if choice == "auto":
        # A split may have too few words to tell IO without prefixes from plain tags.
        scheme = "IO" if entities <= types else tag_schemes.scheme_for(tags)
    if scheme == PLAIN or (scheme == "IOB2" and used <= set(names)):
        return tags  # irregular tags too, which the strict scores ignore
    return tag_schemes.to_iob2(tags, scheme)


def _are_ids(used: set[str], names: Names) -> bool:
    """Whether tags are numbers in the range of the names' ids."""
    return cells.are_ids(used, names) and all(0 <= int(tag) < len(names) for tag in used)


def scheme_of(names: Names) -> str:
    """Returns the scheme of a model's labels: IOB2 if trained here, else the one they show."""
    if all(name == "O" or re.fullmatch(r"[BI]-.+", name) for name in names):
        return "IOB2"
    try:
        return tag_schemes.scheme_for([sorted(names, key=lambda name: name in ("O", "o"))])
    except DataError:
        return PLAIN


def word_spans(text: str) -> list[tuple[int, int]]:
    """Returns the (start, end) of each word of a plain text: split at white space, with punctuation
    around a word apart ("U.N." and "New-York" stay whole), as in tagged corpora."""
    if not text.isascii():
        text = "".join(
            "\u0300" if c in _JOINERS or unicodedata.category(c)[0] == "M" else c for c in text
        )
    return [
        (chunk.start() + part.start(), chunk.start() + part.end())
        for chunk in _WORD.finditer(text)
        for part in _INSIDE.finditer(chunk[0])
    ]


def _words(text: str | Sequence[str]) -> list[str]:
    if isinstance(text, str):
        return [text[start:end] for start, end in word_spans(text)]
    return list(text)


def _natural(tag: str) -> tuple[int, int, str]:
    return (0, int(tag), "") if tag.isdecimal() else (1, 0, tag)


def _most_context(
    words: Int[np.ndarray, " T"], context: Int[np.ndarray, " T"]
) -> Int[np.ndarray, " W"]:
    """Returns for each word the token, among the copies of its first piece in the windows, that is
    farthest from the ends of its window; the first one if several are."""
    places = np.flatnonzero(words >= 0)
    order = places[np.lexsort((-context[places], words[places]))]
    new = np.diff(words[order], prepend=-1) > 0
    return order[new]


HEADS: dict[str, Head] = {"token": TokenHead()}
