"""Gradient transformations in optax's vocabulary; each works in anybody's training loop."""

from bdjax.optim import schedules as schedules
from bdjax.optim.adversarial_noise import adversarial_noise as adversarial_noise
from bdjax.optim.anchor import anchor as anchor
from bdjax.optim.cost import gradient_evaluations as gradient_evaluations
from bdjax.optim.fisher_trace import fisher_trace as fisher_trace
from bdjax.optim.neuron_masks import l1_to_one as l1_to_one
from bdjax.optim.neuron_masks import project as project
from bdjax.optim.sam import perturbation as perturbation
from bdjax.optim.sam import sam as sam
from bdjax.optim.sgd import Schedule as Schedule
from bdjax.optim.sgd import Sgd as Sgd
