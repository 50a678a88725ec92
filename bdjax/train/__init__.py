"""The one loop that feeds every learner, its checkpoints, and supervised learning on it."""
