"""How scripts end: a mistake, a signal, a closed or full output; and the types of their options."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from mutations import tried

from gcp import command
from gcp.errors import UserError

ROOT = Path(command.__file__).parents[1]
PLAIN = {**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}  # a system that knows ASCII only


def script(text, *shell, arguments=(), **how):
    """A script whose `run(argv)` does what `text` says, with these arguments."""
    lines = "\n".join(f"    {line}" for line in text.splitlines())
    code = f"import sys, time\nfrom gcp import command\ndef run(argv):\n{lines}\ncommand.main(run)\n"
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **how}
    return subprocess.Popen([*shell, sys.executable, "-c", code, *arguments], text=True, cwd=ROOT, **how)


def ended(process, number):
    """The exit status of a process that gets a signal once it is ready, and what it wrote on stderr."""
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    _, err = process.communicate(timeout=20)
    return process.returncode, err


def status(capsys, error):
    def fail(argv):
        raise error

    code = command.status(fail, [])
    return code, capsys.readouterr().err


# Mistakes


@pytest.mark.parametrize(
    "error, code, said",
    [
        (UserError("a.yaml: seed: 'x'\n  is no number"), 2, "error: a.yaml: seed: 'x' is no number\n"),
        (KeyboardInterrupt(), 130, "\ninterrupted: run the same command again to resume\n"),
        (command.Told(15), 143, "\ninterrupted: run the same command again to resume\n"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "a" * 9), 2, "error: aaaaaaaaa: File name too long; "),
        (OSError(errno.ELOOP, "Too many levels of symbolic links", b"b"), 2, "error: b: Too many levels"),
        (OSError("nothing more is known"), 2, "error: a file or connection: nothing more is known; "),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), 1, "error: not enough memory"),
        (MemoryError("9 TiB"), 1, "error: not enough memory (9 TiB)"),
        (RecursionError("too deep"), 1, "error: something is nested too deeply"),
        (UnicodeEncodeError("ascii", "\xe9", 0, 1, "no"), 2, "error: this system's encoding"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "no"), 2, "error: a file that should be UTF-8 text"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 141, ""),
        (SystemExit(7), 7, ""),
        (SystemExit(), 0, ""),
    ],
)
def test_whatever_is_no_bug_ends_in_one_line(capsys, error, code, said):
    assert status(capsys, error)[0] == code
    line = status(capsys, error)[1]
    assert line.startswith(said) and bool(line) == bool(said) and "\n" not in line.strip("\n")


def test_what_breaks_while_a_signal_is_answered_is_no_bug(capsys):
    def fail(argv):
        try:
            raise KeyboardInterrupt
        finally:
            raise ImportError("half a module")

    assert command.status(fail, []) == 130 and "resume" in capsys.readouterr().err


def test_a_bug_is_shown():
    with pytest.raises(ZeroDivisionError):
        command.status(lambda argv: 1 / 0, [])


EVALUATE = ["evaluate.py", "resnet18_v1b", "--pretrained", "--data"]


@pytest.mark.parametrize("place", ["n" * 300, "a/" * 3000, "~nosuchuser/x", "loop", "file/x", "a\0b", "\udcff\udcfe"])
@pytest.mark.parametrize(
    "words",
    [["describe.py"], ["evaluate.py", "--data", "digits"], [*EVALUATE, "folder", "--root"], ["report.py"]],
    ids=["network", "evaluated", "data", "records"],
)
def test_a_place_that_no_file_can_be_at_is_one_line(words, place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    code, out, err = tried([*words, place])
    assert (code, out) == (2, "") and err.startswith("error: ") and err.count("\n") == 1


@pytest.mark.parametrize(
    "words", [[*EVALUATE, "folder"], [*EVALUATE, "imagenet"], [*EVALUATE, "digits", "--root", "a"]]
)
def test_data_options_that_do_not_fit_are_said_as_they_were_given(words):
    """Not as a configuration's keys, and not as pydantic says it."""
    code, out, err = tried(words)
    assert (code, out) == (2, "") and err.startswith("error: ") and err.count("\n") == 1
    assert "--root" in err and not any(part in err for part in ("{", "Value error", "data.root", "pydantic"))


# Signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_script_with_a_line_and_its_cleaning_up(number, tmp_path):
    process = script(f"""
try:
    print("ready", flush=True)
    time.sleep(60)
finally:
    print("impatient", flush=True)
    sys.stdin.readline()
    open({str(tmp_path / "clean")!r}, "w")""", stdin=subprocess.PIPE)  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert process.stdout.readline() == "impatient\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate("go\n", timeout=20)
    assert (process.returncode, err) == (128 + number, "\ninterrupted: run the same command again to resume\n")
    assert (tmp_path / "clean").exists()


def test_a_signal_that_nobody_heeds_ends_a_script_too():
    process = script(
        "command.END_S = 0.1\ntry:\n    print('ready', flush=True)\n    time.sleep(60)\n"
        "except KeyboardInterrupt:\n    time.sleep(60)"
    )
    code, err = ended(process, signal.SIGTERM)
    assert code == 143 and "Traceback" not in err


