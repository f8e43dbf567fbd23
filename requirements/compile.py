"""Write the locks: every package that pyproject.toml and the .in files lead to, pinned by hashes.

    .venv/bin/python requirements/compile.py              # after pyproject.toml or an .in file was changed
    .venv/bin/python requirements/compile.py --upgrade    # to the newest versions

uv resolves once, for all platforms and Pythons that KSI runs on; run.lock is a part of dev.lock.
providers.lock has a part for each extra of requirements/install.py.
"""

import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
UV = str(Path(sysconfig.get_path("scripts"), "uv"))
HEADER = "# Written by requirements/compile.py.\n--only-binary :all:\n\n"


def main(arguments: list[str]) -> None:
    """Write both locks; what the command line says goes to uv."""
    everything, weights = ["run.in", "../pyproject.toml"], compiled(["weights.in", "--no-deps"])
    development = ["--extra", "dev", "--extra", "bench"]
    pins = compiled([*everything, *development, *arguments], known=(FOLDER / "dev.lock").read_text())
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as constraints:
        constraints.write(pins)
        constraints.flush()
        fewer = compiled([*everything, "--constraints", constraints.name])
    (FOLDER / "dev.lock").write_text(HEADER + pins + weights)
    (FOLDER / "run.lock").write_text(HEADER + fewer + weights)
    known = (FOLDER / "providers.lock").read_text()
    litellm, claude = compiled(["litellm.in", *arguments], known=known), compiled(["claude.in", "--no-deps"])
    (FOLDER / "providers.lock").write_text(f"{HEADER}# litellm\n{litellm}\n# claude\n{claude}")


def compiled(arguments: list[str], *, known: str = "") -> str:
    """Resolve requirements into pins, those that are known where they still fit."""
    with tempfile.NamedTemporaryFile("w+", suffix=".txt") as pins:
        pins.write(known)
        pins.flush()
        command = [
            UV, "pip", "compile", "--quiet", *arguments, "--output-file", pins.name,
            "--universal", "--python-version", "3.11", "--only-binary", ":all:", "--generate-hashes",
            "--no-header", "--no-annotate",
        ]  # fmt: skip
        subprocess.run(command, cwd=FOLDER, check=True)
        return Path(pins.name).read_text()


if __name__ == "__main__":
    main(sys.argv[1:])
