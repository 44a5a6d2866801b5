"""Environments: made on the mount, a package installed into them without a network, programs run from them."""

import sys
import venv
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.support.programs import run

WHEEL = "greeting-1.0-py3-none-any.whl"


def build_wheel(directory: Path) -> Path:
    """The smallest package that has a module, a script and data, packed by hand."""
    wheel = directory / WHEEL
    module = "from pathlib import Path\ndef main():\n    print((Path(__file__).parent / 'word').read_text())\n"
    kind = "Wheel-Version: 1.0\nGenerator: hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files = {
        "greeting/__init__.py": module,
        "greeting/word": "hello",
        "greeting-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: greeting\nVersion: 1.0\n",
        "greeting-1.0.dist-info/WHEEL": kind,
        "greeting-1.0.dist-info/entry_points.txt": "[console_scripts]\ngreet = greeting:main\n",
    }
    files["greeting-1.0.dist-info/RECORD"] = "".join(
        f"{name},,\n" for name in [*files, "greeting-1.0.dist-info/RECORD"]
    )
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return wheel


@pytest.mark.parametrize("symlinks", [True, False])
def test_a_venv_with_a_package(place: Path, symlinks: bool) -> None:
    environment = place / "environment"
    # ensurepip unpacks pip into it with pip itself, which costs seconds; once is enough.
    venv.create(environment, symlinks=symlinks, with_pip=symlinks)
    python = environment / "bin" / "python"
    assert run(python, "-c", "import sys; print(sys.prefix)").strip() == str(environment)
    wheel = build_wheel(place)
    pip = [python, "-m", "pip"] if symlinks else [sys.executable, "-m", "pip", f"--python={python}"]
    run(*pip, "install", "--no-index", "--no-input", "--disable-pip-version-check", "--no-cache-dir", wheel)
    assert run(environment / "bin" / "greet").strip() == "hello"
    run(*pip, "uninstall", "-y", "--disable-pip-version-check", "greeting")
    assert not (environment / "bin" / "greet").exists()


@pytest.mark.skipif(find_spec("uv") is None, reason="uv is not installed")
@pytest.mark.parametrize("link_mode", ["copy", "hardlink", "clone"])
def test_an_environment_made_by_uv(place: Path, link_mode: str) -> None:
    """Its cache is on the mount as well, so that it may link from there, or try to clone."""
    uv = [sys.executable, "-m", "uv", "--offline", "--no-config", f"--cache-dir={place / 'cache'}"]
    environment = place / "environment"
    run(*uv, "venv", "--python", sys.executable, environment)
    wheel = build_wheel(place)
    run(*uv, "pip", "install", f"--link-mode={link_mode}", f"--python={environment}", "--no-index", wheel)
    assert run(environment / "bin" / "greet").strip() == "hello"
