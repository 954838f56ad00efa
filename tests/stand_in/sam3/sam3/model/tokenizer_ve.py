raise RuntimeError("the tokenizer of the checkout was executed")


class SimpleTokenizer:
    pass
