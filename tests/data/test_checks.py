"""Bad input found on the host, with line numbers; how labels are numbered."""

from __future__ import annotations

from typing import Any

import pytest

from flaxbert.config import Data, Loss
from flaxbert.data import cells, checks
from flaxbert.data.checks import (
    Known,
    Labels,
    check_options,
    empty_texts,
    label_counts,
)
from flaxbert.data.rows import Rows
from flaxbert.errors import ConfigError, DataError
from tests.data import made

SENTIMENT = ("negative", "positive")


def rows_of(targets: list[Any] | None, texts: list[Any] | None = None, pairs=None) -> Rows:
    """Rows of a file with a header: row i stands in line i + 2."""
    return made.rows_of(["t"] * len(targets or []) if texts is None else texts, targets, pairs)


def usable_texts(rows: Rows, on_bad_row: str = "error", on_empty: str = "keep") -> Rows:
    return checks.usable_texts(rows, Data(on_bad_row=on_bad_row, on_empty=on_empty))


def learn_labels(
    rows: Rows, problem: str = "auto", label_separator: str = "", known: Known | None = None, **on
) -> Labels:
    data = Data(problem=problem, label_separator=label_separator, **on)
    return checks.learn_labels(rows, data, known or Known())


def usable_labels(
    rows: Rows, labels: Labels, separator: str = "", on_bad_row: str = "error"
) -> tuple[Rows, list[Any]]:
    data = Data(label_separator=separator, on_bad_row=on_bad_row)
    return checks.usable_labels(rows, labels, data)


def refusal(call, *args, **kwargs) -> str:
    with pytest.raises(DataError) as caught:
        call(*args, **kwargs)
    assert caught.value.exit_code == 3
    return str(caught.value)


def canonical_targets(rows: Rows, labels: Labels, separator: str = "") -> list[Any]:
    return usable_labels(rows, labels, separator)[1]


# --- texts --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("texts", "pairs", "said"),
    [
        (["a", None], None, ("rows.csv:3: the text is missing", "remove the row")),
        (["a", 1, None], None, ("rows.csv:4: the text is missing", "remove the row")),
        (["a", 1], None, ("rows.csv:3: the text is not a string", "Put it in quotes")),
        ([["a"]], None, ("rows.csv:2: the text is not a string", "Put it in quotes")),
        (["a", "b\ud83d"], None, ("rows.csv:3: the text has half of a surrogate", "Repair")),
        (["a", "b"], ["c", None], ("rows.csv:3: the second text is missing", "remove the row")),
        (["a", "b"], [2.5, "c"], ("rows.csv:2: the second text is not a string", "quotes")),
        (["a"], ["\udc00"], ("rows.csv:2: the second text has half of a surrogate", "Repair")),
    ],
)
def test_unusable_texts(texts, pairs, said):
    message = refusal(usable_texts, rows_of(None, texts, pairs))
    for part in said:
        assert part in message


def test_empty_texts_are_counted_not_refused():
    assert empty_texts(rows_of(None, ["a", "", " \t\n", "😀"])) == [1, 2]
    # A pair is empty when both of its texts are.
    assert empty_texts(rows_of(None, ["", "", "a"], ["", "b", ""])) == [0]


# --- offenders ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (1, "rows.csv:2: the text is missing. Give"),
        (2, "rows.csv:2: the text is missing. Also line 3. Give"),
        (3, "rows.csv:2: the text is missing. Also lines 3, 4. Give"),
        (20, f"Also lines {', '.join(map(str, range(3, 22)))}. Give"),
        (21, f"Also lines {', '.join(map(str, range(3, 22)))} and 1 more. Give"),
        (1000, "20, 21 and 980 more. Give"),
    ],
)
def test_twenty_offenders_are_named_and_the_rest_counted(count, said):
    assert said in refusal(usable_texts, rows_of(None, [None] * count + ["a"]))


def test_offenders_are_named_by_their_own_lines():
    columns = {"text": ["a"] * 4, "label": ["x", "", "y", None]}
    rows = Rows("rows.csv", columns, [2, 5, 9, 11])
    message = refusal(learn_labels, rows)
    assert message.startswith("rows.csv:5: the label is missing. Also line 11.")


# --- targets that are refused -------------------------------------------------------------------

