"""Modalities: what an input is, stored and worked on. One file per kind of input."""
