"""Runs: from a config to a record in a folder, alone or many in a sweep."""
