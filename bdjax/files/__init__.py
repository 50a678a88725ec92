"""Files and the machine under them: where something may be written, and what fails."""
