"""The second verdict: the released model as people call it."""
