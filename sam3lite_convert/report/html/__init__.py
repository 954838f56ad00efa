"""The page of ``--report``: one template, one style sheet, the SVG charts."""

GENERATOR = "sam3lite-convert report"  # in the head of every page; only a file that has it is replaced by a new one
