"""The notebooks: what is committed is whole, executed, and says nothing of a machine; run again, they still learn."""

import ast
import importlib.util
import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from stand_in import put_into_cache

from trl_mise import MISEConfig
from trl_mise.tiny import build_policy, build_tokenizer

nbformat = pytest.importorskip("nbformat", reason='needs pip install "trl-mise[notebooks]"')
for name in ("nbclient", "ipykernel"):
    pytest.importorskip(name, reason='needs pip install "trl-mise[notebooks]"')

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "notebooks"
NAMES = ("01_quickstart", "02_calibration", "03_your_own_environment")
MAX_OUTPUT = 200_000
ABOUT_A_MACHINE = re.compile(
    r"/(?:root|home|work|tmp|usr|opt|Users|var|mnt)/|[A-Z]:\\|site-packages|0x[0-9a-f]{6,}|127\.0\.0\.1|it/s"
)
REGISTRIES = re.compile(r"pypi\.org|pythonhosted|npmjs|debian\.org|huggingface\.co|hf\.co|conda\.", re.IGNORECASE)


def executor() -> Any:
    """`notebooks/execute.py`, which `make notebooks` runs."""
    spec = importlib.util.spec_from_file_location("notebooks_execute", FOLDER / "execute.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


execute = executor()


def load(name: str) -> Any:
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def prose(notebook: Any) -> str:
    return "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


def tagged(notebook: Any, tag: str) -> Any:
    (cell,) = [cell for cell in notebook.cells if tag in cell.metadata.get("tags", [])]
    return cell


def stderr(notebook: Any) -> list[str]:
    return [o.text for cell in code_cells(notebook) for o in cell.outputs if o.get("name") == "stderr"]


def t4_options(notebook: Any) -> dict[str, Any]:
    """The dictionary `T4`, without running the rest of its cell."""
    tree = ast.parse(tagged(notebook, "shared-qlora").source)
    (value,) = [n.value for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "T4"]
    options: dict[str, Any] = eval(compile(ast.Expression(value), "T4", "eval"), {"__builtins__": {}})
    return options


def test_there_are_three() -> None:
    assert tuple(path.stem for path in execute.NOTEBOOKS) == NAMES


@pytest.mark.parametrize("name", NAMES)
class TestAsCommitted:
    def test_it_is_a_valid_notebook(self, name: str) -> None:
        notebook = load(name)
        nbformat.validate(notebook)
        assert notebook.metadata == execute.METADATA
        assert [cell.id for cell in notebook.cells] == [f"{name}-{i:02d}" for i in range(len(notebook.cells))]
        assert all(set(cell.metadata) <= {"tags"} for cell in notebook.cells)

    def test_it_begins_with_a_badge_that_opens_it(self, name: str) -> None:
        badge, _, title, *_ = load(name).cells[0].source.splitlines()
        assert badge == execute.badge(f"{name}.ipynb") and f"/blob/main/notebooks/{name}.ipynb)" in badge
        assert title.startswith("# ")

    def test_it_installs_the_package_only_where_it_is_missing(self, name: str) -> None:
        source = tagged(load(name), "shared-install").source
        (line,) = [line for line in source.splitlines() if "%pip" in line]
        assert line.startswith("    ") and 'find_spec("trl_mise") is None' in source
        found = re.search(r'"([\w-]+)\[([\w,]+)\]"', line)
        assert found is not None
        project = execute.tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        assert found[1] == project["name"] and set(found[2].split(",")) <= set(project["optional-dependencies"])

    def test_every_cell_was_executed_in_order_and_none_failed(self, name: str) -> None:
        notebook = load(name)
        cells = code_cells(notebook)
        assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
        assert "error" not in {output.output_type for cell in cells for output in cell.outputs}
        assert stderr(notebook) == []

    def test_outputs_are_small_and_there_are_figures_and_episodes(self, name: str) -> None:
        outputs = [output for cell in code_cells(load(name)) for output in cell.outputs]
        assert max(len(json.dumps(output)) for output in outputs) < MAX_OUTPUT
        kinds = [kind for output in outputs for kind in output.get("data", {})]
        assert "image/png" in kinds and "application/vnd.jupyter.widget-view+json" not in kinds
        pages = [output.get("data", {}).get("text/html", "") for output in outputs]
        episodes = [page for page in pages if "background-color:#" in page and "what it did" in page]
        assert len(episodes) >= {"01_quickstart": 4, "02_calibration": 0, "03_your_own_environment": 2}[name]

    def test_nothing_is_about_the_machine_or_the_hour(self, name: str) -> None:
        for output in [output for cell in code_cells(load(name)) for output in cell.outputs]:
            data = {kind: text for kind, text in output.get("data", {}).items() if not kind.startswith("image/")}
            text = json.dumps([data, output.get("text", "")], ensure_ascii=False)
            for told in (ABOUT_A_MACHINE, execute.TIMING):
                assert not told.search(text), told.search(text)

    def test_no_registry_is_named(self, name: str) -> None:
        text = "\n".join(cell.source for cell in load(name).cells)
        assert not REGISTRIES.search(text), REGISTRIES.search(text)

    def test_all_code_compiles(self, name: str) -> None:
        for cell in code_cells(load(name)):
            compile(re.sub(r"^( *)[%!].*$", r"\1pass", cell.source, flags=re.MULTILINE), cell.id, "exec")

    def test_the_device_is_found_out_and_can_be_chosen(self, name: str) -> None:
        source = tagged(load(name), "settings").source
        assert re.search(r"^ON_GPU = torch\.cuda\.is_available\(\)  # or choose", source, re.MULTILINE)

    def test_what_all_of_them_need_is_the_same_everywhere(self, name: str) -> None:
        for tag in ("shared-install", "shared-qlora"):
            assert tagged(load(name), tag).source == tagged(load(NAMES[0]), tag).source

    def test_the_settings_for_a_t4_are_a_configuration_without_bfloat16(self, name: str, tmp_path: Path) -> None:
        options = t4_options(load(name))
        assert set(options) <= {field.name for field in fields(MISEConfig)}
        assert options["fp16"] is True and "bf16" not in options
        args = MISEConfig(output_dir=str(tmp_path), **{**options, "fp16": False, "bf16": False})
        assert args.per_device_train_batch_size * args.gradient_accumulation_steps == 32
        assert args.total_episodes is not None and args.total_episodes % 32 == 0
        source = tagged(load(name), "shared-qlora").source
        for wanted in ('"Qwen/Qwen2.5-0.5B-Instruct"', "load_in_4bit=True", '"nf4"', "torch.float16", "LoraConfig("):
            assert wanted in source

    def test_what_was_not_run_is_said_with_an_estimate_of_memory(self, name: str) -> None:
        note = tagged(load(name), "gpu-note").source
        assert "None of this was run" in note and "of 16 GB" in note and "stand-in" in note

    def test_prose_gives_no_figures_that_a_cell_computes(self, name: str) -> None:
        """They would be wrong on the next machine."""
        figures = set(re.findall(r"(?<![\w.])\d\.\d+", prose(load(name))))
        assert figures <= {"0.5", "0.1", "0.2", "0.4", "0.8", "1.5"}  # sizes, GB, hindsight_coef

    def test_files_and_options_that_it_names_exist(self, name: str) -> None:
        text = prose(load(name))
        linked = [FOLDER / path for path in re.findall(r"\]\(([\w./-]+)\)", text)]
        named = [ROOT / path for path in re.findall(r"`((?:docs|examples)/[\w./-]+)`", text)]
        assert [path for path in linked + named if not path.exists()] == []
        assert set(re.findall(r"`([a-z_]+)=", text)) <= {field.name for field in fields(MISEConfig)}


def test_two_mistakes_are_shown_with_their_messages() -> None:
    text = "".join(output.text for output in tagged(load("03_your_own_environment"), "broken").outputs)
    assert re.search(r"OldGymDiver: .*split the old `done`", text)
    assert re.search(r"CountingDiver: .*everything random must come from the seed", text)


def test_an_environment_has_about_twenty_lines() -> None:
    source = tagged(load("03_your_own_environment"), "environment").source
    assert len([line for line in source.splitlines() if line.strip()]) <= 22


class TestTidying:
    def tidied(self, *outputs: Any) -> Any:
        cells = [
            nbformat.v4.new_markdown_cell("[![Open In Colab](x)](https://old)\n\n# Title"),
            nbformat.v4.new_code_cell("pass", outputs=list(outputs)),
        ]
        notebook = nbformat.v4.new_notebook(cells=cells, metadata={"signature": "x"})
        notebook.cells[1].metadata = {"execution": {"iopub.execute_input": "2026"}, "tags": ["kept"]}
        execute.tidy(notebook, "01_quickstart.ipynb")
        return notebook

    def stream(self, text: str, name: str = "stdout") -> Any:
        return nbformat.v4.new_output("stream", name=name, text=text)

    def test_badge_ids_and_metadata(self) -> None:
        notebook = self.tidied()
        assert notebook.cells[0].source == execute.badge("01_quickstart.ipynb") + "\n\n# Title"
        assert [cell.id for cell in notebook.cells] == ["01_quickstart-00", "01_quickstart-01"]
        assert notebook.metadata == execute.METADATA and notebook.cells[1].metadata == {"tags": ["kept"]}

    def test_a_stream_is_in_one_piece(self) -> None:
        outputs = self.tidied(self.stream("a\n"), self.stream("b\n"), self.stream("c\n", "stderr")).cells[1].outputs
        assert [(output.name, output.text) for output in outputs] == [("stdout", "a\nb\n"), ("stderr", "c\n")]

    @pytest.mark.parametrize(
        ("line", "kept"),
        [
            ("update 1/16 · success 0.15 · 2.7 s/update · ETA 0:40\n", "update 1/16 · success 0.15\n"),
            ("update 2/9 · 830 ms/update · ETA 1:02:03\n", "update 2/9\n"),
            ("training done: 16/16 updates in 0:39\n", "training done: 16/16 updates\n"),
            ("16 updates, in 3 parts\n", "16 updates, in 3 parts\n"),
        ],
    )
    def test_lines_lose_their_times(self, line: str, kept: str) -> None:
        assert self.tidied(self.stream(line)).cells[1].outputs[0].text == kept

    def test_progress_bars_and_what_bitsandbytes_misses_go_but_no_other_complaint(self) -> None:
        widget = nbformat.v4.new_output("display_data", {"application/vnd.jupyter.widget-view+json": {}})
        noise = "Failed to load CPU gemm_4bit_forward from kernels-community: No module named 'kernels'.\n"
        assert self.tidied(widget, self.stream(noise, "stderr")).cells[1].outputs == []
        assert stderr(self.tidied(self.stream(noise + "Warning: other\n", "stderr"))) == ["Warning: other\n"]

    @pytest.mark.parametrize(
        ("urls", "expected"),
        [
            ('Repository = "https://github.com/some-body/trl-mise.git"', "some-body/trl-mise"),
            ('Repository = "https://example.org/trl-mise"', execute.PLACEHOLDER),
            ("", execute.PLACEHOLDER),
        ],
    )
    def test_the_repository_is_pyprojects_or_a_placeholder(
        self, urls: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "pyproject.toml").write_text(f"[project]\n[project.urls]\n{urls}\n", encoding="utf-8")
        monkeypatch.setattr(execute, "ROOT", tmp_path)
        assert execute.repository() == expected


# Executed from nothing, in a fresh kernel and an empty folder.


def run(notebook: Any, folder: Path, **results: str) -> dict[str, Any]:
    """Executes the notebook in the folder; gives what the expressions `results` are in its kernel afterwards."""
    pairs = ", ".join(f"{name!r}: {expression}" for name, expression in results.items())
    notebook.cells.append(nbformat.v4.new_code_cell(f"import json\nprint(json.dumps({{{pairs}}}, default=float))"))
    before = snapshot()
    execute.execute(notebook, folder)
    assert snapshot() == before, "the execution wrote into the repository"
    execute.tidy(notebook, "01_quickstart.ipynb")
    assert stderr(notebook) == []
    values: dict[str, Any] = json.loads(notebook.cells[-1].outputs[-1].text)
    return values


def snapshot() -> set[str]:
    """Of where a cell could have written by mistake."""
    return {str(path) for folder in (ROOT, FOLDER) for path in folder.iterdir() if "cache" not in path.name}


def episodes(folder: Path) -> int:
    return len((folder / "trajectories.jsonl").read_text(encoding="utf-8").splitlines())


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


LEARNED = {"before": "before['eval_success']", "after": "after['eval_success']", "success": "success"}
"""What the kernel of a notebook that trains knows: greedy success, and the sampled one of every update."""


@pytest.mark.slow
def test_the_quickstart_learns(tmp_path: Path) -> None:
    got = run(
        load("01_quickstart"),
        tmp_path,
        **LEARNED,
        auroc="[value for _, value in auroc]",
    )
    # Two seeds: .25 -> .55 and .50 greedy; sampled, the first and the last updates, .22 -> .58 and .30 -> .65.
    assert got["after"] >= got["before"] + 0.08
    assert mean(got["success"][-5:]) >= mean(got["success"][:3]) + 0.15
    assert mean(got["auroc"]) > 0.65
    assert episodes(tmp_path / "runs" / "quickstart") == 768


@pytest.mark.slow
def test_calibration_does_what_the_notebook_says_and_no_more(tmp_path: Path) -> None:
    curves = {
        f"{key}_{name}": f"[e['{metric}'] for e in {name}.state.log_history if '{metric}' in e]"
        for key, metric in (("auroc", "hindsight/auroc"), ("success", "env/success"))
        for name in ("calibrated", "uncalibrated")
    }
    judges = "[{name: value for name, value in judge.items() if name != 'forecast'} for judge in judges.values()]"
    got = run(load("02_calibration"), tmp_path, judges=judges, gaps="gaps", **curves)
    start, without, calibrated = got["judges"]
    right, favourite, other = "score, right step", "score, wrong favourite", "score, otherwise wrong"
    # The bias: the wrong favourite is praised nearly as a right step.
    assert start[right] - start[favourite] < 0.15 and start[favourite] - start[other] > 0.25
    # "The verdicts add up to the odds", and "goes on telling wins from losses, and the other one does not".
    assert calibrated["ECE of the forecast"] < 0.2 < 0.4 < without["ECE of the forecast"]
    with_it, without_it = (mean(got[f"auroc_{name}"][-8:]) for name in ("calibrated", "uncalibrated"))
    assert with_it > 0.9 and without_it < with_it - 0.15
    # "The bias goes in both runs", and what calibration adds to that.
    assert min(got["gaps"][1:]) > got["gaps"][0] + 0.08
    assert calibrated[favourite] < without[favourite] - 0.05 and calibrated[right] < without[right] - 0.05
    # "The policy learns equally well".
    success = [mean(got[f"success_{name}"]) for name in ("calibrated", "uncalibrated")]
    assert min(success) > 0.5 and abs(success[0] - success[1]) < 0.12
    assert [episodes(tmp_path / "runs" / "calibration" / target) for target in ("sum", "none")] == [1280, 1280]


@pytest.mark.slow
def test_an_environment_of_ones_own_is_learned(tmp_path: Path) -> None:
    got = run(
        load("03_your_own_environment"),
        tmp_path,
        **LEARNED,
        chance="baselines['random agent'].value",
        scripted="baselines['scripted agent'].value",
    )
    assert got["chance"] < 0.2 and got["scripted"] == 1.0
    assert got["chance"] < got["before"] < 0.6 < 0.8 < got["after"]  # three seeds: .35 -> 1.0
    assert mean(got["success"][-4:]) >= mean(got["success"][:2]) + 0.4
    assert episodes(tmp_path / "runs" / "diver") == 960


WORDS = re.findall(
    r"\S+",
    """grill oven fryer wok pan pot rare hot salty sweet order now done served all right wrong depth the pearl lies at
    only sand a down up grab back to search page buy click find me good bad 1 2 3 4 5 6 7 : , .""",
)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of the hub's with a tiny model under the name of the one that the notebooks load."""
    home = tmp_path_factory.mktemp("hub")
    tokenizer = build_tokenizer(WORDS)
    model = build_policy(tokenizer, num_layers=1, max_positions=4096)
    put_into_cache(home, "Qwen/Qwen2.5-0.5B-Instruct", model, tokenizer)
    return home


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_path_of_a_gpu_runs_with_a_stand_in_on_a_cpu(
    name: str, hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same cells, in 4 bits and with an adapter, for one update; without fp16 training, which needs a GPU."""
    pytest.importorskip("bitsandbytes", reason='needs pip install "trl-mise[quantization]"')
    monkeypatch.setenv("HF_HOME", str(hub))
    notebook = load(name)
    replace(tagged(notebook, "settings"), "torch.cuda.is_available()", "True")
    replace(tagged(notebook, "shared-qlora"), '"fp16": True', '"use_cpu": True')
    replace(tagged(notebook, "shared-qlora"), "32 * 20", "32")
    layer = "trainer.policy.get_base_model().model.layers[0].mlp.up_proj"
    got = run(notebook, tmp_path, layer=f"str({layer})", updates="trainer.state.global_step")
    assert "Linear4bit" in got["layer"] and "lora_A" in got["layer"] and got["updates"] == 1


def replace(cell: Any, old: str, new: str) -> None:
    assert cell.source.count(old) == 1, f"{old!r} is not in {cell.id}, or more than once"
    cell.source = cell.source.replace(old, new)
