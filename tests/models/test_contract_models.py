"""What every network keeps to; the published network's shape; and its parity with PyTorch, where that is installed."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from networks import create, options_of, spec_for
from quick import quick_jit

from bdjax import models, optim, registry, structure
from bdjax.checks import InputError
from bdjax.curvature import hessian, loss_surface
from bdjax.data.modalities.images import Images, image_spec
from bdjax.optim.sgd import Schedule
from bdjax.runs.subject import convolution
from bdjax.train.supervised import mean_loss, supervised
from bdjax.types import Model, ProbedModel, Split

KEY = jax.random.key(0)
# LLVM's effort is most of the time that a test with a deep network takes.


@pytest.fixture(params=networks.KINDS)
def name(request) -> str:
    return request.param


def random_variables(model: Model, seed: int = 0):
    """Plausible variables without compiling an initialization."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        value = rng.uniform(-1, 1, leaf.shape) / np.sqrt(max(np.prod(leaf.shape[:-1]), 1))
        positive = path[-1].key in ("scale", "var")
        return jnp.asarray(1 + 0.3 * value if positive else value, leaf.dtype)

    return jax.tree.map_with_path(draw, jax.eval_shape(model.init, KEY))


def equations(program):
    """Yield the equations of a traced program and of the programs in them."""
    for equation in program.eqns:
        yield equation
        for value in jax.tree.leaves(list(equation.params.values())):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


@functools.cache
def tiny(name: str, dtype: str = "float32") -> tuple[Model, dict]:
    spec = image_spec("tiny", (8, 8, 3), 4, (0.5, 0.4, 0.3), (0.25, 0.2, 0.3))
    model = create(name, spec_for(name, spec), width=2, dtype=dtype)
    return model, random_variables(model)


@functools.partial(quick_jit, static_argnums=0)
def evaluated(model, variables, image):
    return model.apply(variables, image)


@functools.partial(quick_jit, static_argnums=0)
def trained(model, variables, batch):
    """Return the loss, the new statistics and the gradient of one batch in training mode."""

    def loss_fn(params):
        variables_at = {"params": params, "batch_stats": variables["batch_stats"]}
        logits, changed = model.apply(variables_at, batch.input, train=True, valid=batch.valid)
        return mean_loss(model.spec.task, logits, batch), changed

    (loss, changed), grads = jax.value_and_grad(loss_fn, has_aux=True)(variables["params"])
    return loss, changed, grads


@pytest.fixture
def images(request) -> np.ndarray:
    """Eight images, of the size that a network takes."""
    named = "name" in request.fixturenames
    shape = tiny(request.getfixturevalue("name"))[0].spec.shape if named else (8, 8, 3)
    return np.random.default_rng(1).random((8, *shape), np.float32)


def test_init_is_float32_and_a_function_of_the_key(name):
    model, _ = tiny(name)
    assert isinstance(model, ProbedModel)  # and so a Model
    shapes = jax.eval_shape(model.init, KEY)
    assert set(shapes) == {"params", "batch_stats"}
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
    if name == "small_cnn":  # the others take long to compile, and share the code
        first, again, other = (model.init(jax.random.key(seed)) for seed in (0, 0, 1))
        jax.tree.map(np.testing.assert_array_equal, first, again)
        assert (first["params"]["conv1"]["kernel"] != other["params"]["conv1"]["kernel"]).any()
        for statistics in first["batch_stats"].values():
            assert not statistics["mean"].any()
            assert (statistics["var"] == 1).all()


def test_init_may_be_mapped_and_compiled_by_the_caller():
    model, _ = tiny("small_cnn")
    swept = jax.eval_shape(jax.jit(jax.vmap(model.init)), jax.random.split(KEY, 3))
    assert swept["params"]["conv1"]["kernel"].shape == (3, 3, 3, 3, 2)


def test_evaluation_gives_finite_logits_row_by_row_and_leaves_the_statistics(name, images):
    model, variables = tiny(name)
    logits, statistics = evaluated(model, variables, images)
    assert logits.shape == (8, 4)
    assert logits.dtype == jnp.float32
    assert np.isfinite(logits).all()
    jax.tree.map(np.testing.assert_array_equal, statistics, variables["batch_stats"])
    shuffled, _ = evaluated(model, variables, images[::-1])
    np.testing.assert_allclose(shuffled[::-1], logits, atol=1e-5)


