"""JSON read row by row against Python's own reader: the same documents, the same refusals."""

import json
import random

import pytest

from anysam.outputs import json_reading
from anysam.outputs.json_reading import loads_by_rows


def random_value(rng, depth):
    kind = rng.randrange(8 if depth else 6)
    if kind == 6:
        return [random_value(rng, depth - 1) for _ in range(rng.randrange(4))]
    if kind == 7:
        return {rng.choice(["a", "é", "\\", '"', ""]): random_value(rng, depth - 1) for _ in range(rng.randrange(4))}
    return [None, True, rng.randrange(-(10**20), 10**20), rng.uniform(-1e9, 1e9), "a\u2028\U0001f600\n", ""][kind]


def test_documents_are_what_python_reads():
    rng = random.Random(0)
    for _ in range(400):
        value = random_value(rng, 5)
        text = json.dumps(value, ensure_ascii=rng.random() < 0.5, indent=rng.choice([None, 1]))
        for encoding in ("utf-8", "utf-8-sig", "utf-16"):
            assert loads_by_rows(text.encode(encoding)) == value


def outcome(read, data):
    try:
        return repr(read(data))
    except ValueError:
        return "refused"


def test_damaged_documents_are_refused_where_python_refuses_them():
    rng = random.Random(1)
    refused = 0
    for _ in range(3000):
        text = list(json.dumps(random_value(rng, 4)))
        for _ in range(rng.randrange(1, 3)):
            place = rng.randrange(len(text) + 1)
            text[place : place + rng.randrange(2)] = rng.choice(["", *'[]{},:"0-. \\ntx'])
        data = "".join(text).encode()
        expected = outcome(json.loads, data)
        assert outcome(loads_by_rows, data) == expected, data
        refused += expected == "refused"
    assert 300 < refused < 2900


@pytest.mark.parametrize("text", ["NaN", "[Infinity]", '{"a": [-Infinity]}', "", " ", "\x00"])
def test_what_is_no_json_is_refused(text):
    with pytest.raises(ValueError):
        loads_by_rows(text.encode())


def test_a_document_of_too_many_values_is_refused_before_it_is_read(monkeypatch):
    monkeypatch.setattr(json_reading, "MAX_VALUES", 10)
    assert loads_by_rows(b"[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]")[-1] == 10
    with pytest.raises(ValueError, match="more than 10 values"):
        loads_by_rows(b"[[], [], [], [], [], []")  # damaged, which is not looked at any more
