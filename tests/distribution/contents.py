"""What is in a wheel and in a source distribution, held against the source tree; problems are told in words."""

import email.parser
import email.policy
import re
import sys
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PLACEHOLDER = "example.org"
NEVER = re.compile(r"(^|/)(tests|benchmarks|examples|docs|runs|\.cache|__pycache__)/|\.py[cod]$|(^|/)\.[^/]*$")
BUILT = {"RECORD", "WHEEL"}
"""Files of a wheel that say how it was built, not what is in it."""


def project(root: Path) -> dict[str, Any]:
    """The table of that name in pyproject.toml."""
    found: dict[str, Any] = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return found


def read_wheel(path: Path) -> dict[str, bytes]:
    """Its files, by name."""
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist() if not name.endswith("/")}


def read_sdist(path: Path) -> dict[str, bytes]:
    """Its files, by their name below the only folder."""
    with tarfile.open(path) as archive:
        files = {m.name: archive.extractfile(m) for m in archive.getmembers() if m.isfile()}
        return {name.partition("/")[2]: file.read() for name, file in files.items() if file is not None}


def package_files(root: Path) -> set[str]:
    """Everything under trl_mise: modules, and data of whatever kind."""
    found = (path for path in (root / "trl_mise").rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(root).as_posix() for path in found}


def wheel_problems(files: Mapping[str, bytes], root: Path) -> list[str]:
    """What a wheel should not hold, or lacks.

    Args:
        files (`Mapping[str, bytes]`): see [`read_wheel`].
        root (`Path`): of the source tree.
    """
    wanted, said = package_files(root), project(root)
    info = f"{said['name'].replace('-', '_')}-{said['version']}.dist-info"
    inside = {name for name in files if not name.startswith(f"{info}/")}
    problems = [f"{name} is missing: is it in [tool.setuptools.package-data]?" for name in sorted(wanted - inside)]
    problems += [f"{name} does not belong in a wheel" for name in sorted(inside - wanted)]
    problems += [f"{name} must not be distributed" for name in sorted(inside) if NEVER.search(name)]
    problems += [
        f"{name} differs from the tree" for name in sorted(inside & wanted) if files[name] != _tree(root, name)
    ]
    licences = [f"{info}/licenses/{name}" for name in said["license-files"]]
    problems += [f"{name} is missing" for name in (*licences, f"{info}/METADATA") if name not in files]
    if f"{info}/METADATA" in files:
        problems += metadata_problems(files[f"{info}/METADATA"].decode(), said)
    scripts = files.get(f"{info}/entry_points.txt", b"").decode()
    problems += [f"the script {name} is missing" for name in said.get("scripts", {}) if f"{name} = " not in scripts]
    return problems


def metadata_problems(text: str, said: Mapping[str, Any]) -> list[str]:
    """What the metadata lack of what pyproject.toml says."""
    metadata = email.parser.Parser(policy=email.policy.compat32).parsestr(text)
    once = {
        "Name": said["name"],
        "Version": said["version"],
        "Summary": said["description"],
        "Requires-Python": said["requires-python"],
        "License-Expression": said["license"],
        "Description-Content-Type": "text/markdown",
    }
    problems = [f"{key} is {metadata[key]!r}, not {value!r}" for key, value in once.items() if metadata[key] != value]
    given = metadata.get_all("Requires-Dist", [])
    for key, wanted, found in (
        ("Classifier", said["classifiers"], metadata.get_all("Classifier", [])),
        ("Provides-Extra", said["optional-dependencies"], metadata.get_all("Provides-Extra", [])),
        ("Project-URL", [f"{k}, {v}" for k, v in said["urls"].items()], metadata.get_all("Project-URL", [])),
        ("Requires-Dist", [_name(one) for one in said["dependencies"]], [_name(one) for one in given]),
    ):
        problems += [f"{key}: {value} is missing" for value in wanted if value not in found]
    if len(metadata.get_payload()) < 1000:
        problems.append("the description is not the README")
    return problems


def sdist_problems(files: Mapping[str, bytes], root: Path) -> list[str]:
    """What a source distribution should not hold, or lacks: it must be enough to build and to test."""
    wanted = package_files(root) | {
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "CHANGELOG.md",
        "CITATION.cff",
        "Makefile",
    }
    wanted |= {path.relative_to(root).as_posix() for path in (root / "tests").glob("*.py")}
    problems = [f"{name} is missing: is it in MANIFEST.in?" for name in sorted(wanted - files.keys())]
    junk = re.compile(r"(^|/)(runs|\.venv[^/]*|__pycache__|\.cache|\.[a-z]+_cache|\.hypothesis)/|\.py[cod]$")
    return problems + [f"{name} must not be distributed" for name in sorted(files) if junk.search(name)]


def differences(one: Mapping[str, bytes], other: Mapping[str, bytes]) -> list[str]:
    """Files in which two wheels differ, but for those that say how they were built."""
    names = {name for name in one.keys() | other.keys() if name.rpartition("/")[2] not in BUILT}
    return sorted(name for name in names if one.get(name) != other.get(name))


def version_problems(root: Path) -> list[str]:
    """pyproject.toml is the one place that names the version; what has to repeat it must agree."""
    version = project(root)["version"]
    cited = re.findall(r"^version: (.+)$", (root / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)
    changes = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## \[(.+?)\]", changes, re.MULTILINE)
    newest = next((heading for heading in headings if heading != "Unreleased"), None)
    problems = [] if cited == [version] else [f"CITATION.cff has version {cited}, pyproject.toml {version}"]
    if newest != version:
        problems.append(f"the newest version in CHANGELOG.md is {newest}, that of pyproject.toml {version}")
    return problems


def release_problems(root: Path) -> list[str]:
    """What must be done before the version is published."""
    said = project(root)
    changes = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    dated = re.search(rf"^## \[{re.escape(said['version'])}\] - \d{{4}}-\d\d-\d\d$", changes, re.MULTILINE)
    problems = [f"{key} = {url} is a stand-in" for key, url in said["urls"].items() if PLACEHOLDER in url]
    if dated is None:
        problems.append(f"CHANGELOG.md gives no date for {said['version']}: '## [{said['version']}] - YYYY-MM-DD'")
    if not re.search(r"^date-released: ", (root / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE):
        problems.append("CITATION.cff has no date-released")
    return problems + version_problems(root)


def _name(requirement: str) -> str:
    """`huggingface_hub>=1.0; python_version < '4'` -> `huggingface-hub`."""
    return re.split(r"[\s\[<>=!~;(]", requirement, maxsplit=1)[0].lower().replace("_", "-")


def _tree(root: Path, name: str) -> bytes:
    return (root / name).read_bytes()
