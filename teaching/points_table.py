"""``nbgrader export`` with this plugin: one line a student, with the points for each condition and why, in plain words.

nbgrader's own table has the totals only, and gives a student whose notebook could not be graded the same zero as one
whose notebook earned nothing. Here the column ``status`` tells them apart.
"""

import csv
import io
from pathlib import Path

import nbformat
from nbgrader.api import Gradebook, MissingEntry
from nbgrader.plugins import ExportPlugin


class PointsTable(ExportPlugin):
    """Writes points.csv, or what ``--to`` names."""

    def export(self, gradebook: Gradebook) -> None:
        course = self.parent.coursedir
        rows = []
        for assignment in gradebook.assignments:
            if self.assignment and assignment.name not in self.assignment:
                continue
            handed_in = Path(course.format_path(course.submitted_directory, "*", assignment.name))
            folders = {path.parent.name for path in handed_in.parent.parent.glob(f"*/{handed_in.name}")}
            students = sorted({student.id for student in gradebook.students} | folders)
            for student in students:
                if not self.student or student in map(str, self.student):
                    rows.append(row(gradebook, course, assignment, student))
        columns = [*dict.fromkeys(key for row in rows for key in row if key != "comment"), "comment"]
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        path = Path(self.to or "points.csv")
        path.write_text(text.getvalue(), encoding="utf-8")
        print(f"{path}: {len(rows)} lines, one for each student and assignment")


def row(gradebook: Gradebook, course, assignment, student: str) -> dict:
    """Return the line of a student. Without a graded notebook it has no points, and the status says why."""
    names = [f"{notebook.name}.ipynb" for notebook in assignment.notebooks]
    folders = course.submitted_directory, course.autograded_directory
    submitted, graded = (Path(course.format_path(step, student, assignment.name)) for step in folders)
    line = {"assignment": assignment.name, "student": student, "status": _missing(submitted, graded, names)}
    try:
        submission = gradebook.find_submission(assignment.name, student)
    except MissingEntry:
        submission = None
    if line["status"] is None and submission is None:
        line["status"] = "not graded yet"
    if line["status"] is None:
        return line | _graded(submission, submitted, graded)
    if line["status"] == "not graded yet" and submission is not None:
        line["status"] = "grading stopped: see the log. Most often, a cell ended the kernel or could not be interrupted"
    return line


def _missing(submitted: Path, graded: Path, names: list[str]) -> str | None:
    """Return what keeps a student's notebooks from having points, or None."""
    if not submitted.is_dir():
        return "nothing handed in"
    found = sorted(path.relative_to(submitted).as_posix() for path in submitted.rglob("*.ipynb"))
    for name in names:
        if name not in found:
            return f"no {name}, but {', '.join(found)}: rename or move it, and grade again" if found else f"no {name}"
        try:
            nbformat.read(submitted / name, as_version=4)
        except Exception as error:  # whatever a damaged file raises
            return f"{name} is no notebook ({type(error).__name__})"
        if not (graded / name).is_file():
            return "not graded yet"
    return None


def _graded(submission, submitted: Path, graded: Path) -> dict:
    """Return the points and comments of a submission that was graded."""
    line, comments, missing, changed = {"status": "graded"}, [], [], []
    for notebook in submission.notebooks:
        before, after = (_cells(folder / f"{notebook.name}.ipynb") for folder in (submitted, graded))
        grades = {grade.name: grade for grade in notebook.grades}
        written = {comment.name: comment.comment for comment in notebook.comments if comment.comment}
        locked = {cell.name: cell.source for cell in notebook.notebook.source_cells if cell.locked}
        others = sorted(path.name for path in submitted.glob("*.ipynb") if path.stem != notebook.name)
        comments += [f"Handed in, too, and not looked at: {', '.join(others)}."] if others else []
        for name, cell in after.items():
            if name in grades:
                grade = grades[name]
                read = grade.auto_score is not None or grade.manual_score is not None
                if name not in before and not cell.metadata.nbgrader.locked and grade.manual_score is None:
                    read = False  # what was written may stand in another cell
                line[name] = f"{grade.score:g}" if read else ""
                if not read:
                    line["status"] = "graded, but for what is read by a person"
            comments.append(_said(name, cell))
            if name not in before:
                missing.append(name)
            elif name in written:
                comments.append(f"{name}: {written[name]}")
            elif name in locked and before[name].source != locked[name]:
                changed.append(name)
    comments += [f"Cells that were missing, and were added again: {', '.join(missing)}."] if missing else []
    comments += [f"Cells that had been changed, and were put back: {', '.join(changed)}."] if changed else []
    if submission.total_seconds_late:
        line["hours_late"] = f"{submission.total_seconds_late / 3600:.1f}"
    penalty = {"late_penalty": f"{late:g}"} if (late := submission.late_submission_penalty) else {}
    total, comment = max(0, submission.score - (late or 0)), " ".join(filter(None, comments))
    return line | penalty | {"total": f"{total:g}", "of": f"{submission.max_score:g}", "comment": comment}


def _cells(path: Path) -> dict:
    """Return the cells of a notebook that nbgrader knows, by their names, in their order."""
    cells = nbformat.read(path, as_version=4).cells
    named = [(cell.metadata.get("nbgrader", {}).get("grade_id"), cell) for cell in cells]
    return {name: cell for name, cell in named if name}


def _said(name: str, cell) -> str:
    """Return what a cell says of its condition, in its last line, or by its error."""
    for output in cell.get("outputs", []):
        if output.output_type == "error":
            return f"{name}: stops with {output.ename}: {' '.join(output.evalue.split())}"
    printed = "".join(output.text for output in cell.get("outputs", []) if output.output_type == "stream")
    last = printed.strip().rpartition("\n")[2]
    return last if cell.metadata.nbgrader.get("grade") and ": " in last else ""
