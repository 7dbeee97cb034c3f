"""Print requirements of the oldest versions that setup.cfg admits, and of the pinned tools that run the tests."""

import configparser
import re
from pathlib import Path

config = configparser.ConfigParser()
config.read("setup.cfg")
extras = config["options.extras_require"]
needs = [config["options"]["install_requires"], *(extras[name] for name in extras if name not in ("dev", "docs"))]
for name, bound in re.findall(r"^([\w.\[\]-]+)>=([\w.]+)", "\n".join(needs), re.MULTILINE):
    print(f"{name}=={bound}")
print(Path("requirements.txt").read_text().partition("# What tests and checks need\n")[2])
