"""``python -m sam3lite_convert``: the same as the command ``sam3lite``."""

from sam3lite_convert.cli.app import main

if __name__ == "__main__":
    main()
