"""Files: what is read from them within which bounds, and locks between processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Dict, List, Optional

import pytest
from pydantic import BaseModel, Field

from gcp import storage
from gcp.errors import UserError


class Stage(BaseModel, extra="forbid", strict=True):
    top1: float = Field(ge=0, le=1)
    sizes: Dict[str, int] = {}
    parts: Optional[List[Stage]] = None


def mistake(function, *args) -> UserError:
    with pytest.raises(UserError) as caught:
        function(*args)
    assert "\n" not in str(caught.value) and caught.value.key
    return caught.value


def test_what_a_schema_allows_comes_back_as_its_model(tmp_path):
    path = tmp_path / "a.json"
    storage.write_json(path, {"top1": 0.5, "sizes": {"a": 8}})
    assert storage.read_json(path, Stage) == Stage(top1=0.5, sizes={"a": 8})
    path.write_text('{"7": [1, 2]}')
    assert storage.read_json(path, Dict[int, List[int]]) == {7: [1, 2]}


@pytest.mark.parametrize(
    "content, key, part",
    [
        ('{"top1": 5}', "json.schema", "top1: 5 should be less than or equal to 1"),
        ('{"top1": "0.5"}', "json.schema", "top1: '0.5' should be a valid number"),
        ('{"top1": 0.5, "parts": [{"top1": -1}]}', "json.schema", "parts.0.top1: -1 should be"),
        ("{}", "json.schema", "top1 is missing"),
        ('{"top1": 0, "top2": 0}', "json.schema", "top2: no such key"),
        ("[]", "json.schema", "[] should be"),
        ('{"top1": 0, "top1": 1}', "json.syntax", "'top1' is given twice"),
        ('{"top1": NaN}', "json.syntax", "NaN"),
        ('{"top1": 1e999}', "json.syntax", "1e999"),
        ('{"top1": ' + "9" * 9999 + "}", "json.syntax", "a whole number of 9999 digits"),
        ("[" * 100 + "]" * 100, "json.syntax", "more than 50 levels"),
        ("[" * 10**5, "json.syntax", "more than 50 levels"),
        ('{"top1": "\\ud800"}', "json.syntax", "half a surrogate pair"),
        ('{"top1": "\\u0000"}', "json.syntax", "a null"),
        ('{"top1": 0.5', "json.syntax", "not valid JSON"),
        ("", "json.syntax", "not valid JSON"),
        (b"\xff\xfe", "file.encoding", "UTF-8"),
    ],
)
def test_json_that_is_refused(tmp_path, content, key, part):
    path = tmp_path / "a.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    error = mistake(storage.read_json, path, Stage)
    assert error.key == key and str(error).startswith(f"{path}: ") and part in str(error)


def test_files_that_are_none_or_too_long(tmp_path):
    os.mkfifo(tmp_path / "pipe")  # which nobody ever writes to
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "long").write_bytes(b" " * 11)
    for name, key in (
        ("pipe", "file.kind"),
        (".", "file.kind"),
        ("loop", "file.read"),
        ("absent", "file.read"),
        ("n" * 300, "file.read"),
        ("a\0b", "file.read"),
    ):
        assert mistake(storage.read_text, tmp_path / name).key == key, name
    assert mistake(storage.read_text, tmp_path / "long", "shorten it", 10).key == "file.size"
    assert mistake(storage.expanded, "~nosuchuser/x").key == "file.user"


@pytest.mark.slow
@pytest.mark.parametrize(
    "text, part",
    [
        ("a: !!int ''", "'' is not a value of type 'int'"),
        ("a: !!bool maybe", "'maybe' is not a value of type 'bool'"),
        ("a: !!float x", "'x' is not a value of type 'float'"),
        ("a: !!timestamp abc", "timestamp"),
        ("a: !!set [1]", "set"),
        ("a: !!binary abc", "binary"),
        ("a: !!str [1]", "expected a scalar node"),
        ("a: !!map [a, b]", "expected a mapping node"),
        ("a: !!map ab", "expected a mapping node"),
        ("a: !!seq {a: b}", "expected a sequence node"),
        ("a: " + "9" * 5000, "is not a value of type 'int'"),
        ("a: 0b" + "1" * 5000, "is not a value of type 'int'"),
        ("[" * 5000 + "]" * 5000, "levels"),
        ("[" * 60 + "]" * 60, "levels"),
        ("a: &a [*a]", "values"),
        ("a: &a {<<: *a}", "values"),
        ("a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)), "values"),
        (
            "a0: &a0 {x: 1}\n"
            + "".join(f"a{n}: &a{n} {{<<: [{','.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, 12)),
            "values",
        ),
        ('a: "\\ud800"', "half a surrogate pair"),
        ('a: "b\\0c"', "a null"),
        ("? [a]\n: b", "unhashable"),
        ("a: 1\na: 2", "given twice"),
        ("a: *nowhere", "alias"),
        ("a: \x07", "not valid YAML"),
    ],
)
def test_yaml_that_is_refused_at_once(text, part):
    error = mistake(storage.parse_yaml, text, "place")
    assert error.key == "yaml.syntax" and str(error).startswith("place") and part in str(error), error


def test_yaml_is_read_back_as_it_was_written():
    values = {
        "name": "1e-4",
        "z": ["-.5E3", "1e5", "yes", "2020-01-01", "a: b", ""],
        "a": [1e-4, 1.0, 10**20, True, None],
    }
    assert storage.parse_yaml(storage.yaml_text(values), "place") == values
    assert list(storage.parse_yaml(storage.yaml_text(values), "place")) == list(values)


def test_yaml_reads_no_number_to_base_60_or_8():
    text = "[0, -7, +7, 1_000, 0x1F, 0b11, 1., .5, -2.5e3, 1e-4, 2E+6, -.inf, 1:30, 010, 1:30.5, 0o7, 1e, '12']"
    numbers = [0, -7, 7, 1000, 31, 3, 1.0, 0.5, -2500.0, 1e-4, 2e6, -float("inf")]
    found = storage.parse_yaml(text, "place")
    assert found == [*numbers, "1:30", "010", "1:30.5", "0o7", "1e", "12"]
    assert [type(value) for value in found[:12]] == [int] * 6 + [float] * 6
    assert storage.parse_yaml(storage.yaml_text(found), "place") == found


def test_yaml_as_people_expect_it(tmp_path):
    (tmp_path / "a.yaml").write_text("a: &a {b: 1e-4, c: 2020-99-99}\nd: {<<: *a, e: yes}\nf: [*a, *a]\n")
    value = {"b": 1e-4, "c": "2020-99-99"}
    assert storage.read_yaml(tmp_path / "a.yaml") == {"a": value, "d": {**value, "e": True}, "f": [value, value]}
    (tmp_path / "a.yaml").write_bytes(b"#" * (storage.YAML_BYTES + 1))
    assert mistake(storage.read_yaml, tmp_path / "a.yaml").key == "file.size"


# Locks

HOLD = """
import sys
from pathlib import Path
from gcp import storage
with storage.locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""


def holder(folder):
    """A process that holds the lock until it is told something."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(storage.__file__).parents[1],
    )
    return process


@pytest.mark.slow
def test_a_second_process_waits_or_is_refused_and_a_lock_ends_with_its_process(tmp_path):
    first = holder(tmp_path)
    assert first.stdout.readline() == "held\n"
    with pytest.raises(UserError) as caught, storage.locked(tmp_path, wait=False):
        pass
    assert caught.value.key == "file.locked"
    second = holder(tmp_path)
    assert "waiting for another process" in second.stderr.readline()
    first.kill()
    assert second.stdout.readline() == "held\n"
    second.communicate("go")
    first.communicate()
    with storage.locked(tmp_path, wait=False), storage.locked(tmp_path, "other", wait=False):
        pass


def test_a_folder_that_cannot_be_locked(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError) as caught, storage.locked(tmp_path / "file"):
        pass
    assert caught.value.key == "file.write"


def test_json_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.json"
    storage.write_json(path, {"a": 1})
    with pytest.raises(ValueError, match=r"b\[1\] is nan"):
        storage.write_json(path, {"b": [0.0, float("nan")]})
    assert json.loads(path.read_text()) == {"a": 1} and len(list(tmp_path.iterdir())) == 1