def test_images_are_normalized_inside(name, images):
    model, variables = tiny(name)
    plain = create(
        name, dataclasses.replace(model.spec, modality=Images((0.0,) * 3, (1.0,) * 3)), width=2
    )
    normalized = (images - np.float32(model.spec.modality.mean)) / np.float32(
        model.spec.modality.std
    )
    ours, expected = (
        evaluated(model, variables, images)[0],
        evaluated(plain, variables, normalized)[0],
    )
    np.testing.assert_allclose(ours, expected, atol=1e-4)


def test_padding_rows_change_neither_loss_nor_gradient_nor_statistics(name, images):
    model, variables = tiny(name)
    label = np.arange(8, dtype=np.int32) % 4
    valid = np.arange(8) < 5
    padded = trained(model, variables, Split(images, label, valid))
    smaller = trained(model, variables, Split(images[:5], label[:5], None))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), padded, smaller
    )
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), padded[1], variables["batch_stats"])
    assert all(jax.tree.leaves(moved))


def test_equal_models_share_one_compilation(name):
    model, variables = tiny(name)
    twin = create(name, model.spec, width=2)
    assert twin is not model
    assert twin == model
    assert hash(twin) == hash(model)
    traces = []

    @functools.partial(jax.jit, static_argnums=0)
    def count_traces(model, variables):
        traces.append(model)
        return jax.tree.leaves(variables)[0]

    count_traces(model, variables)
    count_traces(twin, variables)
    assert len(traces) == 1
    for option, other in (("width", 3), ("dtype", "bfloat16")):
        if option in options_of(name):
            assert model != create(name, model.spec, **{"width": 2, option: other})


@pytest.mark.parametrize("shape", [(28, 28, 1), (7, 9, 3), (32, 32, 3)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_any_size_and_either_type_give_float32_logits_and_statistics(name, shape, dtype):
    spec = spec_for(name, image_spec("sized", shape, 7, (0.5,) * shape[2], (0.25,) * shape[2]))
    model = create(name, spec, width=2, dtype=dtype)
    variables = jax.eval_shape(model.init, KEY)
    image = jax.ShapeDtypeStruct((5, *spec.shape), jnp.float32)
    logits, statistics = jax.eval_shape(
        functools.partial(model.apply, train=True), variables, image
    )
    assert (logits.shape, logits.dtype) == ((5, 7), jnp.float32)
    features = jax.eval_shape(model.features, variables, image)
    leaves = jax.tree.leaves((variables, statistics, features))
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_products_are_in_the_type_of_the_network_and_sums_and_gradients_in_float32(name, dtype):
    """On the way forward and back: only the classifier, which nothing but it has seven columns, is always float32."""
    if "dtype" not in options_of(name):
        dtype = "float32"
    spec = spec_for(name, image_spec("sized", (8, 8, 3), 7, (0.5,) * 3, (0.25,) * 3))
    model = create(name, spec, width=2, dtype=dtype)
    variables = jax.eval_shape(model.init, KEY)
    batch = Split(jnp.zeros((5, *spec.shape)), jnp.zeros(5, jnp.int32), jnp.ones(5, bool))
    traced = jax.make_jaxpr(trained.__wrapped__, static_argnums=0)(model, variables, batch)
    assert {aval.dtype for aval in traced.out_avals} == {jnp.dtype("float32")}

    found = {"convolution": [], "product": [], "classifier": [], "sum": []}
    for equation in equations(traced.jaxpr):
        operands = [operand.aval for operand in equation.invars]
        kind = {
            "bdjax_convolution": "convolution",
            "conv_general_dilated": "convolution",
            "dot_general": "classifier"
            if any(7 in operand.shape for operand in operands)
            else "product",
            "reduce_sum": "sum"
            if operands and operands[0].size > equation.outvars[0].aval.size
            else None,
        }.get(equation.primitive.name)
        if kind:
            found[kind] += [
                operand.dtype for operand in operands if jnp.issubdtype(operand.dtype, jnp.floating)
            ]
    kernels = [leaf for leaf in jax.tree.leaves(variables["params"]) if leaf.ndim == 4]
    # Value and two gradients; none by the image
    assert len(found["convolution"]) >= 2 * (3 * len(kernels) - 1)
    assert set(found["convolution"] + found["product"]) <= {jnp.dtype(dtype)}
    assert set(found["classifier"]) == set(found["sum"]) == {jnp.dtype("float32")}


def apart(ours, expected) -> float:
    """Return ‖ours − expected‖ / ‖expected‖ of two trees of numbers."""
    ours, expected = (
        np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)]) for tree in (ours, expected)
    )
    return float(np.linalg.norm(ours - expected) / np.linalg.norm(expected))


