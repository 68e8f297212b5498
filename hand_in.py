"""Grades what is handed in, in a process of its own: what the locked cells of notebook 11 call.

Only the network and the recipe go into that process. The course's modules, the data and the limits of the task are
read anew there, whatever was done to them in the notebook; and the process can be ended if it does not end by itself.
"""

import codecs
import contextlib
import io
import json
import linecache
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
import types
from collections import ChainMap
from pathlib import Path
from typing import ClassVar

import cloudpickle

START = "import sys, torch; sys.path[0] = sys.argv[1]; import hand_in; hand_in._grade(*sys.argv[2:])"
CONDITIONS = ("runs", "parameters", "epochs", "accuracy", "last epochs")  # those of grade, which needs PyTorch
MOST_PRINTED = 50_000  # characters
GRACE = 60  # seconds, for starting and for stopping by itself


Graded = dict[str, tuple[float, str]]  # of each condition: the share of its points, from 0 to 1, and why


def points(names: dict, condition: str, worth: float, task: str) -> None:
    """Print what became of a condition, and show its points as what the cell returns, which nbgrader reads.

    The first cell that asks trains; the others find what it gave, in whatever order they come. The cell of the first
    condition trains again when it is run again.

    Args:
        names: the notebook's ``globals()``; ``MyNetwork`` and ``recipe`` are taken from them.
        condition: one of ``grade.CONDITIONS``.
        worth: the points for all of it.
        task: one of the names in ``tasks.json``.
    """
    network, recipe = names.get("MyNetwork"), names.get("recipe")
    # In sys, because each cell reads this module anew, and a variable of the notebook is soon used for something else
    kept = getattr(sys, "handed_in", None)
    same = kept and kept["network"] is network and kept["recipe"] is recipe and kept["task"] == task
    if not same or (condition == CONDITIONS[0] and condition in kept["shown"]):
        kept = {"network": network, "recipe": recipe, "task": task, "shown": set()}
        kept["graded"] = hand_in(network, recipe, task)
        sys.handed_in = kept
    kept["shown"].add(condition)
    share, comment = kept["graded"][condition]
    print(f"{condition}: {' '.join(comment.split())}")
    got = round(share * worth, 1)
    sys.displayhook(int(got) if got == int(got) else got)


def hand_in(network, recipe, task: str) -> Graded:
    """Train the network on all training images, evaluate it on the test images, and return the conditions."""
    # While a class is graded, the folder that was handed out: no student has written into that one.
    handouts = os.environ.get("MNIST_HANDOUTS")
    course = Path(handouts, task) if handouts else Path(__file__).resolve().parent
    limit = 60 * json.loads((course / "tasks.json").read_text(encoding="utf-8"))[task]["minutes"]
    # The lines of the cells, which are in no file: complaints show them.
    cells = {name: entry[2] for name, entry in linecache.cache.items() if len(entry) == 4 and not os.path.exists(name)}
    with tempfile.TemporaryDirectory(prefix="hand-in-") as folder:
        result = Path(folder) / "result.json"
        try:
            handed_in = io.BytesIO()
            _Pickler(handed_in).dump((network, recipe, cells))
        except Exception as error:  # whatever it cannot take along
            return _nothing(
                "What MyNetwork and recipe use cannot be sent to the program that gives the points "
                f"({type(error).__name__}: {error}). Use no open files and no generators in them."
            )
        (Path(folder) / "handed-in.pickle").write_bytes(handed_in.getvalue())
        command = [sys.executable, "-c", START, str(course), task, folder, os.getcwd()]
        ended, last = _run(command, folder, limit + GRACE)
        graded = json.loads(result.read_text(encoding="utf-8")) if result.exists() else _nothing("")
        if (Path(folder) / "graded").exists():
            return graded
    if ended is None:
        why = f"Not finished after {limit / 60:g} minutes, and it could not be interrupted: a loop without an end?"
    else:
        how = f"by signal {-ended}" if ended < 0 else f"with status {ended}"
        why = f"The program ended {how} before it was graded (os._exit, too little memory, a fault in a library)."
    return graded | {"runs": (0.0, f"{why} Its last line: {last}" if last else why)}


