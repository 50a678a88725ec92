"""Gradient transformations in optax's vocabulary; each works in anybody's training loop."""

from bdjax.optim import schedules as schedules
from bdjax.optim.sam import perturbation as perturbation
from bdjax.optim.sam import sam as sam
from bdjax.optim.sgd import Schedule as Schedule
from bdjax.optim.sgd import Sgd as Sgd
