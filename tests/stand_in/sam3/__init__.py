"""A stand-in for the file of the same name: with the repository's root on the path, ``sam3`` is this folder, and its
modules are looked for here and in the package inside it.
"""

import os

__path__ = [os.path.dirname(__file__), os.path.join(os.path.dirname(__file__), "sam3")]

raise RuntimeError("a package of the checkout was executed")
