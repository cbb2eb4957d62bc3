"""The results' page: what is in it, what is wrong with records, text that looks like HTML, and the live view."""

from __future__ import annotations

import importlib.util
import json
import re
import runpy
import shutil
import signal
import socket
import struct
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from finished import finished, saved
from test_experiment import finish, script

from gcp import command
from gcp.experiment import record as records
from gcp.report import live, page
from gcp.storage import now

REPO = Path(__file__).parents[1]
REFERENCE = REPO / "results" / "reference"
EVIL = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>"


def data_of(text: str) -> dict:
    """What a page holds, as its own script reads it."""
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1])


def report(capsys, *words) -> tuple:
    """Exit status and stderr of scripts/report.py, in this process."""
    how = importlib.util.spec_from_file_location("report_script", REPO / "scripts" / "report.py")
    module = importlib.util.module_from_spec(how)
    how.loader.exec_module(module)
    return command.status(module.run, [str(word) for word in words]), capsys.readouterr().err


def change(path: Path, **values) -> None:
    content = json.loads(path.read_text())
    for key, value in values.items():
        *places, last = key.split("__")
        at = content
        for place in places:
            at = at[place]
        at[last] = value
    path.write_text(json.dumps(content))


@pytest.fixture
def results(tmp_path):
    """Three seeds of one experiment, as records of networks that nobody trained."""
    return saved(tmp_path / "results", [finished(seed=seed, top1=0.9 + 0.01 * seed) for seed in range(3)])


@pytest.mark.slow
def test_a_page_has_a_row_for_each_run_and_one_for_each_dense_network(results):
    data = data_of(page.page(page.contents(results)))
    pruned = [row for row in data["rows"] if row["layer"] == "pruned"]
    assert sorted(row["seed"] for row in pruned) == [0, 1, 2]
    found = {run.record.fingerprint: run for run in records.load_records(results)}
    assert len([row for row in data["rows"] if row["layer"] == "dense"]) == len(
        {(run.record.seed, run.record.stages.dense.top1) for run in found.values()}
    )
    for row in pruned:
        record = found[row["id"]].record
        assert row["top1"] == pytest.approx(100 * record.stages.final.top1)
        assert row["macs"] == pytest.approx(record.stages.final.macs / 1e6)
        assert row["macs_kept"] == pytest.approx(100 * record.macs_kept)
        assert row["images_total"] == pytest.approx(record.images_total / 1e6)
    assert {row["layer"] for row in page.contents(results, REFERENCE)["rows"]} == {"pruned", "dense", "published"}


@pytest.mark.slow
def test_text_of_a_record_cannot_end_the_script_that_it_stands_in(results):
    path = next(results.rglob("record.json"))
    change(path, model=EVIL, device__cpu=EVIL)
    text = page.page(page.contents(results))
    assert "<img src=x" not in text and text.count("</script") == 3
    assert EVIL in {row["model"] for row in data_of(text)["rows"]}


@pytest.mark.slow
def test_damaged_records_are_named_and_the_rest_is_shown(results, capsys):
    first, second, _ = sorted(results.rglob("record.json"))
    first.write_text("{")
    change(second, method="a method of another version")
    code, err = report(capsys, results, "--html", results / "page.html")
    assert code == 0
    assert str(first) in err and str(second) in err
    data = data_of((results / "page.html").read_text())
    assert len(data["problems"]) == 2 and len([row for row in data["rows"] if row["layer"] == "pruned"]) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"config__model": None},
        {"config__prune": {}},
        {"stages__dense__macs": 0},
        {"method": "another"},
        {"config__finetune": 3},
        {"config__prune": {"budget": None, "gcp": {}}},
        {"config__data": {}},
        {"config__data__input": []},
    ],
)
def test_what_this_version_cannot_report_is_a_problem_and_no_traceback(results, capsys, changes):
    path = sorted(results.rglob("record.json"))[0]
    change(path, **changes)
    found = page.contents(results)
    assert [str(path) in problem for problem in found["problems"]] == [True]
    assert len([row for row in found["rows"] if row["layer"] == "pruned"]) == 2
    code, err = report(capsys, results)
    assert code == 2 and str(path) in err and "Traceback" not in err and err.count("\n") == 1


