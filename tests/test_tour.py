"""docs/tour.ipynb without Jupyter: it is a notebook, and its cells show what is stored. CI runs it in Jupyter too."""

from __future__ import annotations

import copy
import re

import pytest
from support import tour


def test_it_is_a_notebook_without_traces_of_the_machine():
    page = tour.notebook()
    assert (page["nbformat"], page["nbformat_minor"]) == (4, 5)
    assert page["metadata"].keys() == {"kernelspec", "language_info"}
    ids = [cell["id"] for cell in page["cells"]]
    assert len(set(ids)) == len(ids) and all(re.fullmatch(r"[\w-]{1,64}", each) for each in ids)
    for n, cell in enumerate(tour.code_cells(page), 1):
        assert cell.keys() == {"cell_type", "execution_count", "id", "metadata", "outputs", "source"}
        assert cell["metadata"] == {} and cell["execution_count"] == n
        compile(tour.source(cell), cell["id"], "exec")
    shown = tour.stored(page)
    assert not re.search(r"/(tmp|home|root|usr|work)\b|\b0x[0-9a-f]{6}|Traceback", "".join(each.text for each in shown))
    pictures = [each.picture for each in shown if each.picture]
    assert len(pictures) == 1 and len(pictures[0]) < 30_000


def test_every_cell_of_code_is_introduced():
    kinds = [cell["cell_type"] for cell in tour.notebook()["cells"]]
    alone = [n for n in range(1, len(kinds)) if kinds[n] == kinds[n - 1] == "code"]
    assert alone == []


def test_what_differs_from_what_is_stored_is_told():
    page = tour.notebook()
    shown = tour.stored(page)
    assert tour.differences(page, shown) == []
    changed = copy.deepcopy(page)
    cells = {cell["id"]: cell for cell in tour.code_cells(changed)}
    cells["verify"]["outputs"][0]["text"] = ["proven: 1,187 of 1,188 tensors\n"]
    cells["overlay"]["outputs"] = []
    told = tour.differences(changed, shown)
    assert "verify: -proven: 1,187 of 1,188 tensors" in told and "overlay: another picture" in told


@pytest.mark.stress  # 20 s
def test_its_cells_show_what_is_stored(tmp_path):
    pytest.importorskip("PIL.Image")
    page = tour.notebook()
    found = tour.differences(page, tour.run_plainly(page, tmp_path))
    assert not found, "\n".join([*found, tour.ADVICE])
