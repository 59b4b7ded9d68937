"""The notebooks: what is committed looks as it should, and (slow) they run from nothing and show what they say."""

import ast
import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat", reason='needs pip install "trl-mise[notebooks]"')

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NAMES = ["01_quickstart", "02_calibration", "03_your_own_environment"]


def executor() -> Any:
    """`notebooks/execute.py`, which `make notebooks` runs."""
    spec = importlib.util.spec_from_file_location("notebooks_execute", ROOT / "notebooks" / "execute.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def texts(cell: Any) -> str:
    """All that a cell shows as text."""
    shown = []
    for output in cell.get("outputs", []):
        data = output.get("data", {})
        shown += [output.get("text", ""), data.get("text/plain", ""), data.get("text/html", "")]
    return "\n".join(shown)


def test_there_are_these() -> None:
    assert [path.stem for path in NOTEBOOKS] == NAMES


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
class TestCommitted:
    def test_valid_and_executed_in_order(self, path: Path) -> None:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
        code = [cell for cell in notebook.cells if cell.cell_type == "code"]
        assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
        kinds = {output.output_type for cell in code for output in cell.outputs}
        assert "error" not in kinds and "display_data" in kinds
        assert not [o for cell in code for o in cell.outputs if o.get("name") == "stderr"]

    def test_it_is_ready_for_colab(self, path: Path) -> None:
        notebook = nbformat.read(path, as_version=4)
        first, source = notebook.cells[0].source, "\n".join(cell.source for cell in notebook.cells)
        assert first.startswith(executor().badge(path.name))
        assert notebook.metadata["accelerator"] == "GPU" and notebook.metadata["colab"]["gpuType"] == "T4"
        assert re.search(r'^ *%pip install -q "trl-mise\[[\w,]+\]"$', source, re.MULTILINE)
        assert "Qwen/Qwen2.5-0.5B-Instruct" in source and "load_in_4bit=True" in source and '"fp16": True' in source
        assert "ON_GPU = torch.cuda.is_available()" in source and "None of this was run" in source

    def test_nothing_of_the_machine_is_in_it(self, path: Path) -> None:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"/(home|root|work|tmp|usr)/|pythonhosted|Traceback", text)
        notebook = json.loads(text)
        assert all(set(cell["metadata"]) <= {"tags"} for cell in notebook["cells"])
        assert max(len(json.dumps(cell.get("outputs", []))) for cell in notebook["cells"]) < 200_000
        assert [cell["id"] for cell in notebook["cells"]] == [
            f"{path.stem}-{index:02d}" for index in range(len(notebook["cells"]))
        ]

    def test_every_cell_compiles(self, path: Path) -> None:
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type == "code":
                ast.parse(re.sub(r"^( *)[%!].*$", r"\1pass", cell.source, flags=re.MULTILINE))


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_from_nothing(path: Path, tmp_path: Path) -> None:
    """In a fresh kernel and an empty folder, on the CPU path; what it trains learns."""
    pytest.importorskip("nbclient", reason='needs pip install "trl-mise[notebooks]"')
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    executor().execute(notebook, tmp_path)
    assert not [cell for cell in notebook.cells for o in cell.get("outputs", []) if o.output_type == "error"]
    logs = [folder.parent / "metrics.jsonl" for folder in sorted(tmp_path.glob("runs/**/trajectories.jsonl"))]
    assert logs
    for log in logs:
        entries = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
        success = [entry["env/success"] for entry in entries if "env/success" in entry]
        assert max(success[-3:]) > success[0] + 0.1, log
