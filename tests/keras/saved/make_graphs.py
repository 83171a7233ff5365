"""Writes graphs.zip: python -m tests.keras.saved.make_graphs, where tf_keras is installed.

Models with inner models, wrappers, masks, operators of TensorFlow, dictionaries and dtypes, with random weights. The
archive has the files that tf_keras saves, inputs and outputs, and for "nested" the loss and the weights of a training
step.
"""

import inspect
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import tensorflow as tf
import tf_keras
from tf_keras import layers as L

K = tf_keras.backend
ARCHIVE = Path(__file__).with_name("graphs.zip")
RATE = 0.05


def nested():
    """Inner models: called twice, without an input layer, with several outputs, frozen, and in a wrapper."""
    encoder = tf_keras.Sequential(
        [
            L.Input((6, 4)),
            L.LocallyConnected1D(3, 2, kernel_regularizer="l2", name="local"),
            L.BatchNormalization(name="norm"),
            L.Dense(3, activation="tanh", name="dense"),
        ],
        name="encoder",
    )
    # Keras saves a layer of two models only once, and cannot read such a file.
    own = tf_keras.Sequential([L.Dense(3, name="own_dense"), L.LocallyConnected1D(2, 2, name="own_local")], name="own")
    a, b = L.Input((5, 3)), L.Input((5, 3))
    inner = tf_keras.Sequential(
        [L.Dense(3, name="inner_dense"), L.LocallyConnected1D(2, 2, name="inner_local")], name="inner"
    )
    two = tf_keras.Model([a, b], [inner(L.Add()([a, b])), L.BatchNormalization()(L.Dense(2)(b))], name="two")
    base = tf_keras.Sequential([L.Input((5, 3)), L.Dense(4), L.BatchNormalization(), L.Dense(2)], name="base")
    base.layers[1].trainable = base.layers[2].trainable = False
    frozen = tf_keras.Sequential([L.Input((5, 3)), L.BatchNormalization(), L.Dense(2)], name="frozen")
    frozen.trainable = False
    x, z = L.Input((6, 4), name="x"), L.Input((6, 4), name="z")
    first, second = encoder(x), encoder(z)
    y, w = two([first, second])
    step = tf_keras.Sequential([L.Reshape((4, 1)), L.LocallyConnected1D(2, 2, name="each"), L.Flatten()], name="step")
    return tf_keras.Model(
        [x, z],
        [y, own(first), w, base(second), frozen(first, training=False), L.TimeDistributed(step, name="steps")(x)],
        name="nested",
    )


