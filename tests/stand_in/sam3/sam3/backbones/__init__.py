raise RuntimeError("a package of the checkout was executed")
