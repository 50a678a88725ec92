"""The feature space of a network in two dimensions, with and without trigger, before and after a defense."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num

from bdjax.checks import InputError, integer, one_of, positive
from bdjax.data import splits
from bdjax.data.augment import as_float
from bdjax.devices import compilation
from bdjax.report import layout
from bdjax.runs.subject import Findings, Subject
from bdjax.types import Model, Variables

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

METHODS = ("tsne", "umap")
NEIGHBORS = 10
_COMPONENTS = 50  # principal ones that an embedding sees
_CHUNK = 500  # images at once
_TRIGGERED = "#000000"
_NETWORKS = ("victim", "defended")

Points = Float[np.ndarray, "n d"]


# --- Any features ----------------------------------------------------------------------------------------------------


def features_of(
    model: Model, variables: Variables, image: Num[Array | np.ndarray, "n h w c"]
) -> Points:
    """Return what the classifier takes in, for each image, in evaluation mode; a chunk at a time."""
    return np.asarray(_features(model, variables, jnp.asarray(image)))


def embed(
    points: Points, *, method: str = "tsne", seed: int = 0, perplexity: float = 30.0
) -> Float[np.ndarray, "n 2"]:
    """Return points in two dimensions, near ones near each other: the first 50 principal components, embedded.

    t-SNE (van der Maaten and Hinton, 2008) by openTSNE, from the first two principal components (the papers on
    backdoors start anywhere), on one thread, so that the same seed gives the same bits on any number of cores. UMAP
    (McInnes et al., 2018) with 15 neighbors, or fewer where there are fewer points.

    Args:
      points: at least 4, of any dimension.
      method: ``tsne`` or ``umap``.
      seed: decides what is drawn.
      perplexity: t-SNE's, lowered to (n − 1) / 3 where that is less.

    Raises:
      InputError: an unknown method, a value out of range, too few points, points that are not finite, or a library that
        is not installed.
    """
    one_of(METHODS, method=method)
    integer(0, 2**32 - 1, seed=seed)
    positive(perplexity=perplexity)
    if len(points) < 4:
        raise InputError(f"points must be 4 or more to be embedded, got {len(points)}.")
    if not np.isfinite(points).all():
        raise InputError("points must be finite to be embedded; the network may have diverged.")
    make = _tsne if method == "tsne" else _umap
    return np.asarray(make(principal(points), seed, perplexity), np.float32)


def principal(points: Points, components: int = _COMPONENTS) -> Float[np.ndarray, "n k"]:
    """Return the coordinates along the principal components with the largest variances, all if there are not more."""
    centered = points.astype(np.float64) - points.mean(0)
    left, values, _ = np.linalg.svd(centered, full_matrices=False)
    return (left * values)[:, :components]


def neighbors(
    points: Points, rows: Int[np.ndarray, " k"], count: int = NEIGHBORS
) -> Int[np.ndarray, "k count"]:
    """Return for some rows the ``count`` rows nearest to each, by Euclidean distance, without itself; in any order."""
    squares = (points**2).sum(1)
    distance = squares - 2 * points[rows] @ points.T  # but for the row's own square
    distance[np.arange(len(rows)), rows] = np.inf
    return np.argpartition(distance, count - 1, axis=1)[:, :count]


def require_embedding(method: str) -> Any:
    """Return the class that embeds.

    Raises:
      InputError: its library is not installed.
    """
    try:
        if method == "tsne":
            from openTSNE import TSNE

            return TSNE
        from umap import UMAP

        return UMAP
    except ImportError as error:
        missing = {
            "tsne": "t-SNE needs openTSNE, which pip install 'bdjax[embedding]' brings.",
            "umap": "method='umap' needs UMAP: pip install umap-learn.",
        }
        raise InputError(missing[method]) from error


def _tsne(points: Points, seed: int, perplexity: float) -> Any:
    options: dict[str, Any] = {
        "perplexity": min(perplexity, (len(points) - 1) / 3),
        "random_state": seed,
        "n_jobs": 1,
    }
    return require_embedding("tsne")(initialization="pca", **options).fit(points)


def _umap(points: Points, seed: int, perplexity: float) -> Any:
    del perplexity
    neighbors = min(15, len(points) - 1)
    return require_embedding("umap")(
        n_neighbors=neighbors, random_state=seed, n_jobs=1
    ).fit_transform(points)


def _of_images(model: Model, variables: Variables, image: Array) -> Array:
    def of_one(image: Array) -> Array:
        return model.features(variables, as_float(image)[None])[0]

    return jax.lax.map(of_one, image, batch_size=_CHUNK)


_features = compilation.jit(_of_images, static_argnames="model")


# --- Runs ------------------------------------------------------------------------------------------------------------


def features(
    images: int = 2000, method: str = "tsne", seed: int = 0, perplexity: float = 30.0
) -> Features:
    """Draw the features of test images, clean ones by class and triggered ones in black, before and after a defense.

    After figures 1 and 2 of FT-SAM (Zhu et al., 2023). Each network has an embedding of its own, in which distances and
    places mean little; what is near what is counted in the feature space itself: the classes of the 10 nearest
    neighbors of each triggered image.

    Args:
      images: at most so many, of each class and of triggered ones the same number.
      method: ``tsne``, or ``umap`` where umap-learn is installed.
      seed: of the embedding.
      perplexity: of t-SNE: how many neighbors count, about.

    Raises:
      InputError: a value out of range, an unknown method, or too few images for one of each class.
    """
    integer(1, images=images)
    integer(0, 2**32 - 1, seed=seed)
    one_of(METHODS, method=method)
    positive(perplexity=perplexity)
    return Features(images, method, seed, float(perplexity))


@dataclasses.dataclass(frozen=True)
class Features:
    """The analysis `features`."""

    images: int
    method: str
    seed: int
    perplexity: float
    labels: ClassVar[str] = "class"

    def require(self) -> None:
        """Refuse to measure where what embeds is not installed."""
        require_embedding(self.method)

    def measure(self, subject: Subject) -> Findings:
        """Return ``label``, ``attacker_label`` and ``is_triggered`` [n], and what both networks make of the images.

        ``victim_points`` [n, 2] and ``victim_neighbors`` [3]: the shares of triggered images, of clean ones of the
        attacker's class and of their true class among the 10 nearest neighbors of triggered images; the same of
        ``defended``. Labels are the true ones.
        """
        image, label, attackers, is_triggered = _chosen(subject, self.images)
        spec = subject.model.spec
        class_names = spec.class_names or list(map(str, range(spec.num_classes)))
        found = {
            "label": label,
            "attacker_label": attackers,
            "is_triggered": is_triggered,
            "class_names": np.asarray(class_names),
        }

        def of_network(variables: Variables) -> dict[str, np.ndarray]:
            points = features_of(subject.model, variables, image)
            embedded = embed(points, method=self.method, seed=self.seed, perplexity=self.perplexity)
            return {
                "points": embedded,
                "neighbors": _shares(points, label, attackers, is_triggered),
            }

        victim = subject.once(self, lambda: of_network(subject.victim))
        for name, of in zip(_NETWORKS, (victim, of_network(subject.defended)), strict=True):
            found |= {f"{name}_{part}": values for part, values in of.items()}
        return found

    def draw(self, found: Mapping[str, Findings]) -> Figure:
        """Draw two panels for each run, before and after the defense."""
        name = {"tsne": "t-SNE", "umap": "UMAP"}[self.method]
        titles: list[str] = []
        for run in found:
            titles += (run, "after the defense")
        page, panels = layout.panels(
            titles, f"{name} of the features, triggered images in black", height=2.4, left=0.05
        )
        for findings, *pair in zip(found.values(), panels[::2], panels[1::2], strict=True):
            for ax, network in zip(pair, _NETWORKS, strict=True):
                _draw(ax, findings, network)
        _legend(page, list(found.values()))
        return page


def _chosen(subject: Subject, images: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Draw clean images, the same number of each class, and as many triggered ones as of a class, of all true classes.

    Returns the images, their true labels, the attacker's, and which are triggered.
    """
    classes = subject.model.spec.num_classes
    seen = subject.triggered.visible
    true = seen._replace(label=subject.triggered.original_label)
    counted = np.asarray(subject.test.label)[np.asarray(subject.test.valid)]
    fewest = int(np.bincount(counted, minlength=classes).min())
    each = min(images // (classes + 1), fewest, int(np.asarray(seen.valid).sum()))
    if each < 1:
        smallest = f"with {fewest} test images in the smallest class"
        there = f"{classes} classes and the triggered images, {smallest}"
        raise InputError(f"images must allow one of each of {there}; got {images}.")
    clean_key, triggered_key = jax.random.split(subject.key)
    rows = splits.holdout(clean_key, subject.test, per_class=each, num_classes=classes)
    aimed = splits.subset(triggered_key, true, each, num_classes=classes)
    image = np.concatenate([np.asarray(subject.test.input)[rows], np.asarray(true.input)[aimed]])
    label = np.concatenate([np.asarray(subject.test.label)[rows], np.asarray(true.label)[aimed]])
    attackers = np.asarray(seen.label)[np.concatenate([rows, aimed])]
    return image, label, attackers, np.arange(len(label)) >= len(rows)


def _shares(
    points: Points,
    label: np.ndarray,
    attackers: np.ndarray,
    is_triggered: np.ndarray,
) -> np.ndarray:
    rows = np.flatnonzero(is_triggered)
    near = neighbors(points.astype(np.float64), rows, min(NEIGHBORS, len(points) - 1))
    clean = ~is_triggered[near]
    of = (
        ~clean,
        clean & (label[near] == attackers[rows, None]),
        clean & (label[near] == label[rows, None]),
    )
    return np.asarray([hit.mean() for hit in of])


def _palette(classes: int) -> list[Any]:
    """Return a color for each class: ten that color-blind readers tell apart, or steps of a scale for more."""
    import matplotlib

    if classes <= 10:
        return list(matplotlib.color_sequences["petroff10"][:classes])
    return list(matplotlib.colormaps["viridis"](np.linspace(0, 1, classes)))


def _draw(ax: Axes, findings: Findings, network: str) -> None:
    points, black = findings[f"{network}_points"], findings["is_triggered"]
    colors = np.asarray(_palette(len(findings["class_names"])), object)
    size = float(np.clip(4000 / len(points), 1.5, 12))
    style: dict[str, Any] = {"s": size, "lw": 0, "rasterized": True}
    ax.scatter(*points[~black].T, c=list(colors[findings["label"][~black]]), **style)
    ax.scatter(*points[black].T, color=_TRIGGERED, **style)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set(visible=True, color="#D5D5D5")
    black, aimed, true = 100 * findings[f"{network}_neighbors"]
    words = f"{black:.0f} % black, {aimed:.0f} % attacker's class, {true:.0f} % true class"
    ax.set_xlabel(f"near black: {words}", size=7.5)


def _legend(page: Figure, runs: list[Findings]) -> None:
    from matplotlib.lines import Line2D

    names = runs[0]["class_names"]
    others = [findings["class_names"] for findings in runs]
    entries: list[tuple[str, Any]] = []
    if len(names) <= 10 and all(np.array_equal(other, names) for other in others):
        entries += zip(names, _palette(len(names)), strict=True)
    entries.append(("triggered", _TRIGGERED))
    key: list[Line2D] = []
    for name, color in entries:
        key.append(Line2D([], [], ls="", marker="o", ms=3.5, color=color, label=str(name)))
    layout.legend(page, key, page.get_figheight() - layout.KEY, fontsize=7, columnspacing=1.0)
