"""What a defense tunes, as a function to the network's parameters."""

from bdjax.parametrizations.frozen_convolutions import FrozenConvolutions as FrozenConvolutions
from bdjax.parametrizations.identity import Identity as Identity
from bdjax.parametrizations.kept_zeros import KeptZeros as KeptZeros
from bdjax.parametrizations.neuron_masks import NeuronMasks as NeuronMasks
from bdjax.parametrizations.pruned_filters import PrunedFilters as PrunedFilters
from bdjax.parametrizations.singular_values import SingularValues as SingularValues
from bdjax.parametrizations.weight_masks import WeightMasks as WeightMasks