def test_what_a_library_makes_of_a_signal_is_no_bug():
    process = script(
        "try:\n    print('ready', flush=True)\n    time.sleep(60)\n"
        "except KeyboardInterrupt:\n    pass\nraise ImportError('half a module')"
    )
    assert ended(process, signal.SIGTERM) == (143, "\ninterrupted: run the same command again to resume\n")


def test_a_signal_in_a_destructor_makes_no_noise():
    process = script(
        "command.END_S = 0.1\nclass A:\n    def __del__(self):\n        print('ready', flush=True)\n"
        "        time.sleep(60)\na = A()\ndel a\ntime.sleep(60)"
    )
    code, err = ended(process, signal.SIGINT)
    assert code == 130 and "Traceback" not in err and "ignored" not in err


# Output


@pytest.mark.parametrize("text", ["print('x')", "print('x' * 10**6)", "print('x', flush=True)"])
def test_a_closed_pipe_ends_quietly(text):
    process = script(f"sys.stdin.readline()\n{text}", stdin=subprocess.PIPE)
    process.stdout.close()
    process.stdin.write("go\n")
    process.stdin.close()
    assert process.wait(20) == 141 and process.stderr.read() == ""
    process.stderr.close()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
@pytest.mark.parametrize("text", ["print('x')", "print('x' * 10**6)"])
def test_a_full_output_is_said_once(text):
    with open("/dev/full", "w") as full:
        process = script(text, stdout=full)
        _, err = process.communicate(timeout=20)
    assert process.returncode == 2 and err.startswith("error: the output: ") and err.count("\n") == 1


def test_a_file_never_takes_the_place_of_a_closed_stream(tmp_path):
    path = tmp_path / "a"
    for close in (">&-", "2>&-", "<&- >&- 2>&-"):
        text = f"with open({str(path)!r}, 'w') as file:\n    print(file.fileno())\n    file.write('whole')"
        process = script(f"{text}\n    import os\n    os.write(1, b'1')\n    os.write(2, b'2')", "sh", "-c",
                         f'exec "$0" "$@" {close}')  # fmt: skip
        process.communicate(timeout=20)
        assert process.returncode == 0 and path.read_text() == "whole"


def test_any_text_can_be_printed_in_any_locale():
    out, err = script("print('\\xe9 \\udcff'); raise command.UserError('\\xe9')", env=PLAIN).communicate(timeout=20)
    assert (out, err) == ("\\xe9 \\udcff\n", "error: \\xe9\n")


@pytest.mark.slow
def test_in_the_c_locale_files_are_utf8_and_their_names_whatever_they_are(tmp_path):
    text = "scale: smoke\noutput: \xe9\nmodel: {name: b}\ndata: {name: digits}\ntrain: {epochs: 1}\nname: a\n"
    paths = [os.path.join(os.fsencode(tmp_path), name) for name in (b"caf\xc3\xa9", b"\xff\xfe", b"\xff\xfe-absent")]
    for path in paths[:2]:
        Path(os.fsdecode(path)).write_text(text, encoding="utf-8")
    load = "from gcp.experiment import config\nfor path in argv:\n    print(config.load(path).output)"
    with script(load, arguments=paths, env=PLAIN) as process:
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (2, 2 * "\\xe9\n")
    assert err.startswith("error: ") and err.count("\n") == 1 and err.isascii()


# Options


@pytest.mark.parametrize(
    "kind, good, bad",
    [
        (command.positive(int), {"7": 7}, ["0", "-1", "1.5", "x", "9" * 5000, "1000001", "\u00b2", "1_0"]),
        (command.positive(float), {"7": 7, ".5": 0.5}, ["0", "-0.1", "nan", "inf", "x", "1e99", "9" * 5000]),
        (command.natural, {"0": 0}, ["-1", "1.5", "x", "9999999999", "9" * 5000]),
        (command.threads, {"0": 0, "64": 64}, ["1025"]),
        (command.shape, {"3,8, 9": (3, 8, 9)}, ["3,8", "0,8,8", "3,99999999999999999999,3", "3,9999,3", "\u00b2,8,8"]),
        (command.seeds, {"0,1": [0, 1], "2147483647": [2**31 - 1]}, ["", "0,", "0,0", "2147483648", "9" * 5000]),
    ],
)
def test_numbers_of_a_command_line(kind, good, bad):
    parser = command.Parser(prog="p")
    parser.add_argument("--n", type=kind)
    for text, value in good.items():
        assert parser.parse_args([f"--n={text}"]).n == value
    for text in bad:
        with pytest.raises(UserError, match="argument --n: .* must be ") as caught:
            parser.parse_args([f"--n={text}"])
        assert caught.value.key == "option.value" and len(str(caught.value)) < 250


def test_a_long_message_keeps_its_beginning_and_its_end():
    line = str(UserError("file.json: " + "x" * 10**6 + " is not there; make it"))
    assert line.startswith("file.json: xx") and line.endswith("xx is not there; make it") and len(line) < 1500
