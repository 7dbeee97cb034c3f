"""The data card of a prepared dataset."""

from typing import Any

from dilated_seg.data.datamodule import SegmentationDataModule


def make_card(dataset: SegmentationDataModule, record: dict[str, Any]) -> str:
    """Return the data card, with the configuration that `datasets` reads."""
    summary = (type(dataset).__doc__ or "").splitlines()[0]
    lines = ["---", "task_categories: [image-segmentation]"]
    if record["store"] == "files":
        lines += ["configs:", "- config_name: default", "  data_files:"]
        for split, entry in record["splits"].items():
            lines += [f"  - split: {split}", f"    path: [{', '.join(f'{part}-0*.parquet' for part in entry['parts'])}]"]
    lines += ["---", "", f"# {record['dataset']}, prepared for dilated_seg", "", summary, ""]
    lines += ["| split | images | masks |", "|---|---|---|"]
    lines += [
        f"| {split} | {entry['images']:,} | {'yes' if entry['labelled'] else 'no'} |"
        for split, entry in record["splits"].items()
    ]  # fmt: skip
    skipped = [problem for part in record["shards"].values() for shard in part for problem in shard["skipped"]]
    lines += ["", f"Left out because they cannot be read: {len(skipped)}.", *(f"- {problem}" for problem in skipped)]
    stored = {
        "files": "The columns `image` and `label` (the mask) hold the publisher's files byte for byte, with their names.",
        "raw": "The columns `image` (uint8 RGB, row by row) and `mask` (class ids, 255 ignored) hold pixels.",
    }
    lines += [
        "",
        stored[record["store"]],
        "`manifest.json` has their checksums. The licence is that of the dataset.",
        "",
    ]
    return "\n".join(lines)
