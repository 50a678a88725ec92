"""Time poisoning: every attack on the device, and some next to the same formula in NumPy, one image after the other.

    python experiments/bench_poison.py --images 10000 --rounds 5

Per attack: images of CIFAR-10's size that get the trigger and are rounded to 8 bits again, a second. Attacks that are
made with a network are left out; triggers that learn are timed as they start. Where there is a loop in NumPy, ``loop``
is its rate on a part of the same images and ``speedup`` the ratio; both give the same pixels up to one level, or this
stops.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import _measure
import jax
import numpy as np

from bdjax import attacks, poison, registry
from bdjax.attacks.wanet import Warp
from bdjax.bench import measure as benchmarks
from bdjax.data.modalities.images import image_spec
from bdjax.devices import compilation
from bdjax.types import Attack, Split

SPEC = image_spec(
    "cifar10", (32, 32, 3), 10, (0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261), (), 4, True
)
DITHERED = "bpp_dithered"
SHARE = {DITHERED: 0.01}  # of the loop's images, for the loop that goes through the pixels
KEY = jax.random.key(0)

OneImage = Callable[[np.ndarray], np.ndarray]


def main() -> None:
    options = _measure.arguments(__doc__, images=10_000, loop_images=1_000, rounds=5)
    split = benchmarks.random_split(SPEC, options.images)
    rows = measure(split, min(options.loop_images, options.images), options.rounds)
    _measure.write(
        {"shape": SPEC.shape, "images": options.images, "rounds": options.rounds, **rows},
        options.out,
    )


def measure(split: Split, loop_images: int, rounds: int) -> dict[str, Any]:
    """Return the rates of all attacks, and the names of those that were left out."""
    made, left_out = every_attack()
    work: dict[str, Callable[[], Any]] = {}
    count: dict[str, int] = {}
    for name, attack in made.items():
        state = attack.trigger.init(KEY, SPEC)
        work[name], count[name] = device_call(attack, state, split), split.label.shape[0]
        if (one := in_numpy(name, attack, state)) is not None:
            part = np.asarray(split.input[: max(1, round(loop_images * SHARE.get(name, 1)))])
            loop = numpy_call(one, part)
            check(name, np.asarray(work[name]())[: len(part)], loop())
            work[f"{name} loop"], count[f"{name} loop"] = loop, len(part)
    seconds = benchmarks.interleaved(work, rounds)
    rate = {name: count[name] / second for name, second in seconds.items()}
    rows = {}
    for name in made:
        rows[name] = {"images_per_second": rate[name]}
        if (loop_rate := rate.get(f"{name} loop")) is not None:
            rows[name] |= {"loop_images_per_second": loop_rate, "speedup": rate[name] / loop_rate}
    return {"attacks": rows, "left_out": left_out}


def every_attack() -> tuple[dict[str, Attack], list[str]]:
    """Return the attacks that need no network, BPP with dithering too, and the names of the others."""
    made, left_out = {}, []
    for name in attacks.names():
        if "model" in inspect.signature(registry.factory("bdjax.attacks", name)).parameters:
            left_out.append(name)
        else:
            made[name] = attacks.create(name, spec=SPEC)
    made[DITHERED] = attacks.create("bpp", spec=SPEC, dither=True)
    return made, left_out


def device_call(attack: Attack, state: Any, split: Split) -> Callable[[], Any]:
    """Return a call that puts the trigger on every image, in one compiled program."""
    planted = compilation.jit(poison.poison_test)
    return lambda: planted(KEY, attack, state, split).visible.input


def numpy_call(one: OneImage, image: np.ndarray) -> Callable[[], np.ndarray]:
    """Return a call that does the same to one image after the other."""

    def call() -> np.ndarray:
        triggered = np.empty_like(image)
        for row, pixels in enumerate(image):
            changed = np.clip(one(pixels.astype(np.float32) / 255), 0, 1)
            triggered[row] = np.floor(changed * 255 + 0.5).astype(np.uint8)
        return triggered

    return call


def check(name: str, ours: np.ndarray, loop: np.ndarray) -> None:
    """Refuse to compare things that are not the same."""
    if DITHERED in name:  # a pixel between two levels may fall to either, and its error moves on
        assert (np.abs(ours.astype(int) - loop) > 1).mean() < 0.01, name
    else:
        assert np.abs(ours.astype(int) - loop).max() <= 1, name


def in_numpy(name: str, attack: Attack, state: Any) -> OneImage | None:
    """Return the attack's formula for one image in [0, 1], or None where there is none here."""
    trigger: Any = attack.trigger
    match name:
        case "badnets":
            return stamped(3)
        case "blended":
            picture = np.asarray(state)
            return lambda image: (1 - trigger.alpha) * image + trigger.alpha * picture
        case "sig":
            return lambda image: (
                image + trigger.delta * np.sin(2 * np.pi * 6 * np.arange(32) / 32)[:, None]
            )
        case "bpp":
            return lambda image: np.round(image * 7) / 7
        case "bpp_dithered":
            return dithered
        case "wanet":
            return warped(trigger, state)
    return None


def stamped(size: int) -> OneImage:
    """Return BadNets' white square."""

    def one(image: np.ndarray) -> np.ndarray:
        image = image.copy()
        image[-size:, -size:] = 1
        return image

    return one


def dithered(image: np.ndarray) -> np.ndarray:
    """Dither to eight levels in raster order."""
    image = image.copy()
    height, width, _ = image.shape
    for i in range(height):
        for j in range(width):
            old = image[i, j].copy()
            image[i, j] = np.round(old * 7) / 7
            error = old - image[i, j]
            if j + 1 < width:
                image[i, j + 1] += error * (7 / 16)
            if i + 1 < height:
                image[i + 1, j] += error * (5 / 16)
                if j > 0:
                    image[i + 1, j - 1] += error * (3 / 16)
                if j + 1 < width:
                    image[i + 1, j + 1] += error / 16
    return image


def warped(trigger: Warp, state: Any) -> OneImage:
    """Return WaNet's warp; corners and weights are worked out once, as the field is the same for all images."""
    places = np.asarray(trigger.places(state))
    corner = np.clip(np.floor(places), 0, 30).astype(int)
    (column, row), (right, down) = (
        np.moveaxis(corner, -1, 0),
        np.moveaxis((places - corner)[..., None], 2, 0),
    )

    def one(image: np.ndarray) -> np.ndarray:
        above = (1 - right) * image[row, column] + right * image[row, column + 1]
        below = (1 - right) * image[row + 1, column] + right * image[row + 1, column + 1]
        return (1 - down) * above + down * below

    return one


if __name__ == "__main__":
    main()
