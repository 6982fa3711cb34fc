"""The Mac example, as far as it can be checked where there is no Mac."""

from __future__ import annotations

import json
import os
import plistlib
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mlx_qwen3.demo import has_demo

APP = Path(__file__).parent.parent.parent / "examples" / "macos_app"

needs_demo = pytest.mark.skipif(not has_demo("demo"), reason="the demo model is not here")


def test_the_script_is_bash() -> None:
    subprocess.run(["bash", "-n", str(APP / "bundle.sh")], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", str(APP / "bundle.sh")], check=True)
    assert os.access(APP / "bundle.sh", os.X_OK)


def test_python_inherits_the_sandbox_and_asks_for_nothing_else() -> None:
    """The system ends a child with any other of the sandbox's entitlements."""
    asked = plistlib.loads((APP / "bundle" / "python.entitlements").read_bytes())
    assert asked == {"com.apple.security.app-sandbox": True, "com.apple.security.inherit": True}


def test_names_agree() -> None:
    """Script, property list, package and app are written by hand in four files."""
    about = plistlib.loads((APP / "bundle" / "Info.plist").read_bytes())
    name = about["CFBundleExecutable"]
    script = (APP / "bundle.sh").read_text()
    assert f'.executableTarget(name: "{name}"' in (APP / "Package.swift").read_text()
    assert f"app=dist/{name}.app" in script
    assert f"MACOSX_DEPLOYMENT_TARGET={about['LSMinimumSystemVersion']}" in script
    assert "$app/Contents/Resources/runtime" in script
    assert '"runtime/bin/python3"' in (APP / "Sources" / name / "Runtime.swift").read_text()


def ready_line() -> dict[str, Any]:
    """What the real sidecar says, started as `Launch` does it."""
    command = [sys.executable, "-m", "mlx_qwen3.cli", "serve", "--model", "demo"]
    options = ["--port", "0", "--ready-json", "--parent-pid", str(os.getpid())]
    with subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True) as sidecar:
        try:
            assert sidecar.stdout is not None
            said: dict[str, Any] = json.loads(sidecar.stdout.readline())
        finally:
            sidecar.terminate()
    return said


@needs_demo
def test_the_ready_line_is_what_the_swift_client_decodes() -> None:
    source = (APP / "Sources" / "Qwen3Client" / "ReadyLine.swift").read_text()
    fields = dict(re.findall(r"^    public let (\w+): (.+)$", source, re.MULTILINE))
    types = {"URL": str, "String": str, "Int32": int, "[String]": list}
    assert set(fields) == {"url", "key", "pid", "version", "models"}
    said = ready_line()
    for name, kind in fields.items():
        assert isinstance(said[name], types[kind]), name
    assert said["models"] == ["demo"]