def test_bfloat16_runs_near_float32(name, images):
    """Logits, and one batch's loss, statistics and gradient; with so few units, one ReLU that flips moves the last."""
    if "dtype" not in options_of(name):
        pytest.skip("it computes in float32 alone")
    (wide, variables), (narrow, _) = tiny(name), tiny(name, "bfloat16")
    ours, expected = evaluated(narrow, variables, images)[0], evaluated(wide, variables, images)[0]
    assert (ours != expected).any(), "the narrow type is not used"
    assert apart(ours, expected) < 0.05
    batch = Split(images, np.arange(8, dtype=np.int32) % 4, np.ones(8, bool))
    ours, expected = (trained(model, variables, batch) for model in (narrow, wide))
    # Measured: 0.001, 0.0001, 0.26
    for limit, *pair in zip((0.02, 0.02, 0.6), ours, expected, strict=True):
        if jax.tree.leaves(pair):  # there may be no statistics
            assert 0 < apart(*pair) < limit


@functools.partial(quick_jit, static_argnums=0)
def derived(model, variables, batch):
    """Return what the methods take of a network: gradients of examples, curvature, steps in a loop, several at once."""
    stats, label = variables["batch_stats"], batch.label

    def loss_fn(params, image=batch.input, label=label):
        logits, _ = model.apply({"params": params, "batch_stats": stats}, image)
        return mean_loss(model.spec.task, logits, Split(image, label, None))

    def of_example(params, image, label):
        return jax.grad(loss_fn)(params, image[None], label[None])

    def step(params, _):
        (loss, changed), grads = jax.value_and_grad(train_loss, has_aux=True)(params)
        return jax.tree.map(lambda w, g: w - 0.05 * g, params, grads), (loss, changed)

    def train_loss(params):
        logits, changed = model.apply(
            {"params": params, "batch_stats": stats}, batch.input, train=True
        )
        return mean_loss(model.spec.task, logits, batch), changed

    params = variables["params"]
    several = jax.tree.map(lambda x: jnp.stack([x, 0.9 * x, 1.1 * x]), params)
    direction = optim.perturbation(jax.grad(loss_fn)(params), params, 1.0, adaptive=True)
    return {
        "of examples": jax.vmap(of_example, (None, 0, 0))(params, batch.input, label),
        "curvature": jax.jvp(jax.grad(loss_fn), (params,), (direction,))[1],
        "in a loop": jax.lax.scan(step, params, length=3),
        "several": jax.vmap(jax.grad(loss_fn))(several),
    }


def test_every_use_of_a_bfloat16_network_is_near_float32(images):
    """Measured: 0.003 apart, or 0.08 with a ReLU that flips."""
    batch = Split(images, np.arange(8, dtype=np.int32) % 4, np.ones(8, bool))
    (wide, variables), (narrow, _) = tiny("small_cnn"), tiny("small_cnn", "bfloat16")
    ours, expected = (derived(model, variables, batch) for model in (narrow, wide))
    assert {leaf.dtype for leaf in jax.tree.leaves(ours)} == {jnp.dtype("float32")}
    for use in ours:
        assert 0 < apart(ours[use], expected[use]) < 0.2, use


def test_curvature_of_a_bfloat16_network_is_estimated_with_float32_vectors():
    model, variables = tiny("small_cnn", "bfloat16")
    batch = Split(jnp.zeros((4, 8, 8, 3)), jnp.zeros(4, jnp.int32), jnp.ones(4, bool))
    loss = loss_surface.mean_loss(model, variables, batch)
    estimators = (hessian.trace, hessian.largest_eigenvalue, hessian.spectral_density)
    found = [
        jax.eval_shape(lambda at, f=estimator: f(KEY, loss, at), variables["params"])
        for estimator in estimators
    ]
    floating = [
        leaf.dtype for leaf in jax.tree.leaves(found) if jnp.issubdtype(leaf.dtype, jnp.floating)
    ]
    assert set(floating) == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("width", 0, "width must be 1 or more, got 0"),
        (
            "dtype",
            "float16",
            r"dtype must be one of float32, bfloat16; got 'float16' \(did you mean",
        ),
    ],
)
@pytest.mark.parametrize("name", models.names())
def test_refuses(name, spec, option, value, words):
    spec = spec_for(name, spec)
    if option in options_of(name):
        with pytest.raises(InputError, match=words):
            models.create(name, spec, **{option: value})
    with pytest.raises(InputError, match=f"{name} has no option 'not_{option}'"):
        models.create(name, spec, **{f"not_{option}": value})


