"""Executes the notebooks in place: python notebooks/execute.py [NOTEBOOK ...], or `make notebooks`.

Each runs from nothing in a fresh kernel and an empty folder, on the CPU path, with this checkout's package. What is
saved says nothing about the machine or the time, so that a diff shows what changed. Needs `trl-mise[notebooks]`.
"""

import argparse
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent
PLACEHOLDER = "OWNER/trl-mise"
"""In the badges until pyproject.toml names the repository, at [project.urls]."""
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
METADATA = {
    "accelerator": "GPU",
    "colab": {"gpuType": "T4", "provenance": []},
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
NOISE = re.compile(r"Failed to load CPU gemm_4bit_forward from kernels-community.*\n?")
"""What bitsandbytes says where it is installed and there is no GPU; nothing here uses it then."""
TIMING = re.compile(r" · [\d.]+ m?s/update| · ETA [\d:]+|(?<=updates) in [\d:]+")
"""In the lines of the live view."""
BADGE = "[![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)]({url})"


def repository() -> str:
    """`owner/name` on GitHub, from pyproject.toml's URLs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = (re.match(r"https://github\.com/([\w.-]+/[\w.-]+)", url) for url in project.get("urls", {}).values())
    return next((match.group(1).removesuffix(".git") for match in found if match), PLACEHOLDER)


def badge(name: str) -> str:
    """Opens the notebook of this file name in Colab."""
    url = f"https://colab.research.google.com/github/{repository()}/blob/main/notebooks/{name}"
    return BADGE.format(url=url)


def execute(notebook: Any, folder: Path, *, cache: Path | None = None, timeout: int = 900) -> Any:
    """Runs all cells in a fresh kernel.

    Args:
        notebook (`NotebookNode`): gets its outputs; also those up to a cell that fails.
        folder (`Path`): the working directory; what the cells write stays there.
        cache (`Path`, *optional*): of warm-started policies; by default a new one in `folder`.
        timeout (`int`): seconds for a cell.

    Raises:
        CellExecutionError: a cell failed.
    """
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "TRL_MISE_CACHE": str(cache or folder / "cache"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TQDM_DISABLE": "1",  # a progress bar that is over is no output
        "CUDA_VISIBLE_DEVICES": "",  # what is committed is the CPU path
    }
    environment.pop("MPLBACKEND", None)  # the notebook's own shows figures
    client = NotebookClient(
        notebook,
        timeout=timeout,
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": str(folder)}},
    )
    return client.execute(env=environment)


def tidy(notebook: Any, name: str) -> None:
    """Takes out what differs from run to run, names the cells, and puts the badge where it belongs."""
    stem = Path(name).stem
    notebook.metadata = nbformat.from_dict(METADATA)
    first = notebook.cells[0]
    first.source = re.sub(r"\A\[!\[Open In Colab\].*", lambda _: badge(name), first.source)
    for index, cell in enumerate(notebook.cells):
        cell.id = f"{stem}-{index:02d}"
        cell.metadata = nbformat.from_dict({"tags": cell.metadata["tags"]} if "tags" in cell.metadata else {})
        if cell.cell_type == "code":
            cell.outputs = _lasting(cell.outputs)


def _lasting(outputs: list[Any]) -> list[Any]:
    """The outputs without progress bars and times; a stream is in one piece, for how it is cut is a matter of time."""
    lasting: list[Any] = []
    for output in outputs:
        last = lasting[-1] if lasting else None
        if "application/vnd.jupyter.widget-view+json" in output.get("data", {}):
            continue
        if output.output_type != "stream":
            lasting.append(output)
        elif last is not None and last.get("name") == output.name:
            last.text += output.text
        else:
            lasting.append(output)
    for output in lasting:
        if output.output_type == "stream":
            output.text = TIMING.sub("", NOISE.sub("", output.text))
    return [output for output in lasting if output.output_type != "stream" or output.text.strip()]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="*", type=Path, default=NOTEBOOKS, help="default: all of them")
    for path in parser.parse_args(arguments).notebooks:
        print(f"{path.name} ...", flush=True)
        notebook = nbformat.read(path, as_version=4)
        with tempfile.TemporaryDirectory() as folder:
            execute(notebook, Path(folder))
        tidy(notebook, path.name)
        complaints = [o.text for c in notebook.cells for o in c.get("outputs", []) if o.get("name") == "stderr"]
        if complaints:
            raise SystemExit(f"{path.name} is not saved: it wrote to stderr\n{''.join(complaints)}")
        nbformat.validate(notebook)
        nbformat.write(notebook, path)


if __name__ == "__main__":
    main()
