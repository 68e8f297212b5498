"""Grade all submissions of a task, several at a time, each in a folder of its own, and shut in if asked.

    python grade_all.py 8k --jobs 4

nbgrader itself grades one after another, in the folder of the class, where a student's code can reach the gradebook and
what the others handed in. Here each submission is first executed in a copy of the class that holds nothing else. Then
``nbgrader autograde --no-execute`` reads the points from what was executed: in seconds, and it runs nobody's code.

``--within`` is the beginning of a command that shuts the rest of it in, such as a container: notebooks/teaching.md has
two. In it, {folder} is the copy, {class} is this folder, and {data} is that with MNIST.
"""

import argparse
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from nbgrader.api import Gradebook

HERE, FAILED = Path(__file__).resolve().parent, "NOT EXECUTED"
DATA = os.environ.get("MNIST_ROOT") or json.loads((HERE / "class.json").read_text(encoding="utf-8"))["data"] or ""
# One thread for each job: several would wait for each other. And the programs that were installed with this Python
PROGRAMS = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "MNIST_ROOT": DATA, "PATH": PROGRAMS}


def nbgrader(*arguments: str) -> int:
    """Run nbgrader in the class's folder, and return its exit status."""
    return subprocess.run(
        ["nbgrader", *arguments, "--log-level=WARN"], cwd=HERE, env=ENVIRONMENT, check=False
    ).returncode


def execute(task: str, student: str, within: str) -> str:
    """Let nbgrader execute one submission in a copy of the class, keep the notebook, and return what became of it."""
    started, log, kept = time.monotonic(), HERE / "logs" / task / f"{student}.log", HERE / "executed" / student / task
    log.parent.mkdir(parents=True, exist_ok=True)
    for old in (kept, HERE / "autograded" / student / task):  # whatever comes now, those are no longer the points
        shutil.rmtree(old, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="class-") as name:
        folder = Path(name).resolve()
        for path in (*HERE.glob("*.py"), HERE / "class.json"):
            shutil.copy(path, folder)
        shutil.copy(HERE / "build" / f"{task}.db", folder / "gradebook.db")
        for part in (f"source/{task}", f"submitted/{student}/{task}"):
            shutil.copytree(HERE / part, folder / part)
        places = {"folder": folder, "data": DATA, "class": HERE}
        shut_in = [part.format(**places) for part in shlex.split(within)]
        with log.open("w", encoding="utf-8") as out:
            command = [*shut_in, "nbgrader", "autograde", task, f"--student={student}"]
            ended = subprocess.run(command, cwd=folder, env=ENVIRONMENT, stdout=out, stderr=out, check=False)
        if ended.returncode == 0 and (folder / "autograded" / student / task).is_dir():
            shutil.copytree(folder / "autograded" / student / task, kept)
            log.with_suffix(".sha256").write_text(contents(task, student))
            return f"executed in {time.monotonic() - started:.0f} s"
    return f"{FAILED}: see {log.relative_to(HERE)}"


def contents(task: str, student: str) -> str:
    """Return a text that two hand-ins of a student share only if they are the same, whatever their dates."""
    folder, digest = HERE / "submitted" / student / task, hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(folder)} {path.stat().st_size} ".encode() + path.read_bytes())
    return digest.hexdigest()


def is_new(task: str, student: str) -> bool:
    """Return whether a submission is another one than the one that was executed, if any was."""
    mark = HERE / "logs" / task / f"{student}.sha256"
    executed = (HERE / "executed" / student / task).is_dir() and mark.is_file()
    return not executed or mark.read_text() != contents(task, student)


def main(task: str, jobs: int, within: str, force: bool, only: str | None) -> int:
    if jobs < 1:
        raise SystemExit(f"Expected 1 or more jobs, got {jobs}.")
    (HERE / "build").mkdir(exist_ok=True)
    empty = HERE / "build" / f"{task}.db"  # a gradebook without students
    empty.unlink(missing_ok=True)
    release = "--CourseDirectory.release_directory=build/release"
    if failed := nbgrader("generate_assignment", task, "--force", release, f"--db=sqlite:///{empty}"):
        return failed
    students = sorted(path.parent.name for path in HERE.glob(f"submitted/*/{task}"))
    if only and only not in students:
        raise SystemExit(f"There is no folder submitted/{only}/{task}.")
    chosen = [only] if only else students
    waiting, failed = [student for student in chosen if force or is_new(task, student)], []
    print(f"{len(waiting)} of {len(students)} submissions are to be executed, {jobs} at a time.", flush=True)
    pool = ThreadPoolExecutor(jobs)
    running = {pool.submit(execute, task, student, within): student for student in waiting}
    try:
        for number, job in enumerate(as_completed(running), start=1):
            problem = job.exception()
            said = f"{FAILED}: {problem}" if problem else job.result()
            failed += [running[job]] if said.startswith(FAILED) else []
            print(f"{number:3d}  {running[job]}: {said}", flush=True)
    finally:  # after Ctrl-C, no further one begins
        pool.shutdown(cancel_futures=True)
    with Gradebook(f"sqlite:///{HERE / 'gradebook.db'}") as gradebook:
        for student in students:  # so that the table tells those that failed from those that were not tried
            gradebook.update_or_create_student(student)
            gradebook.update_or_create_submission(task, student)
    read = ["--no-execute", "--CourseDirectory.submitted_directory=executed"]
    if list(HERE.glob(f"executed/*/{task}")) and (ended := nbgrader("autograde", task, *read)):
        return ended
    if failed:
        print(f"{len(failed)} of {len(waiting)} were not executed: {', '.join(sorted(failed))}.")
    return int(bool(failed))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("task", help="the task, as it was handed out")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="how many at a time; default: the cores")
    parser.add_argument("--within", default="", help="the beginning of a command that shuts the rest of it in")
    parser.add_argument("--force", action="store_true", help="also those that were executed before")
    parser.add_argument("--student", help="this one alone")
    asked = parser.parse_args()
    if not (HERE / "source" / asked.task).is_dir():
        raise SystemExit(f"{asked.task} was not handed out: {', '.join(p.name for p in HERE.glob('source/*'))} was.")
    raise SystemExit(main(asked.task, asked.jobs, asked.within, asked.force, asked.student))