@pytest.mark.parametrize("name", models.names())
def test_is_documented(name):
    text = inspect.getdoc(registry.factory("bdjax.models", name)) or ""
    assert all(f"\n  {option}: " in text for option in options_of(name))
    assert "Raises:" in text or not options_of(name)


# PreAct-ResNet18


def published(classes: int = 10) -> dict[tuple[str, ...], jax.ShapeDtypeStruct]:
    spec = image_spec("published", (32, 32, 3), classes, (0.5,) * 3, (0.25,) * 3)
    return flatten_dict(jax.eval_shape(models.create("preact_resnet18", spec).init, KEY)["params"])


@pytest.mark.parametrize(
    ("classes", "parameters"), [(10, 11_171_146), (43, 11_188_075), (200, 11_268_616)]
)
def test_parameter_counts_of_preact_resnet18(classes, parameters):
    shapes = published(classes)
    assert sum(int(np.prod(leaf.shape)) for leaf in shapes.values()) == parameters
    assert len(shapes) == 54


def test_channel_counts_of_preact_resnet18():
    shapes = published()
    convolutions = [leaf.shape for leaf in shapes.values() if len(leaf.shape) == 4]
    assert sum(int(np.prod(shape)) for shape in convolutions) == 11_159_232
    assert sum(shape[-1] for shape in convolutions) == 4800
    scales = [leaf.shape[0] for path, leaf in shapes.items() if path[-1] == "scale"]
    assert len(scales) == 16
    assert sum(scales) == 3392


def test_the_last_block_is_pooled_without_batch_norm_or_relu(images):
    model, variables = tiny("preact_resnet18")

    @quick_jit
    def features_and_logits(variables, image):
        normalized = (image - np.float32(model.spec.modality.mean)) / np.float32(
            model.spec.modality.std
        )
        logits, state = model.module.apply(
            variables,
            normalized,
            train=False,
            mutable=["intermediates"],
            capture_intermediates=is_last_block,
        )
        return state["intermediates"]["layer4_1"]["__call__"][0], logits

    def is_last_block(module: nn.Module, method: str) -> bool:
        return module.name == "layer4_1"

    features, logits = features_and_logits(variables, images)
    linear = variables["params"]["linear"]
    assert features.min() < 0
    np.testing.assert_allclose(
        logits, features.mean((1, 2)) @ linear["kernel"] + linear["bias"], atol=1e-5
    )


# PyTorch: the same network written down again, weights copied by name


def torch_network(torch, width: int, classes: int):
    """The pre-activation ResNet-18 of the published results, in PyTorch."""
    F, conv = torch.nn.functional, functools.partial(torch.nn.Conv2d, bias=False)

    class Block(torch.nn.Module):
        def __init__(self, inputs, outputs, stride):
            super().__init__()
            self.bn1, self.bn2 = torch.nn.BatchNorm2d(inputs), torch.nn.BatchNorm2d(outputs)
            self.conv1 = conv(inputs, outputs, 3, stride=stride, padding=1)
            self.conv2 = conv(outputs, outputs, 3, padding=1)
            self.shortcut = (
                conv(inputs, outputs, 1, stride=stride)
                if stride != 1 or inputs != outputs
                else None
            )

        def forward(self, x):
            active = F.relu(self.bn1(x))
            short = x if self.shortcut is None else self.shortcut(active)
            return short + self.conv2(F.relu(self.bn2(self.conv1(active))))

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = conv(3, width, 3, padding=1)
            sizes = [width, width, 2 * width, 4 * width, 8 * width]
            for stage in range(4):
                blocks = (
                    Block(sizes[stage], sizes[stage + 1], min(stage, 1) + 1),
                    Block(*[sizes[stage + 1]] * 2, 1),
                )
                setattr(self, f"layer{stage + 1}", torch.nn.Sequential(*blocks))
            self.linear = torch.nn.Linear(sizes[-1], classes)

        def forward(self, x):
            x = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(x)))))
            return self.linear(x.mean((2, 3)))

    return Network()


OUR_NAME = {"weight": "kernel", "bias": "bias", "running_mean": "mean", "running_var": "var"}


def from_torch(state_dict) -> dict:
    """Map PyTorch's ``layer1.0.conv1.weight`` [o, i, h, w] to our ``layer1_0/conv1/kernel`` [h, w, i, o]."""
    ours = {}
    for name, tensor in state_dict.items():
        *path, last = re.sub(r"(layer\d)\.(\d)", r"\1_\2", name).split(".")
        if last == "num_batches_tracked":
            continue
        array = tensor.detach().numpy()
        order = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}[array.ndim]
        leaf = "scale" if last == "weight" and array.ndim == 1 else OUR_NAME[last]
        collection = "batch_stats" if last.startswith("running") else "params"
        ours[collection, *path, leaf] = np.array(array.transpose(order))
    return unflatten_dict(ours)


