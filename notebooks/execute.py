"""Execute notebooks and keep their outputs.  make notebooks

Images are reduced to 64 colors, temporary paths to /tmp/NOTEBOOK; progress bars, and warnings and logs on stderr, are dropped.
The metadata ``executed`` is the SHA-256 of the code that produced the outputs: a test compares it with the code.
"""

import argparse
import base64
import hashlib
import io
import re
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from PIL import Image

HERE = Path(__file__).parent


def hash_code(notebook: Any) -> str:
    """Return the SHA-256 of all code cells."""
    code = "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    return hashlib.sha256(code.encode()).hexdigest()


def reduce_image(png: str) -> str:
    """Return a base64 PNG with at most 64 colors, on white: the background of plots is transparent."""
    image = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    file = io.BytesIO()
    Image.alpha_composite(white, image).convert("RGB").quantize(64, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def clean_outputs(cell: Any, name: str) -> list[Any]:
    """Return a cell's outputs without stderr, with smaller images and without random paths."""
    outputs = []
    for output in cell.outputs:
        data = output.get("data", {})
        bar = data.get("text/plain") == "" or "ipywidgets" in data.get("text/plain", "")  # of a progress bar
        if output.get("name") == "stderr" or bar:
            continue
        if "image/png" in data:
            data["image/png"] = reduce_image(data["image/png"])
            data.pop("text/html", None)
        for holder, key in ((output, "text"), (data, "text/plain"), (data, "text/markdown"), (data, "text/html")):
            if key in holder:
                holder[key] = re.sub(r"/tmp/tmp\w+", f"/tmp/{name}", holder[key])
        outputs.append(output)
    return outputs


def execute(path: Path) -> Any:
    """Return a notebook with the outputs of its present code."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(path.parent)}}).execute()
    for number, cell in enumerate(cell for cell in notebook.cells if cell.cell_type == "code"):
        cell.outputs = clean_outputs(cell, path.stem)
        cell.execution_count = number + 1
        cell.metadata.pop("execution", None)
    notebook.metadata = {**notebook.metadata, "executed": hash_code(notebook), "language_info": {"name": "python"}}
    return notebook


def main() -> None:
    parser = argparse.ArgumentParser(description="Execute notebooks and keep their outputs.")
    parser.add_argument("notebooks", nargs="*", type=Path, default=sorted(HERE.glob("*.ipynb")))
    parser.add_argument("--out", type=Path, metavar="DIRECTORY", help="write the result here instead of in place")
    options = parser.parse_args()
    for path in options.notebooks:
        file = (options.out or path.parent) / path.name
        nbformat.write(execute(path), file)
        print(f"{file}: {file.stat().st_size / 1000:.0f} kB", flush=True)


if __name__ == "__main__":
    main()