def _reduce_code(code: types.CodeType) -> tuple:
    """Pickle what a function does as cloudpickle does, but with the name of its cell, so that its lines are found."""
    make, parts = cloudpickle.Pickler.dispatch_table[types.CodeType](code)
    return make, tuple(code.co_filename if part == "<dynamic-code>" else part for part in parts)


class _Pickler(cloudpickle.Pickler):
    dispatch_table: ClassVar = ChainMap({types.CodeType: _reduce_code}, cloudpickle.Pickler.dispatch_table)


def _nothing(comment: str) -> Graded:
    """Return that no condition could be judged, and why."""
    return {name: (0.0, comment if name == "runs" else 'Not known: see what "runs" says.') for name in CONDITIONS}


def _run(command: list[str], folder: str, limit: float) -> tuple[int | None, str]:
    """Run a program, and show what it prints while it runs.

    Returns its exit status, or None if it had to be ended, and the last line that it printed.
    """
    # The record is not saved: what was handed in is in the notebook. And where a cell is saved, it shows no bars.
    env = {key: value for key, value in os.environ.items() if key != "NBGRADER_EXECUTION"}
    env |= {"MNIST_RESULTS": folder, "MPLBACKEND": "Agg", "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8:replace"}
    if "NBGRADER_EXECUTION" in os.environ:
        env["TQDM_DISABLE"] = "1"
    # In its folder, so that a file of the student's that is called random.py does not take the place of Python's
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    arrived, end, printed = queue.SimpleQueue(), time.monotonic() + limit, ""
    threading.Thread(target=_read, args=(process.stdout, arrived), daemon=True).start()
    try:
        while (ended := process.poll()) is None and time.monotonic() < end:
            time.sleep(0.1)
            printed += _show(arrived)
    finally:
        _end(process)
        time.sleep(0.1)  # for what it has printed last
        printed += _show(arrived)
    return ended, printed.strip().rpartition("\n")[2]


def _read(stream, arrived: queue.SimpleQueue) -> None:
    """Take what a program prints, so that it need not wait, and keep the first part of it."""
    decoder, length, kept = codecs.getincrementaldecoder("utf-8")("replace"), 0, "\n"
    while chunk := stream.read1(4096):
        text = decoder.decode(chunk)
        if length < MOST_PRINTED:
            arrived.put(kept := text)
        length += len(chunk)
    if not kept.endswith("\n"):
        arrived.put("\n")


def _show(arrived: queue.SimpleQueue) -> str:
    """Print what has arrived, and return it."""
    text = "".join(arrived.get() for _ in range(arrived.qsize()))
    print(text, end="", flush=True)
    return text


def _end(process: subprocess.Popen) -> None:
    """End a program and what it has started."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.wait()


def _grade(task: str, folder: str, place: str) -> None:
    """Grade what is in the folder, in the new process; ``place`` is the notebook's folder, for its own modules."""
    from files import write_whole
    from grade import TASKS, grade
    from mnist import load_mnist

    def keep(graded: Graded) -> None:
        write_whole({Path(folder) / "result.json": json.dumps(graded).encode()})

    os.chdir(place)
    sys.path.append(place)
    limits = TASKS[task]
    data = load_mnist("digits" if limits.get("images") == "digits" else None)
    try:
        network, recipe, cells = cloudpickle.loads((Path(folder) / "handed-in.pickle").read_bytes())
    except Exception as error:
        graded = _nothing(
            f"What MyNetwork and recipe use cannot be loaded where the points are given ({type(error).__name__}: "
            f"{error}). Is a package missing there, or a file of your own?"
        )
    else:
        linecache.cache |= {name: (sum(map(len, lines)), None, lines, name) for name, lines in cells.items()}
        graded, _, _ = grade(network, recipe, data, **limits, handed_in=keep)
    keep(graded)
    write_whole({Path(folder) / "graded": b""})
