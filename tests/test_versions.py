"""What a bug report says of an installation."""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from trl_mise import versions

ROOT = Path(__file__).parents[1]


def test_the_report_is_true() -> None:
    report = versions.report()
    for name in ("trl", "transformers", "torch", "peft"):
        assert report[name] == version(name)
    assert report["python"] == ".".join(map(str, sys.version_info[:3]))
    assert set(versions.NEEDED) <= set(report)


def test_what_is_missing_is_said_if_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "NEEDED", ("trl", "no-such-package"))
    monkeypatch.setattr(versions, "OPTIONAL", ("no-such-extra",))
    report = versions.report()
    assert report["no-such-package"] == "not installed"
    assert "no-such-extra" not in report


def test_devices_are_asked_for_only_if_wanted() -> None:
    assert "device" not in versions.report()
    assert versions.report(devices=True)["device"]
    loaded = "import sys; from trl_mise.versions import report; report(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "False"
