"""What `make test-dist` looks at, without building: it finds what is wrong with a wheel, and nothing in a good one."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "distribution"))

import contents  # noqa: E402

INFO = f"trl_mise-{contents.project(ROOT)['version']}.dist-info"


def metadata() -> str:
    """As setuptools writes it."""
    said = contents.project(ROOT)
    lines = [
        f"Name: {said['name']}",
        f"Version: {said['version']}",
        f"Summary: {said['description']}",
        f"License-Expression: {said['license']}",
        f"Requires-Python: {said['requires-python']}",
        "Description-Content-Type: text/markdown",
        *(f"Project-URL: {name}, {url}" for name, url in said["urls"].items()),
        *(f"Classifier: {classifier}" for classifier in said["classifiers"]),
        *(f"Provides-Extra: {extra}" for extra in said["optional-dependencies"]),
        *(f"Requires-Dist: {requirement}" for requirement in said["dependencies"]),
    ]
    return "\n".join(lines) + "\n\n" + (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def wheel() -> dict[str, bytes]:
    """A wheel with which nothing is wrong."""
    files = {name: (ROOT / name).read_bytes() for name in contents.package_files(ROOT)}
    scripts = "\n".join(f"{name} = {target}" for name, target in contents.project(ROOT).get("scripts", {}).items())
    files[f"{INFO}/entry_points.txt"] = scripts.encode()
    files[f"{INFO}/METADATA"] = metadata().encode()
    files[f"{INFO}/licenses/LICENSE"] = (ROOT / "LICENSE").read_bytes()
    return files


def test_a_good_wheel_has_no_problems(wheel: dict[str, bytes]) -> None:
    assert contents.wheel_problems(wheel, ROOT) == []


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda w: w.pop("trl_mise/py.typed"), "trl_mise/py.typed is missing: is it in"),
        (lambda w: w.pop("trl_mise/envs/base.py"), "trl_mise/envs/base.py is missing"),
        (lambda w: w.update({"tests/test_x.py": b""}), "tests/test_x.py does not belong in a wheel"),
        (lambda w: w.update({"benchmarks/__init__.py": b""}), "benchmarks/__init__.py must not be distributed"),
        (lambda w: w.update({"trl_mise/__pycache__/x.pyc": b""}), "x.pyc must not be distributed"),
        (lambda w: w.update({"trl_mise/types.py": b"old"}), "trl_mise/types.py differs from the tree"),
        (lambda w: w.pop(f"{INFO}/licenses/LICENSE"), "licenses/LICENSE is missing"),
        (lambda w: w.pop(f"{INFO}/METADATA"), "METADATA is missing"),
    ],
)
def test_a_bad_wheel_is_found_out(wheel: dict[str, bytes], change: Callable, problem: str) -> None:
    change(wheel)
    assert any(problem in told for told in contents.wheel_problems(wheel, ROOT))


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("Version: ", "Version is None"),
        ("License-Expression: ", "License-Expression is None"),
        ("Description-Content-Type: ", "Description-Content-Type is None"),
        ("Project-URL: ", "Project-URL: "),
        ("Provides-Extra: webshop", "Provides-Extra: webshop is missing"),
        ("Classifier: Typing :: Typed", "Classifier: Typing :: Typed is missing"),
        ("Requires-Dist: peft", "Requires-Dist: peft is missing"),
    ],
)
def test_metadata_that_lack_something_are_found_out(line: str, problem: str) -> None:
    said = contents.project(ROOT)
    assert contents.metadata_problems(metadata(), said) == []
    kept = [known for known in metadata().splitlines() if not known.startswith(line)]
    assert any(problem in told for told in contents.metadata_problems("\n".join(kept), said))


def test_the_source_distribution_is_enough_to_build_and_to_test() -> None:
    files = {path.relative_to(ROOT).as_posix(): b"" for path in (ROOT / "tests").glob("*.py")}
    files |= dict.fromkeys(contents.package_files(ROOT), b"")
    files |= dict.fromkeys(("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "Makefile"), b"")
    assert contents.sdist_problems(files, ROOT) == []
    del files["tests/conftest.py"], files["CHANGELOG.md"]
    problems = contents.sdist_problems({**files, "runs/demo/model.safetensors": b""}, ROOT)
    assert [told.split(" ")[0] for told in problems] == [
        *("CHANGELOG.md", "tests/conftest.py", "runs/demo/model.safetensors"),
    ]


def test_two_wheels_are_compared_by_what_is_in_them() -> None:
    one = {"a.py": b"1", "x.dist-info/RECORD": b"1", "x.dist-info/METADATA": b"1"}
    assert contents.differences(one, {**one, "x.dist-info/RECORD": b"2"}) == []
    assert contents.differences(one, {"a.py": b"2", "b.py": b""}) == ["a.py", "b.py", "x.dist-info/METADATA"]


class TestVersion:
    """One place names it, pyproject.toml; two others must repeat it."""

    def copied(self, folder: Path) -> Path:
        for name in ("pyproject.toml", "CITATION.cff", "CHANGELOG.md"):
            (folder / name).write_text((ROOT / name).read_text(encoding="utf-8"), encoding="utf-8")
        return folder

    def test_they_agree(self) -> None:
        assert contents.version_problems(ROOT) == []

    def test_no_module_names_it(self) -> None:
        version = contents.project(ROOT)["version"]
        named = [f"'{version}'", f'"{version}"']
        found = [
            path.name
            for path in (ROOT / "trl_mise").rglob("*.py")
            if any(text in path.read_text(encoding="utf-8") for text in named)
        ]
        assert found == []

    def test_a_version_that_was_raised_in_one_place_only_is_found_out(self, tmp_path: Path) -> None:
        pyproject = self.copied(tmp_path) / "pyproject.toml"
        version = contents.project(ROOT)["version"]
        text = pyproject.read_text(encoding="utf-8").replace(f'version = "{version}"', 'version = "9.9.9"', 1)
        pyproject.write_text(text, encoding="utf-8")
        problems = contents.version_problems(tmp_path)
        assert len(problems) == 2 and all("9.9.9" in problem for problem in problems)

    def test_what_a_release_needs(self, tmp_path: Path) -> None:
        folder = self.copied(tmp_path)
        version = contents.project(ROOT)["version"]
        replaced = {
            "pyproject.toml": (contents.PLACEHOLDER, "forge.test"),
            "CHANGELOG.md": (f"## [{version}] - Unreleased", f"## [{version}] - 2030-01-02"),
            "CITATION.cff": (f"\nversion: {version}\n", f"\nversion: {version}\ndate-released: 2030-01-02\n"),
        }
        for name, (old, new) in replaced.items():
            before = len(contents.release_problems(folder))
            text = (folder / name).read_text(encoding="utf-8")
            (folder / name).write_text(text.replace(old, new), encoding="utf-8")
            if old in text:  # not done yet for this version
                assert len(contents.release_problems(folder)) == before - 1, name
        assert contents.release_problems(folder) == []
