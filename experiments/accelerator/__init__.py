"""What `on_accelerator.py` measures, one file a subject; `session` holds the minutes and the files of a call."""