def test_a_run_under_way_with_an_odd_configuration_is_shown(results):
    folder = results / "odd"
    folder.mkdir()
    (folder / "config.yaml").write_text("finetune: 3\n")
    event = {"event": "epoch", "time": now(), "stage": "final", "epoch": 1}
    (folder / "log.jsonl").write_text(json.dumps(event) + "\n")
    (shown,) = page.under_way(results)
    assert shown["folder"] == str(folder) and shown["of_epochs"] is None


def test_a_record_that_is_written_while_the_page_is_read_is_shown_next(results, monkeypatch):
    path, contents = sorted(results.rglob("record.json"))[0], page.contents
    text = path.read_text()
    path.unlink()

    def slow(*args):
        found = contents(*args)
        path.write_text(text)
        return found

    monkeypatch.setattr(page, "contents", slow)
    watched = live.Watched(results, REFERENCE)
    assert len([row for row in watched()["rows"] if row["layer"] == "pruned"]) == 3


def test_two_results_of_one_fingerprint_are_both_shown_and_flagged_and_a_copy_is_not(results):
    path = next(results.rglob("record.json"))
    shutil.copytree(path.parent, results / "copy")
    assert not page.contents(results)["problems"]
    change(results / "copy" / "record.json", stages__final__top1=0.125)
    data = page.contents(results)
    assert len([row for row in data["rows"] if row.get("differs")]) == 2
    assert len({row["id"] for row in data["rows"]}) == len(data["rows"])
    assert {str(path.parent), str(results / "copy")} == {problem.split(": ")[0] for problem in data["problems"]}


@pytest.mark.parametrize(
    "words, key",
    [
        (["{absent}", "--html", "{page}"], "not a folder"),
        (["{empty}", "--html", "{page}"], "no record"),
        (["{results}", "--html", "{page}", "--watch"], "--watch"),
        (["{results}", "--html", "{page}", "--paper"], "--paper"),
        (["{results}", "--port", "80"], "--port"),
    ],
)
def test_bad_input_is_one_line(results, tmp_path, capsys, words, key):
    (tmp_path / "empty").mkdir()
    names = {name: tmp_path / name for name in ("absent", "empty", "page", "results")}
    code, err = report(capsys, *(word.format(**names) for word in words))
    assert (code, err.count("\n"), "Traceback" in err) == (2, 1, False)
    assert key in err and not (tmp_path / "page").exists()


def test_sub_folders_can_be_left_out(results):
    saved(results / "smoke", [finished(seed=9)])
    assert {row["seed"] for row in page.contents(results)["rows"]} == {0, 1, 2, 9}
    assert {row["seed"] for row in page.contents(results, without=["smoke"])["rows"]} == {0, 1, 2}


def test_lanes_of_ties_do_not_cross():
    ties = {"a": [0, 2, 9], "b": [1, 3], "c": [4, 5], "d": [9, 11], "e": [10, 12]}
    lanes = {tie["group"]: tie["lane"] for tie in page._lanes(ties)}
    assert lanes == {"a": 0, "b": 1, "c": 1, "d": 1, "e": 0}


def test_a_long_training_curve_keeps_its_ends(tmp_path):
    rows = [{"event": "epoch", "stage": "final", "epoch": k, "training_loss": 1 / k} for k in range(1, 1001)]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    curve = page._curves(tmp_path / "log.jsonl")
    assert len(curve) <= page.MOST_POINTS + 1
    assert (curve[0]["epoch"], curve[-1]["epoch"]) == (1, 1000)


@pytest.fixture
def served(results, monkeypatch):
    """The address of the live page, without the plots' script, which takes three seconds to put together."""
    monkeypatch.setattr(page, "script", lambda: "")
    serving = live.server(results, REFERENCE, 0)
    threading.Thread(target=serving.serve_forever, args=(0.05,), daemon=True).start()
    yield f"http://127.0.0.1:{serving.server_port}"
    serving.shutdown()
    serving.server_close()


def fetch(address: str, **headers: str) -> str:
    with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=60) as answer:
        return answer.read().decode()


