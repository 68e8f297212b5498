"""Puts the cells with points back where a submission lacks them; nbgrader_config.py lets ``autograde`` use it.

nbgrader's own ``OverwriteCells.add_missing_cells`` stops with an error if the cell before is missing, too, as in a
notebook into which the code was copied.
"""

import nbformat
from nbgrader.api import Gradebook
from nbgrader.preprocessors import NbGraderPreprocessor
from nbgrader.utils import is_grade, is_locked, is_solution


class AddMissingCells(NbGraderPreprocessor):
    """Adds the missing cells at the end, in their order."""

    def preprocess(self, nb, resources):
        of = resources["nbgrader"]
        for cell in nb.cells:  # a cell that was split has its name twice, and DeduplicateIds leaves one without any
            if not (is_grade(cell) or is_solution(cell) or is_locked(cell)):
                cell.metadata.pop("nbgrader", None)
        there = {cell.metadata.nbgrader["grade_id"] for cell in nb.cells if "nbgrader" in cell.metadata}
        with Gradebook(of["db_url"]) as gradebook:
            notebook = gradebook.find_notebook(of["notebook"], of["assignment"])
            for grade in notebook.grade_cells:
                if grade.name not in there:
                    self.log.warning("%s: the cell %s was missing and is added", of["student"], grade.name)
                    source = gradebook.find_source_cell(grade.name, of["notebook"], of["assignment"])
                    nb.cells.append(_cell(grade, source))
        return nb, resources


def _cell(grade, source):
    """Return a cell as it was handed out."""
    make = nbformat.v4.new_code_cell if source.cell_type == "code" else nbformat.v4.new_markdown_cell
    cell = make(source.source)
    cell.metadata.nbgrader = {
        "grade": True,
        "grade_id": grade.name,
        "locked": source.locked,
        "points": grade.max_score,
        "schema_version": 3,
        "solution": not source.locked,
        "task": False,
    }
    return cell
