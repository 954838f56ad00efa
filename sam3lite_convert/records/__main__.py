"""``python -m sam3lite_convert.records``: write the JSON schemas and docs/json.md anew, in a checkout."""

from __future__ import annotations

from pathlib import Path

from sam3lite_convert.records.reference import reference
from sam3lite_convert.records.schema import schema_files

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    """Write every file whose content follows from the records."""
    folder = Path(__file__).resolve().parent / "schemas"
    folder.mkdir(exist_ok=True)
    for name, text in schema_files().items():
        (folder / name).write_text(text, encoding="utf-8")
    (ROOT / "docs" / "json.md").write_text(reference(), encoding="utf-8")


if __name__ == "__main__":
    main()
