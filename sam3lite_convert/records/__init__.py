"""Typed records: what a command returns, and its JSON.

A record is a frozen dataclass that turns itself into JSON (``to_json``) and has a JSON schema. Totals that must add up
are checked where a record is made. Sentences and totals that both the terminal and the page show are fields of the
record, computed once by the command.
"""
