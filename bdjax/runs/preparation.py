"""A purification before anything is trained: the network that is in the file, and the images that it is given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from bdjax.checks import InputError
from bdjax.files.printable import printable
from bdjax.models.foreign.normalization import Normalization, parse
from bdjax.runs import chance, clean_images, suspect
from bdjax.runs import request as requests
from bdjax.runs.clean_images import CleanImages
from bdjax.runs.config import Config
from bdjax.runs.request import Request
from bdjax.runs.strongest import Network
from bdjax.runs.suspect import Suspect
from bdjax.types import Spec

Tell = Callable[[str], None]  # of each step, one line
_SHOWN = 4  # normalizations that were tried


class Prepared(NamedTuple):
    """All that is known before anything is trained."""

    request: Request
    config: Config
    suspect: Suspect
    images: CleanImages
    normalization: Normalization
    network: Network

    @property
    def size_hint(self) -> str:
        """What is to be said of the images' size: nothing, where it is the usual one of such networks."""
        seen, size = self.suspect.recognized, self.images.spec.shape[:2]
        if seen is None or tuple(seen.image_size) == tuple(size):
            return ""
        usual, own = (f"{height}×{width}" for height, width in (seen.image_size, size))
        return (
            f"such networks are usually given images of {usual}, and these are {own} (--image-size)"
        )

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the outcome."""
        part = self.request.part
        # Only where it is given, so that what was finished without it has the identity that it had
        named = {} if part is None else {"part": printable(part)}
        return requests.identity(
            self.config,
            file=self.suspect.sha256,
            data=self.images.fingerprint,
            shape=list(self.images.spec.shape),
            normalization=[list(self.normalization.mean), list(self.normalization.std)],
            class_order=list(map(printable, self.request.class_order)),
            aside=self.request.aside,
            inversion=self.request.inversion,
            **named,
        )


def prepare(request: Request, tell: Tell = lambda line: None) -> Prepared:
    """Read the network and the images and fit them together; nothing is trained.

    Raises:
      InputError: as for `purify`.
    """
    found = suspect.look(request.file, request.part)
    for note in found.state.notes:
        tell(note)
    given = requests.model_section(request)
    config = requests.resolve(request, suspect.named(found, given))
    size = request.image_size or found.image_size
    seen = found.recognized
    images = clean_images.load(
        request.data,
        num_classes=None if seen is None else seen.num_classes,
        data_dir=request.data_dir,
        image_size=size,
        class_order=request.class_order,
    )
    channels = images.spec.shape[-1] if seen is None else seen.channels
    classes = images.spec.num_classes if seen is None else seen.num_classes
    images = clean_images.fitting(images, channels, classes)
    how = parse(request.mean, request.std, channels)
    how = how or suspect.known_normalization(found, channels, classes)
    if how is None:
        raise _unknown(found, config, images)
    network = _network(found, config, images.spec, how)
    prepared = Prepared(request, config, found, images, how, network)
    if prepared.size_hint:
        tell(prepared.size_hint)
    return prepared


def _network(found: Suspect, config: Config, spec: Spec, how: Normalization) -> Network:
    name, options = config.model.name, config.model.options
    return Network(*suspect.network(found, name, options, spec, how))


def _unknown(found: Suspect, config: Config, images: CleanImages) -> InputError:
    """Return why nothing is done without a normalization: what each usual one would give."""
    none = parse("none", None, images.spec.shape[-1])
    assert none is not None, "as it was asked for"
    network = _network(found, config, images.spec, none)
    ways = chance.tried(*network, images.split)
    shown = [one for one in ways if not one.reversed and one.order is None][:_SHOWN]
    each = [f"{chance.flags(way.normalization)} ({way.share:.1%})" for way in shown]
    said = "its normalization is not known; give it, as it was in training"
    noise = "A few points more or less say nothing"
    return InputError(
        f"{found.file}: {said}: right on {shown[0].of} of your images with {'; '.join(each)}. {noise}."
    )
