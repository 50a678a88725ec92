"""Devices: which there are, what they hold, how programs are compiled for them and batches lie on them."""
