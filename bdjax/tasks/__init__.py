"""Tasks: what a label is, how an output is judged, and what is measured. One file per task."""
