"""The second verdict: the stock model, called the way users call it."""