def test_the_live_page_shows_a_new_record_and_a_run_under_way(results, served):
    def pruned() -> list:
        return [row for row in json.loads(fetch(f"{served}/data.json"))["rows"] if row["layer"] == "pruned"]

    assert len(pruned()) == 3 and data_of(fetch(served + "/"))["rows"]
    saved(results / "more", [finished(seed=3)])
    assert len(pruned()) == 4
    run = results / "gcp-seed9-000000000000"
    run.mkdir()
    (run / "config.yaml").write_text("finetune: {epochs: 8}\n")
    event = {"event": "epoch", "stage": "final", "epoch": 2.5, "step": 10, "training_loss": 0.5, "time": now()}
    (run / "log.jsonl").write_text(json.dumps(event) + "\n")
    (under_way,) = json.loads(fetch(f"{served}/data.json"))["under_way"]
    assert (under_way["epoch"], under_way["of_epochs"], under_way["training_loss"]) == (2.5, 8, 0.5)
    assert time.time() - under_way["changed"] < 600


def test_the_live_page_outlives_its_readers_and_its_folder(results, served, monkeypatch, capfd):
    monkeypatch.setattr(page, "page", lambda *_: "x" * 10**7)
    port, before = int(served.rpartition(":")[2]), threading.active_count()
    with socket.create_connection(("127.0.0.1", port)) as reader:
        reader.sendall(f"GET / HTTP/1.1\r\nHost: localhost:{port}\r\n\r\n".encode())
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closes at once
    until = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < until:
        time.sleep(0.01)
    results.rename(results.with_name("elsewhere"))
    with pytest.raises(urllib.error.HTTPError) as gone:
        fetch(f"{served}/data.json")
    assert gone.value.code == 503 and gone.value.read().decode().startswith(f"{results}: not a folder")
    gone.value.close()
    assert capfd.readouterr().err == ""


@pytest.mark.slow
def test_the_live_page_ends_with_a_line(results):
    process = script("report.py", results, "--watch", "--port", "0")
    address = process.stderr.readline().split()[0]
    assert data_of(fetch(address))["rows"]
    process.send_signal(signal.SIGINT)
    code, _, err = finish(process)
    assert (code, err.count("\n")) == (0, 1) and "stopped" in err


def test_the_live_page_answers_to_this_machine_only_and_serves_no_files(served):
    for path, headers, code in (
        ("/", {"Host": "results.example.com"}, 403),
        ("/data.json", {"Host": "results.example.com"}, 403),
        ("/../../etc/passwd", {}, 404),
        ("/record.json", {}, 404),
    ):
        with pytest.raises(urllib.error.HTTPError) as refused:
            fetch(served + path, **headers)
        assert refused.value.code == code
        refused.value.close()


def test_the_live_page_can_have_the_port_that_browsers_leave_out(results, monkeypatch):
    monkeypatch.setattr(page, "script", lambda: "")
    with live.server(results, REFERENCE, 0) as serving:
        address, serving.server_port = f"http://127.0.0.1:{serving.server_port}/data.json", 80
        threading.Thread(target=serving.serve_forever, args=(0.05,), daemon=True).start()
        assert json.loads(fetch(address, Host="localhost"))["rows"]
        with pytest.raises(urllib.error.HTTPError, match="403") as refused:
            fetch(address, Host="results.example.com")
        refused.value.close()
        serving.shutdown()


@pytest.mark.slow
def test_the_checked_in_page_shows_the_checked_in_records():
    data = data_of((REPO / "results" / "page.html").read_text(encoding="utf-8"))
    shown = {row["id"]: row["top1"] for row in data["rows"] if row["layer"] == "pruned"}
    not_kept = runpy.run_path(str(REPO / "scripts" / "docs.py"))["NOT_KEPT"]
    known = {run.record.fingerprint: run.record for run in records.load_readable(REPO / "results", not_kept)[0]}
    wanted = {key for key, record in known.items() if record.method != "none"}
    assert set(shown) == wanted
    assert all(shown[key] == pytest.approx(100 * known[key].stages.final.top1) for key in wanted)