# (targets, arguments of learn_labels, what the message must say: place, problem, fix)
REFUSED = {
    "no column": (None, {}, ("rows.csv: has no label column", "data.label")),
    "white space": (["a", " \t", "b"], {}, (":3: the label is missing", "remove the row")),
    "nothing in a list": ([["a"], [" "]], {}, (":3: the label is neither a string nor",)),
    "surrogate": (["a", "b\ud83d"], {}, (":3: the label has half of a surrogate", "Repair")),
    "missing": (["a", None, "b"], {}, (":3: the label is missing", "remove the row")),
    "empty cell": (["a", "", "b"], {}, (":3: the label is missing", "remove the row")),
    "no rows": ([], {}, ("rows.csv: no row has any label", "Check the label column")),
    "hidden": (["0", "1", "-1"], {}, (":4: the label is -1", "hidden labels", "Remove")),
    "hidden number": ([0, 1, -1], {}, (":4: the label is -1", "hidden labels", "Remove")),
    "hidden float": (["0.0", "1.0", "-1.0"], {}, (":4: the label is -1", "Remove")),
    "hidden in a list": ([[0, 1], [-1]], {}, (":3: the label is -1", "Remove")),
    "hidden beside names": (["no", "-1"], {"known": Known(task=("no", "yes"))}, (":3: the label",)),
    "ids of names that hold numbers": (
        [1, 2, 0],
        {"known": Known(task=("1 day", "2 days", "3 days"))},
        (":2: the label is not among", "It is no id, since the names hold numbers", "'1 day'"),
    ),
    "a list in some cells": (["b", "['a', 'b']"], {}, (":3: the label is a list written as text",)),
    "a list in a cell, one expected": (
        ["['a']", "['b']"],
        {"problem": "single_label"},
        (":2: the label is a list (got \"['a']\")", "one label a row"),
    ),
    "one class": (["a", "a"], {}, ("every row has the label 'a'", "two classes", "check")),
    "one class of ids": ([1, 1.0], {}, ("every row has the label '1'", "check the label column")),
    "no label at all": ([[], []], {}, ("no row has any label", "Check the label column")),
    "mixed": (["0", 1], {}, ("string at rows.csv:2, number at rows.csv:3", "Use one kind")),
    "mixed with true": ([1, 0, True], {}, ("number at rows.csv:2, true/false at rows.csv:4",)),
    "mixed with an object": (["a", {}], {}, ("string at rows.csv:2, object at rows.csv:3",)),
    "mixed, problem given": (
        ["0", 1],
        {"problem": "single_label"},
        ("string at rows.csv:2, number at rows.csv:3", "Use one kind"),
    ),
    "mixed in lists": ([["0"], [1, "1"]], {}, ("string at rows.csv:2, number at rows.csv:3",)),
    "null in a list": ([["a"], ["b", None]], {}, ("string at rows.csv:2, null at rows.csv:3",)),
    "objects": ([{}, {}], {}, (":2: the label is neither a string nor a whole number",)),
    "nested": ([["a"], [["b"]]], {}, ("string at rows.csv:2, list at rows.csv:3",)),
    "a list where one is expected": (
        ["a", ["b"]],
        {"problem": "single_label"},
        (":3: the label is a list", "Expected one label a row"),
    ),
    "no list where one is expected": ([[1], 2], {}, (":3: the label is not a list", "a list")),
    "decimals as classes": (
        [1, 2.5],
        {"problem": "single_label"},
        (":3: the label is neither a string nor a whole number (got 2.5)", "regression"),
    ),
    "no number": (
        ["1.5", "n/a"],
        {},
        (":3: the label is not a finite number (got 'n/a')", "data.problem=single_label"),
    ),
    "text for regression": (
        ["a", "b"],
        {"problem": "regression"},
        (":2: the label is not a finite number (got 'a'). Also line 3.", "Expected a number"),
    ),
    "inf": ([0.5, float("inf")], {}, (":3: the label is not a finite number (got inf)",)),
    "nan": ([0.5, float("nan")], {}, (":3: the label is not a finite number (got nan)",)),
    "inf as text": (["0.5", "inf"], {}, (":3: the label is not a finite number (got 'inf')",)),
    "overflow": (
        ["1e999", "0.5"],
        {},
        (":2: the label is not a finite number (got '1e999')",),
    ),
    "huge integer": (
        [10**400, 1],
        {"problem": "regression"},
        (":2: the label is not a finite number",),
    ),
    "true for regression": (
        [True, False],
        {"problem": "regression"},
        (":2: the label is not a finite number (got True)",),
    ),
    "too large to square": ([1e30, 0.5], {}, (":2: the label is so large that", "(got 1e+30)")),
    "list for regression": (
        [[1.5], [2.5]],
        {"problem": "regression"},
        (":2: the label is not a finite number",),
    ),
    "out of range": (
        ["0", "2", "1"],
        {"known": Known(task=SENTIMENT)},
        (":3: the label is out of range (got '2')", "from 0 to 1 (negative, positive)"),
    ),
    "not the task's": (
        ["negative", "neutral"],
        {"known": Known(task=SENTIMENT)},
        (":3: the label is not among", "(got 'neutral')", "'negative', 'positive'"),
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    targets, arguments, said = REFUSED[case]
    texts = ["t"] * 2 if targets is None else None
    message = refusal(learn_labels, rows_of(targets, texts), **arguments)
    assert message.startswith("rows.csv:")
    for part in said:
        assert part in message


@pytest.mark.parametrize(
    ("names", "targets", "said"),
    [
        (("a", "b"), ["a", "c", "c"], (":3: the label is not among", "(got 'c'). Also line 4.")),
        (("0", "1"), ["0", "2"], (":3: the label is not among", "'0', '1'")),
        (SENTIMENT, [0, 2], (":3: the label is out of range (got 2)", "from 0 to 1")),
        (SENTIMENT, ["positive", "0"], (":3: the label is not among", "'negative', 'positive'")),
        (SENTIMENT, ["0", "-1"], (":3: the label is -1", "hidden")),
        # Names that are integers are never read as ids: 0 is no star rating, 1 is the first.
        (("1", "2", "3"), ["1", "0"], (":3: the label is not among", "(got '0')", "'1', '2', '3'")),
        (("1", "2", "5"), ["0", "1", "2"], (":2: the label is not among", "(got '0')")),
        (("0", "other"), ["1"], (":2: the label is not among", "(got '1')")),
        (("2 stars", "1 star"), [1, 2], (":2: the label is not among", "It is no id, since")),
    ],
)
def test_labels_that_training_did_not_have(names, targets, said):
    message = refusal(canonical_targets, rows_of(targets), Labels("single_label", names))
    for part in said:
        assert part in message


def test_unseen_label_in_a_list():
    labels = Labels("multi_label", ("a", "b"))
    message = refusal(canonical_targets, rows_of([["a"], ["b", "c"]]), labels)
    assert ":3: the label is not among" in message


# --- which kind of problem ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("targets", "separator", "problem"),
    [
        (["a", "b"], "", "single_label"),
        (["0", "1"], "", "single_label"),
        ([0, 1], "", "single_label"),
        ([0.0, 1.0], "", "single_label"),
        (["0.0", "1.0"], "", "single_label"),
        ([True, False], "", "single_label"),
        (["NA", "nan"], "", "single_label"),
        ([1, 2.5], "", "regression"),
        (["1", "2.5"], "", "regression"),
        ([" 1 ", "-.5e1", "5e-1"], "", "regression"),
        ([["a"], ["b"]], "", "multi_label"),
        ([["a"], []], "", "multi_label"),
        (["a", ["a", "b"]], "", "multi_label"),
        (["a;b", "a"], ";", "multi_label"),
        (["['a', \"b's\"]", "[]"], "", "multi_label"),
        (["[1 0 1]", "[0 0 0]"], "", "multi_label"),
        (["('a', 'b')", "{'a'}", "set()"], "", "multi_label"),
        (["1 0 1", "0 0 0"], "", "multi_label"),
        (["1,0,1", "0,0,0"], "", "multi_label"),
        (["1|0", "0|1"], "", "single_label"),
        (["0,1", "1,0"], "", "single_label"),
        (["[OTHER]", "[a]"], "", "single_label"),
        (["(1)", "(2)"], "", "single_label"),
    ],
)
def test_auto_looks_at_the_targets(targets, separator, problem):
    assert learn_labels(rows_of(targets), "auto", separator).problem == problem


def test_a_given_problem_wins():
    assert learn_labels(rows_of(["1", "2"]), "regression") == Labels("regression", ("LABEL_0",))
    assert learn_labels(rows_of(["1.5", "x"]), "single_label").names == ("1.5", "x")
    assert learn_labels(rows_of(["b", "a"]), "multi_label") == Labels("multi_label", ("a", "b"))


# --- how labels are numbered --------------------------------------------------------------------

ORDER = {
    # name: (targets, known, label names in id order)
    "strings by code point": (["é", "z", "a", "Z"], Known(), ("Z", "a", "z", "é")),
    "digits of strings by code point": (["a10", "a9"], Known(), ("a10", "a9")),
    "true and false": ([True, False], Known(), ("false", "true")),
    "ids": ([2, 0, 1], Known(), ("0", "1", "2")),
    "ids as text": (["1", "0"], Known(), ("0", "1")),
    "ids as floats": ([1.0, 0.0], Known(), ("0", "1")),
    "ids as float text": (["1.0", "0.0"], Known(), ("0", "1")),
    "one float among integers": (["2", "1.0", "3"], Known(), ("1", "2", "3")),
    "two spellings of a number": (
        ["7.10", "7.1", "7.0", "7"],
        Known(),
        ("7", "7.0", "7.1", "7.10"),
    ),
    "whole numbers among codes": (["401.0", "401.9"], Known(), ("401.0", "401.9")),
    "whole numbers among words": (["1.0", "other"], Known(), ("1.0", "other")),
    "codes that the checkpoint has without zeros": (
        ["5.00", "5", "5.02"],
        Known(checkpoint=("5", "5.02")),
        ("5", "5.00", "5.02"),
    ),
    "the data set's numbers": (
        ["3.0", "1.0", "1.0"],
        Known(task=("1.0", "2.0", "3.0")),
        ("1.0", "2.0", "3.0"),
    ),
    "the data set's -1": (["-1", "1"], Known(task=("-1", "0", "1")), ("-1", "0", "1")),
    "the checkpoint's -1": ([-1, 1], Known(checkpoint=("1", "-1")), ("1", "-1")),
    "the checkpoint's white space": (["b", "a "], Known(checkpoint=(" b", "a")), (" b", "a")),
    "the checkpoint's numbers": ([2, 1], Known(checkpoint=("2.0", "1.0")), ("2.0", "1.0")),
    "ids that the names hold": (
        [1, 0],
        Known(checkpoint=("step 0", "step 1")),
        ("step 0", "step 1"),
    ),
    "ids of other numbers in names": (
        [1, 0],
        Known(checkpoint=("flu", "covid 19")),
        ("flu", "covid 19"),
    ),
    "no ids of numbers in names": ([1, 2], Known(checkpoint=("1 star", "2 stars")), ("1", "2")),
    "other integers in numeric order": (["10", "9", "-3"], Known(), ("-3", "9", "10")),
    "stars": ([5, 1, 3, 2, 4], Known(), ("1", "2", "3", "4", "5")),
    "ids with a gap": ([0, 2], Known(), ("0", "2")),
    "white space around": (["a ", " b", "a", "\tb"], Known(), ("a", "b")),
    "case counts": (["Pos", "pos"], Known(), ("Pos", "pos")),
    "leading zeros are words": (["010", "9"], Known(), ("010", "9")),
    "checkpoint's names": (["a", "b"], Known(checkpoint=("b", "a")), ("b", "a")),
    "checkpoint's integer names": ([0, 1], Known(checkpoint=("1", "0")), ("1", "0")),
    "checkpoint before task": (["a", "b"], Known(("b", "a"), ("a", "b")), ("b", "a")),
    "checkpoint of other names": (["a", "b"], Known(checkpoint=("c", "d")), ("a", "b")),
    "checkpoint of more names": (["a", "b"], Known(checkpoint=("b", "a", "c")), ("a", "b")),
    "ids of the checkpoint": ([1, 0], Known(checkpoint=("b", "a")), ("b", "a")),
    "fewer ids than the checkpoint": ([1, 0], Known(checkpoint=("b", "a", "c")), ("0", "1")),
    "more ids than the checkpoint": ([1, 0, 2], Known(checkpoint=("b", "a")), ("0", "1", "2")),
    "ids are no stars": ([0, 1, 2], Known(checkpoint=("1", "2", "3")), ("0", "1", "2")),
    "task's names": (
        ["positive", "negative"],
        Known(task=("positive", "negative")),
        SENTIMENT[::-1],
    ),
    "ids of the task": ([1, 0], Known(task=SENTIMENT), SENTIMENT),
    "task has more than the data": (["b", "a"], Known(task=("c", "b", "a")), ("c", "b", "a")),
    "task before the checkpoint's ids": ([1, 0], Known(("x", "y"), SENTIMENT), SENTIMENT),
}


@pytest.mark.parametrize("case", ORDER)
def test_label_order(case):
    targets, known, names = ORDER[case]
    problem = "single_label"
    assert learn_labels(rows_of(targets), problem, known=known) == Labels(problem, names)
    # Never first-seen: any order of the rows gives the same numbers.
    assert learn_labels(rows_of(targets[::-1]), problem, known=known).names == names


def test_label_order_of_lists():
    rows = rows_of([["10", "9"], [], ["9"]])
    assert learn_labels(rows).names == ("9", "10")
    rows = rows_of([[1], [0, 1]])
    assert learn_labels(rows, known=Known(checkpoint=("x", "y"))).names == ("x", "y")


# --- lists of 0 and 1, lists as text ------------------------------------------------------------


@pytest.mark.parametrize(
    ("targets", "separator"),
    [
        ([[1, 0, 1], [0, 0, 0], [0, 1, 0]], ""),
        ([[True, False, True], [False] * 3, [False, True, False]], ""),
        ([[1.0, 0.0, 1.0], [0.0] * 3, [0.0, 1.0, 0.0]], ""),
        (["[1, 0, 1]", "[0, 0, 0]", "[0, 1, 0]"], ""),
        (["[1. 0. 1.]", "[0. 0. 0.]", "[0. 1. 0.]"], ""),
        (["1|0|1", "0|0|0", "0|1|0"], "|"),
        (["['x', 'z']", "[]", '["y"]'], ""),
        (["['x' 'z']", "[ ]", "['y']"], "|"),
    ],
)
def test_a_place_for_each_label_and_names_as_text(targets, separator):
    names = ("x", "y", "z")
    rows = rows_of(targets)
    labels = learn_labels(rows, "auto", separator, known=Known(task=names))
    assert labels == Labels("multi_label", names)
    assert canonical_targets(rows, labels, separator) == [["x", "z"], [], ["y"]]


def test_places_without_names_are_numbered():
    rows = rows_of([[0, 1, 1], [0, 0, 0]])
    labels = learn_labels(rows)
    assert labels == Labels("multi_label", ("0", "1", "2"))
    assert canonical_targets(rows, labels) == [["1", "2"], []]
    message = refusal(canonical_targets, rows, Labels("multi_label", ("a", "b")))
    assert ":2: the label is a list of zeros and ones, but not of 2, one for each label" in message
    message = refusal(learn_labels, rows_of([[0, 1, 1], ["a"]]), on_bad_row="skip")
    assert "several kinds" in message
    message = refusal(learn_labels, rows_of([[0, 1, 1], [0, 1]]))
    assert ":3: the label is not a list of 3 zeros and ones" in message
    message = refusal(learn_labels, rows_of([[0, 1], [1, 1]]))
    assert "two names or two places" in message


def test_lists_of_two_are_names_whatever_other_rows_are():
    """A validation file, or a part that is held out, may have no other rows."""
    rows = rows_of([[0, 1], [0], [1], [1, 0]])
    labels = learn_labels(rows)
    assert canonical_targets(rows_of([[0, 1], [1, 0]]), labels) == [["0", "1"], ["1", "0"]]
    assert canonical_targets(rows_of(["0;1", "1;0"]), labels, ";") == [["0", "1"], ["1", "0"]]
    ids = Labels("multi_label", ("a", "b", "c"))
    assert canonical_targets(rows_of([[0, 1], [1, 0]]), ids) == [["a", "b"], ["b", "a"]]


@pytest.mark.parametrize(
    ("cell", "found"),
    [
        ('["\\ud83d\\ude00", "a\\/b"]', ["😀", "a/b"]),  # as json.dumps escapes
        ("['it\\'s', 'b']", ["it's", "b"]),
        ("['a\\nb']", ["a\nb"]),
        ("['C:\\users']", None),  # no string of Python's
        ("['a\nb', 'c']", None),
        (f"[{'1' * 5000}]", None),
        ("[1" + " " * 200_000 + "x]", None),  # at once
        ("{'a'" + " " * 200_000 + "x}", None),
        ("[" + "1  " * 50_000 + "x]", None),
        ("(1, 2)", None),
    ],
)
def test_lists_as_text(cell, found):
    assert cells.list_in(cell) == found


# --- canonical targets --------------------------------------------------------------------------


def test_targets_become_names():
    single = Labels("single_label", ("0", "1"))
    assert canonical_targets(rows_of(["1.0", "0"]), single) == ["1", "0"]
    assert canonical_targets(rows_of([1.0, 0]), single) == ["1", "0"]
    assert canonical_targets(rows_of([1, 0]), Labels("single_label", SENTIMENT)) == [
        "positive",
        "negative",
    ]
    assert canonical_targets(rows_of([3, 1]), Labels("single_label", ("1", "2", "3"))) == ["3", "1"]
    whole = Labels("single_label", ("7", "8.0"))
    assert canonical_targets(rows_of(["7.0", "8"]), whole) == ["7", "8.0"]
    for names in (("7", "8"), ("7", "7.02", "8")):  # two spellings in one file, or codes
        said = refusal(canonical_targets, rows_of(["7.0", "7"]), Labels("single_label", names))
        assert ":2: the label is not among" in said
    codes = Labels("single_label", ("7", "7.0", "7.10", " x", "-1"))
    written = ["7.0", "7.10", "7", "x ", "-1"]
    assert canonical_targets(rows_of(written), codes) == ["7.0", "7.10", "7", " x", "-1"]
    truth = Labels("single_label", ("false", "true"))
    assert canonical_targets(rows_of([True, False]), truth) == ["true", "false"]


def test_targets_become_lists_of_names():
    labels = Labels("multi_label", ("a", "b", "c d"))
    assert canonical_targets(rows_of(["a; c d;", "b", ";"]), labels, ";") == [
        ["a", "c d"],
        ["b"],
        [],
    ]
    assert canonical_targets(rows_of([["b"], "a", []]), labels) == [["b"], ["a"], []]
    assert canonical_targets(rows_of([[0, 2], [1]]), labels) == [["a", "c d"], ["b"]]


def test_targets_become_numbers():
    numbers = canonical_targets(rows_of(["-1", " 2.50", 3, "1e-2"]), Labels("regression", ("x",)))
    assert numbers == [-1.0, 2.5, 3.0, 0.01]


@pytest.mark.parametrize("text", ["1_000", "0x10", "١", "1,5", "--1", "1e", ".", "inf", "nan", ""])
def test_what_is_no_number(text):
    rows = rows_of([text])
    assert ":2: the label is" in refusal(canonical_targets, rows, Labels("regression", ("x",)))


def test_label_counts_are_in_id_order():
    labels = Labels("single_label", ("b", "a", "c"))
    assert list(label_counts(["a", "b", "a"], labels).items()) == [("b", 1), ("a", 2), ("c", 0)]
    labels = Labels("multi_label", ("x", "y"))
    assert label_counts([["y", "x"], ["y", "y"], []], labels) == {"x": 1, "y": 2}


# --- rows left out ------------------------------------------------------------------------------


def test_unusable_texts_can_be_left_out():
    rows = rows_of(None, ["a", None, 3, "b\ud83d", "", "c"], ["x", "x", "x", "x", "", None])
    rows = usable_texts(rows, "skip")
    assert (rows.texts, rows.pairs, list(rows.lines)) == (["a", ""], ["x", ""], [2, 6])
    assert rows.skipped == {
        "the text is missing": [3],
        "the text is not a string": [4],
        "the text has half of a surrogate pair": [5],
        "the second text is missing": [7],
    }
    rows = usable_texts(rows, "skip", "skip")
    assert (rows.texts, rows.skipped["the text is empty"]) == (["a"], [6])
    assert rows.skipped["the text is missing"] == [3]


def test_empty_texts_can_be_refused():
    rows = rows_of(None, ["a", " ", ""])
    assert usable_texts(rows) is rows
    message = refusal(usable_texts, rows, on_empty="error")
    assert message.startswith("rows.csv:3: the text is empty. Also line 4. Give it a value")
    assert "config.data.on_empty" in message
    # Each choice is its own: skipping bad rows keeps empty ones.
    assert usable_texts(rows, "skip") is rows


def test_nothing_left():
    message = refusal(checks.refuse_nothing, usable_texts(rows_of(None, [None, None]), "skip"))
    assert message == (
        "rows.csv: no row can be used. Skipped: the text is missing: lines 2, 3. Repair them."
    )
    message = refusal(checks.refuse_nothing, rows_of(None, []))
    assert message == "rows.csv: has no rows. Expected at least one."


@pytest.mark.parametrize(
    ("targets", "problem", "learnt", "kept"),
    [
        (["a", None, "b", "", "-1", ["c"]], "single_label", ("a", "b"), [2, 4]),
        ([0, 2.5, 1, -1], "single_label", ("0", "1"), [2, 4]),
        (["0.5", "n/a", "2", "-1"], "auto", ("LABEL_0",), [2, 4, 5]),
        ([["a"], None, ["-1"], ["b", "a"], []], "auto", ("a", "b"), [2, 5, 6]),
    ],
)
def test_unusable_labels_can_be_left_out(targets, problem, learnt, kept):
    rows = rows_of(targets)
    labels = learn_labels(rows, problem, on_bad_row="skip")
    assert labels.names == learnt
    left, values = usable_labels(rows, labels, on_bad_row="skip")
    assert list(left.lines) == kept
    assert len(values) == len(left)
    assert sum(map(len, left.skipped.values())) == len(rows) - len(kept)
    refusal(usable_labels, rows, labels)


def test_unknown_labels_can_be_left_out():
    labels = Labels("single_label", SENTIMENT)
    left, values = usable_labels(rows_of([0, 2, 1]), labels, on_bad_row="skip")
    assert (values, list(left.lines)) == (["negative", "positive"], [2, 4])
    assert left.skipped == {"the label is out of range": [3]}
    left, values = usable_labels(rows_of(["positive", "x"]), labels, on_bad_row="skip")
    assert (values, list(left.lines)) == (["positive"], [2])
    assert "no row can be used" in refusal(usable_labels, rows_of(["x"]), labels, "", "skip")
    # What no single row is to blame for stays an error.
    assert "several kinds" in refusal(learn_labels, rows_of(["0", 1]), on_bad_row="skip")


@pytest.mark.parametrize(
    ("target", "known", "names"),
    [
        ("negative", Known(task=SENTIMENT), SENTIMENT),
        (1, Known(task=SENTIMENT), SENTIMENT),
        ("positive", Known(checkpoint=SENTIMENT), SENTIMENT),
    ],
)
def test_one_class_can_be_allowed_where_another_is_known(target, known, names):
    rows = rows_of([target, target])
    assert learn_labels(rows, known=known, on_single_class="warn").names == names
    message = refusal(learn_labels, rows, known=known)
    assert "two classes" in message and "on_single_class=warn" in message


def test_one_class_alone_is_no_classifier():
    # transformers refuses a folder of a single-label model with one output.
    for known in (Known(), Known(checkpoint=SENTIMENT)):
        message = refusal(learn_labels, rows_of(["a", "a"]), known=known, on_single_class="warn")
        assert "every row has the label 'a'" in message and "add rows of another class" in message


# --- options ------------------------------------------------------------------------------------


def test_loss_options_that_fit():
    check_options(Labels("single_label", ("a", "b")), Loss(0.1, (1.0, 2.0)))
    check_options(Labels("multi_label", ("a", "b")), Loss(0.1))
    check_options(Labels("regression", ("x",)), Loss())


@pytest.mark.parametrize(
    ("labels", "smoothing", "weights", "said"),
    [
        (Labels("regression", ("x",)), 0.1, (), "do not apply to regression"),
        (Labels("regression", ("x",)), 0.0, (1.0,), "do not apply to regression"),
        (Labels("regression", ("x",)), 0.0, ("balanced",), "do not apply to regression"),
    ],
)
def test_loss_options_that_do_not_fit(labels, smoothing, weights, said):
    with pytest.raises(ConfigError, match=said) as caught:
        check_options(labels, Loss(smoothing, weights))
    assert caught.value.exit_code == 2


def test_hidden_numbers_of_a_test_set():
    labels = Labels("regression", ("LABEL_0",))
    message = refusal(canonical_targets, rows_of([-1.0, -1.0]), labels)
    assert "every label is -1, which marks hidden labels" in message
    assert canonical_targets(rows_of([-1.0]), labels) == [-1.0]  # a number like others
    assert canonical_targets(rows_of([-1.0, 2.0]), labels) == [-1.0, 2.0]


def test_integers_beyond_floats_stay_apart():
    names = [str(2**53), str(2**53 + 1)]
    assert learn_labels(rows_of([2**53, 2**53 + 1])).names == tuple(names)
    long = ["9" * 5000, "x"]  # more digits than Python reads: a name like others
    assert learn_labels(rows_of(long)).names == tuple(sorted(long))
