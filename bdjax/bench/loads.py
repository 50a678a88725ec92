"""How fast images are loaded and poisoned."""

from __future__ import annotations

import functools
import time

import jax

from bdjax import attacks, data, poison
from bdjax.bench import measure
from bdjax.bench.session import Session
from bdjax.data.sources import _folders
from bdjax.devices import compilation

_ATTACKS = ("badnets", "blended")


def section(session: Session) -> measure.Row:
    """Measure images a second: of the embedded digits, of CIFAR-10 where it is prepared, and of two attacks."""
    rates = {"digits": _load_rate("digits", session)}
    if _folders.newest_version(_folders.resolve(session.settings.data_dir), "cifar10") is None:
        session.skip("loading cifar10", "it is not there")  # and a benchmark downloads nothing
    else:
        rates["cifar10_cached"] = _load_rate("cifar10", session)
    count = 2_000 if jax.default_backend() == "cpu" else 50_000
    return {
        "load_images_per_second": rates,
        "poison_images_per_second": _poison_rates(session, count),
    }


def _load_rate(name: str, session: Session) -> float:
    """Load twice and time the second: the first may have to decode the files and write the cache."""
    started, images = 0.0, 0
    for _ in range(2):
        started = time.perf_counter()
        dataset = data.load(name, data_dir=session.settings.data_dir)
        images = len(dataset.train.label) + len(dataset.test.label)
    return images / (time.perf_counter() - started)


def _poison_rates(session: Session, count: int) -> dict[str, float]:
    spec = session.settings.create(session.settings.widths[0]).spec
    split = measure.random_split(spec, count)
    key = jax.random.key(0)
    work: dict[str, measure.Work] = {}
    for name in _ATTACKS:
        attack = attacks.create(name)
        state = attack.trigger.init(key, spec)
        planted = compilation.jit(poison.poison_train)
        work[name] = functools.partial(planted, key, attack, state, split)
    seconds = measure.interleaved(work, session.settings.rounds)
    return {name: count / second for name, second in seconds.items()}