@pytest.fixture(scope="module")
def pair():
    """Our network with PyTorch's weights, PyTorch's, and a batch: NHWC images in [0, 1] and labels."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    theirs = torch_network(torch, 8, 10)
    with torch.no_grad():
        for tensor_name, tensor in theirs.state_dict().items():
            # Not the identity: scale, shift and statistics must count
            if "bn" in tensor_name and tensor.ndim:
                tensor.add_(0.3 * torch.rand_like(tensor))
    spec = image_spec("parity", (16, 16, 3), 10, (0.49, 0.48, 0.45), (0.25, 0.24, 0.26))
    model = models.create("preact_resnet18", spec, width=8)
    image = np.random.default_rng(0).random((16, 16, 16, 3), np.float32)
    return model, from_torch(theirs.state_dict()), theirs, image, np.arange(16, dtype=np.int32) % 10


def torch_input(model, image):
    import torch

    normalized = (image - np.float32(model.spec.modality.mean)) / np.float32(
        model.spec.modality.std
    )
    return torch.from_numpy(np.ascontiguousarray(normalized.transpose(0, 3, 1, 2)))


def test_weights_map_one_to_one(pair):
    model, variables, *_ = pair
    expected = jax.eval_shape(model.init, KEY)
    assert jax.tree.map(lambda leaf: leaf.shape, variables) == jax.tree.map(
        lambda leaf: leaf.shape, expected
    )


def test_evaluation_logits_equal_pytorch(pair):
    model, variables, theirs, image, _ = pair
    expected = theirs.eval()(torch_input(model, image)).detach().numpy()
    np.testing.assert_allclose(evaluated(model, variables, image)[0], expected, atol=1e-4)


def test_sgd_steps_and_statistics_equal_pytorch(pair):
    import torch

    model, variables, theirs, image, label = pair
    learner = supervised(
        batch_size=16,
        learning_rate=0.05,
        momentum=0.9,
        weight_decay=5e-4,
        schedule=Schedule(),
        augment="none",
    )
    batch = Split(jnp.asarray(image), jnp.asarray(label), None)
    state = learner.init(KEY, model, variables, Split(image, label, np.ones(16, bool)))
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    update = quick_jit(learner.update, static_argnums=1)
    theirs.train()
    for _ in range(2):  # the second step has momentum
        state, info = update(KEY, model, state, batch)
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(
            theirs(torch_input(model, image)), torch.from_numpy(label).long()
        )
        loss.backward()
        optimizer.step()
        assert float(info.loss) == pytest.approx(loss.item(), abs=1e-5)
        expected = from_torch(theirs.state_dict())
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
            learner.finalize(model, state),
            expected,
        )


@functools.partial(quick_jit, static_argnums=(0, 3))
def probed(model, variables, images, layer, shift):
    return model.probe(variables, images, layer, shift)


def test_probe_shows_and_shifts_what_a_layer_puts_out(name, images):
    (model, variables), images = tiny(name), jnp.asarray(images)
    layer, params = structure.execution_order(model, variables)[0], variables["params"]
    if structure.convolutions(params):
        layer = convolution(model, variables)
    assert layer[-1] == "kernel"
    _, shape = jax.eval_shape(lambda: model.probe(variables, images, layer))
    still = jnp.zeros(shape.shape, shape.dtype)
    logits, output = probed(model, variables, images, layer, still)
    np.testing.assert_allclose(logits, evaluated(model, variables, images)[0], atol=1e-5)
    assert output.shape[0] == len(images)
    assert output.shape[-1] == structure.flat(params)[layer].shape[-1]
    shift = still.at[..., 0].set(1.0)
    moved, shifted = probed(model, variables, images, layer, shift)
    np.testing.assert_allclose(shifted - output, shift, atol=1e-5)
    assert (moved != logits).any()


def test_probe_of_no_layer(name, images):
    (model, variables), images = tiny(name), jnp.asarray(images)
    with pytest.raises(InputError, match="layer must be the path of a kernel"):
        jax.eval_shape(lambda: model.probe(variables, images, ("nothing", "kernel")))
    wrong = r"no convolution 'nothing'.*known: |the network must have a convolution"
    with pytest.raises(InputError, match=wrong):
        convolution(model, variables, "nothing")