def operators():
    """Operators, slices and functions, with an output for each."""
    x, z = L.Input((6, 4)), L.Input((6, 4))
    local = L.LocallyConnected1D(4, 1)(x)
    four = tf.reshape(x, (-1, 2, 3, 4))
    size = tf.shape(x)
    found = [
        *(local + z, x * 2, 2 * x, 1 - x, x / 3.0, -x, abs(x), x**2, x % 0.7, x // 0.3, x @ tf.transpose(z, [0, 2, 1])),
        *(x[:, 1:], x[..., 0], x[:, ::2, None], x[:, -1], x[:, ::-1], x[:, 4:1:-2], x[:, ::-1, 1:3]),
        *(x - tf.constant([1.0, 2, 3, 4]), x[:, size[1] - 1], tf.slice(x, [0, 1, 0], [-1, 2, 3])),
        *(tf.concat([x, z], -1), tf.stack([x, z], 1), tf.unstack(x, axis=1)[2], tf.add_n([x, z, x])),
        *(tf.split(x, 2, axis=1)[1], tf.split(x, [1, -1], axis=2)[1], tf.tile(x, [1, 2, 1]), tf.repeat(x, 2, axis=1)),
        *(tf.reshape(x, (-1, 24)), tf.reshape(x, (size[0], -1)), tf.reshape(x, tf.concat([size[:1], [4, 6]], 0))),
        *(tf.reshape(x, (-1, size[1] * size[2])), tf.expand_dims(x, -1), tf.squeeze(x[:, :1], 1), K.batch_flatten(x)),
        *(tf.pad(x, [[0, 0], [1, 2], [0, 0]]), tf.pad(x, [[0, 0], [2, 1], [0, 1]], "REFLECT")),
        *(tf.pad(x, [[0, 0], [2, 1], [1, 0]], "SYMMETRIC"), tf.gather(x, [2, 0], axis=1), tf.reverse(x, [1])),
        *(tf.roll(x, 1, 1), tf.cumsum(x, 1), tf.cumsum(x, 1, exclusive=True, reverse=True)),
        *(
            tf.reduce_mean(x, 1),
            K.mean(x, axis=1),
            K.sum(x, axis=-1, keepdims=True),
            K.max(x, axis=1),
            K.std(x, axis=-1),
        ),
        *(
            tf.math.reduce_variance(x, 1),
            tf.reduce_prod(x, [1, 2]),
            tf.math.reduce_logsumexp(x, 1),
            tf.norm(x, axis=-1),
        ),
        *(tf.nn.moments(x, [1])[1], tf.math.l2_normalize(x, -1), tf.nn.softmax(x, axis=1), tf.nn.log_softmax(x)),
        *(tf.nn.relu(x), tf.nn.relu6(x * 9), tf.nn.leaky_relu(x, 0.1), tf.nn.elu(x), tf.nn.selu(x), tf.nn.softplus(x)),
        *(tf.nn.silu(x), tf.nn.gelu(x, approximate=True), K.hard_sigmoid(x), tf.nn.crelu(x), tf.tanh(x), tf.sigmoid(x)),
        *(tf.exp(x), tf.math.log(abs(x) + 0.1), tf.sqrt(abs(x)), tf.math.rsqrt(abs(x) + 0.1), tf.square(x), tf.sign(x)),
        *(tf.maximum(x, z), tf.maximum(x, 0.5), tf.minimum(0.1, x), tf.clip_by_value(x, -0.5, 0.5)),
        *(tf.cast(x > 0, x.dtype), tf.where(x > 0, x, z), tf.where(x > 0, x, 0.0), tf.math.squared_difference(x, z)),
        *(tf.cast(tf.argmax(x, axis=1), x.dtype), tf.math.divide_no_nan(x, z), tf.zeros_like(x), tf.stop_gradient(x)),
        *(tf.linalg.matmul(x, z, transpose_b=True), tf.tensordot(x, tf.ones((4, 2), x.dtype), axes=1)),
        *(tf.nn.bias_add(x, [1.0, 2, 3, 4]), tf.image.flip_left_right(four), tf.nn.depth_to_space(four, 2)),
        tf.nn.space_to_depth(tf.reshape(x, (-1, 4, 6, 1)), 2),
        tf.nn.local_response_normalization(four, 2, alpha=0.1, beta=0.75),
    ]
    return tf_keras.Model([x, z], found, name="operators")


def masked():
    """Masks that are made, passed on by layers and models, used, and dropped by a locally connected layer."""
    x, w, pages = L.Input((6, 3), name="x"), L.Input((6,), dtype="int32"), L.Input((4, 6), dtype="int32")
    m = L.Masking(0.0, name="masking")(x)
    encoder = tf_keras.Sequential([L.Embedding(8, 3, mask_zero=True), L.Dropout(0.2), L.Dense(3)], name="encoder")
    i = L.Input((6, 3))
    decoder = tf_keras.Model(i, L.LSTM(2, return_sequences=True)(L.Dense(3)(i)), name="decoder")
    e, d = encoder(w), decoder(m)
    each = tf_keras.Sequential([L.Embedding(8, 3, mask_zero=True, input_length=6), L.LSTM(3)], name="each")
    words = L.TimeDistributed(each, name="words")(pages)
    steps = L.TimeDistributed(L.Dense(2))(m)
    ended = L.LSTM(2)(L.LocallyConnected1D(2, 2)(m))
    return tf_keras.Model(
        [x, w, pages],
        [m, L.LSTM(2)(e), L.LSTM(2)(d), L.LSTM(2)(words), L.LSTM(2)(steps), ended, L.LSTM(2)(L.Add()([m, e])), words],
        name="masked",
    )


def keyed():
    """A model and an inner model with dictionaries of inputs and outputs."""
    a, b = L.Input((5,), name="one"), L.Input((5,), name="two")
    head = tf_keras.Model({"z": a, "y": b}, {"times": a * b, "minus": a - 2 * b}, name="head")
    x, w = L.Input((6, 2), name="q"), L.Input((5,), name="p")
    flat = L.Flatten()(L.LocallyConnected1D(2, 2)(x))
    found = head({"y": L.Dense(5)(flat), "z": w})
    return tf_keras.Model(
        {"q": x, "p": w}, {"second": found["times"], "first": L.Dense(2)(found["minus"])}, name="keyed"
    )


def mixed():
    """Layers under a policy of mixed precision, and a last one in float32."""
    policy = {"dtype": tf_keras.mixed_precision.Policy("mixed_float16")}
    x = L.Input((5, 5, 2))
    y = L.LocallyConnected2D(3, 2, activation="relu", **policy)(x)
    y = L.Dense(4, **policy)(L.Flatten(**policy)(L.BatchNormalization(**policy)(y) * 2))
    return tf_keras.Model(x, L.Activation("softmax", dtype="float32")(y), name="mixed")


def dtypes():
    """Layers of two dtypes, which cast their inputs."""
    x = L.Input((6, 4))
    y = L.Dense(3)(L.LocallyConnected1D(3, 2, dtype="float64")(x))
    return tf_keras.Model(x, [y, tf.cast(y, "float64"), L.Flatten(dtype="float64")(y)], name="dtypes")


class Scale(L.Layer):
    """A layer of a user with two weights, one of which is not trained."""

    def build(self, shape):
        """Make the weights."""
        self.offset = self.add_weight(name="offset", shape=shape[-1:], trainable=False)
        self.scale = self.add_weight(name="scale", shape=shape[-1:])

    def call(self, x):
        """Scale x."""
        return x * self.scale + self.offset


class Block(L.Layer):
    """A layer of a user with inner layers."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units, self.up, self.down = units, L.Dense(units), L.Dense(3)

    def call(self, x, factor=1.0):
        """Apply both dense layers."""
        return factor * self.down(tf.nn.relu(self.up(x)))

    def get_config(self):
        """The arguments."""
        return {**super().get_config(), "units": self.units}


def bare(function):
    """Remove the source position from a function, which would be in the saved file."""
    function.__code__ = function.__code__.replace(co_filename="make_graphs.py")
    inspect.getsource = str  # tf_keras quotes the source in a warning
    return function


def custom():
    """Layers of a user, whose code is not in the file, in a model and in an inner model."""
    i = L.Input((5, 3))
    inner = tf_keras.Sequential([i, L.Lambda(bare(lambda t: t * 2 + 1), name="double"), L.Dense(3)], name="inner")
    x = L.Input((6, 4))
    y = inner(Scale(name="scale")(L.LocallyConnected1D(3, 2, activation="tanh")(x)))
    y = L.Activation(bare(lambda t: tf.sin(t)), name="sine")(Block(5, name="block")(y, factor=0.5))
    both = L.Lambda(bare(lambda pair: pair[0] - pair[1]), name="difference")([y, inner(y)])
    return tf_keras.Model(
        x, [L.TimeDistributed(L.Lambda(bare(lambda t: t / 4), name="quarter"), name="steps")(both), y], name="custom"
    )


def inputs_of(model, random):
    """Random inputs; some steps of sequences are zeros, which masks leave out."""
    found = []
    for tensor in model.inputs:
        shape = (3, *tensor.shape[1:])
        if tensor.dtype.is_integer:
            found.append(random.integers(0, 4, shape).astype("int32"))
        else:
            numbers = random.normal(size=shape)
            numbers[1, -2:] = 0 if model.name == "masked" else numbers[1, -2:]
            found.append(numbers.astype(tensor.dtype.as_numpy_dtype))
    return found


def listed(outputs):
    """The outputs as a list."""
    if isinstance(outputs, dict):
        return list(outputs.values())
    return list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]


def write(make, seed, folder):
    """Write the files of a model, and return its arrays."""
    random = np.random.default_rng(seed)
    K.clear_session()
    model = make()
    for variable in model.weights:
        numbers = random.normal(size=variable.shape) * 0.4
        numbers = abs(numbers) + 0.5 if "variance" in variable.name else numbers
        variable.assign(numbers.astype(variable.dtype.as_numpy_dtype))
    inputs = inputs_of(model, random)
    given = dict(zip(sorted(model.input), inputs, strict=True)) if isinstance(model.input, dict) else inputs
    outputs = listed(model(given if len(inputs) > 1 else inputs[0], training=False))
    arrays = {f"{model.name}/x{i}": x for i, x in enumerate(inputs)}
    arrays |= {f"{model.name}/y{i}": y.numpy() for i, y in enumerate(outputs)}
    model.save(folder / f"{model.name}.h5", include_optimizer=False)
    (folder / f"{model.name}.json").write_text(model.to_json())
    model.save_weights(folder / f"{model.name}.weights.h5")
    if model.name in ("nested", "masked"):
        model.save(folder / f"{model.name}.keras")
    if model.name == "nested":
        with tf.GradientTape() as tape:
            loss = sum(tf.reduce_mean(tf.square(y)) for y in model(inputs, training=True)) + sum(model.losses)
        for variable, gradient in zip(
            model.trainable_variables, tape.gradient(loss, model.trainable_variables), strict=True
        ):
            variable.assign_sub(RATE * gradient)
        arrays["nested/loss"] = loss.numpy()
        model.save_weights(folder / "nested.after.weights.h5")
    return arrays


MODELS = (nested, operators, masked, keyed, mixed, dtypes, custom)


def main():
    """Write all models into one archive."""
    arrays = {}
    with tempfile.TemporaryDirectory() as name, zipfile.ZipFile(ARCHIVE, "w", zipfile.ZIP_DEFLATED, True, 9) as archive:
        folder = Path(name)
        for seed, make in enumerate(MODELS):
            arrays |= write(make, seed, folder)
        np.savez_compressed(folder / "outputs.npz", **arrays)
        for path in sorted(folder.iterdir()):
            archive.write(path, path.name)


if __name__ == "__main__":
    main()
