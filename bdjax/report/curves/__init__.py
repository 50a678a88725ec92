"""Curves of swept options: found among rows, laid out in panels, and drawn."""
