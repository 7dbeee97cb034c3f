"""Print requirements of the oldest versions that setup.cfg admits, and of the pinned tools that run the tests.

Tools that only read the source are left out: import-linter needs a newer rich.
"""

import configparser
import re
import tomllib
from pathlib import Path

config = configparser.ConfigParser()
config.read("setup.cfg")
extras = config["options.extras_require"]
needs = [config["options"]["install_requires"], *(extras[name] for name in extras if name not in ("dev", "docs"))]
for name, bound in re.findall(r"^([\w.\[\]-]+)>=([\w.]+)", "\n".join(needs), re.MULTILINE):
    print(f"{name}=={bound}")
print(*tomllib.loads(Path("pyproject.toml").read_text())["build-system"]["requires"])  # the tests build a wheel
tools = Path("requirements.txt").read_text().partition("# What tests and checks need\n")[2]
print("\n".join(line for line in tools.splitlines() if not line.startswith(("import-linter", "ruff", "mypy"))))
