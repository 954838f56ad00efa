raise RuntimeError("setup.py of the checkout was executed")
