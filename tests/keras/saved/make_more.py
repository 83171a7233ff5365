"""Writes more.zip: python -m tests.keras.saved.make_more, where tf_keras is installed.

Small models with random weights, of layers that graphs.zip and layers.zip do not have. The archive has the files that
tf_keras saves, inputs and outputs; for "stateful", also the outputs of a second batch; for "cells" and "remembering",
the loss and the outputs of a training step.
"""

import tempfile
import zipfile
from pathlib import Path

import numpy as np
import tensorflow as tf
import tf_keras
from tf_keras import layers as L

ARCHIVE = Path(__file__).with_name("more.zip")
RATE = 0.05


def functions():
    """Functions of TensorFlow in a graph, and as activations."""
    x, image = L.Input((6, 4)), L.Input((6, 6, 2))
    names = (tf.sin, tf.abs, tf.identity, tf.square, tf.nn.crelu, tf.nn.log_softmax, tf.math.log_sigmoid)
    locals_ = [L.LocallyConnected1D(2, 1, activation=function)(x) for function in names]
    found = [
        *(tf.image.resize(image, (4, 9)), tf.image.resize(image, [12, 3], method="nearest")),
        *(tf.image.resize(image, (5, 7), method="bicubic"), tf.image.resize(image, (6, 6))),
        *(tf.nn.max_pool2d(image, 2, 2, "SAME"), tf.nn.avg_pool2d(image, (3, 2), [1, 2, 1, 1], "SAME")),
        *(tf.nn.max_pool1d(x, 3, 2, "VALID"), tf.sort(x, axis=1, direction="DESCENDING"), *tf.nn.top_k(x, k=2)),
        *(tf.linalg.band_part(x, 1, 0), tf.linalg.band_part(x, -1, 2), tf.broadcast_to(x[:, :1], tf.shape(x))),
        *(tf.strided_slice(x, [0, 1, 3], [2, 5, 0], [1, 2, -1]), x - tf.nn.crelu(x)[..., 4:]),
    ]
    return tf_keras.Model([x, image], [*locals_, *found], name="functions")


def interpolated():
    """All methods to resize images, to more and to fewer pixels."""
    image = L.Input((6, 5, 2))
    ways = ("bicubic", "area", "lanczos3", "lanczos5", "gaussian", "mitchellcubic")
    found = [L.UpSampling2D((2, 3), interpolation=way)(image) for way in ways]
    found += [L.Resizing(*size, interpolation=way)(image) for way in ways for size in ((4, 7), (13, 3))]
    return tf_keras.Model(image, [*found, L.LocallyConnected2D(1, 2)(image)], name="interpolated")


def adversarial():
    """A discriminator that was compiled with an optimizer, frozen in another model."""
    generator = tf_keras.Sequential([L.Input((5,)), L.Dense(8), L.Reshape((8, 1))], name="generator")
    discriminator = tf_keras.Sequential([L.Input((8, 1)), L.LocallyConnected1D(2, 3), L.Flatten(), L.Dense(1)])
    discriminator.compile("adam", "mse", metrics=["mae"])
    discriminator.fit(np.ones((2, 8, 1)), np.ones((2, 1)), verbose=0)
    discriminator.trainable = False
    z = L.Input((5,))
    return tf_keras.Model(z, discriminator(generator(z)), name="adversarial")


def stateful():
    """Recurrent layers that keep their states for the next batch."""
    x = L.Input(batch_shape=(2, 5, 3))
    y = L.GRU(4, return_sequences=True, stateful=True)(L.LSTM(3, return_sequences=True, stateful=True)(x))
    both = L.Bidirectional(L.SimpleRNN(2, return_sequences=True, stateful=True))(y)
    return tf_keras.Model(x, [L.LocallyConnected1D(2, 2)(both), y], name="stateful")


def cells():
    """Cells with regularizers and constraints."""
    x = L.Input((5, 3))
    y = L.RNN(L.GRUCell(4, kernel_regularizer="l2", recurrent_regularizer="l1"), return_sequences=True)(x)
    y = L.RNN(L.SimpleRNNCell(3, bias_constraint="non_neg"), return_sequences=True)(y)
    return tf_keras.Model(x, L.LocallyConnected1D(2, 2)(y), name="cells")


def remembering():
    """Convolutional LSTM layers in one to three dimensions."""
    line, image = L.Input((3, 7, 2)), L.Input((3, 6, 5, 2))
    y = L.ConvLSTM2D(3, (3, 2), padding="same", return_sequences=True, kernel_regularizer="l2")(image)
    y = L.ConvLSTM2D(2, 2, strides=(2, 1), recurrent_activation="sigmoid", go_backwards=True, return_state=True)(y)
    z = L.ConvLSTM1D(2, 3, dilation_rate=2, use_bias=False, activation="relu", return_sequences=True)(line)
    solid = L.ConvLSTM3D(2, 2, recurrent_constraint="max_norm")(L.Reshape((3, 6, 5, 2, 1))(image))
    return tf_keras.Model([line, image], [L.LocallyConnected2D(1, 2)(y[0]), *y, z, solid], name="remembering")


MODELS = (functions, interpolated, adversarial, stateful, cells, remembering)


def listed(outputs):
    """The outputs of a model as a list."""
    return outputs if isinstance(outputs, list) else [outputs]


def write(make, seed, folder):
    """Save one model with random weights, and return its inputs and outputs."""
    tf_keras.backend.clear_session()
    random, model = np.random.default_rng(seed), make()
    for variable in model.weights:
        variable.assign(random.normal(size=variable.shape).astype("float32") * 0.4)
    name = model.name
    inputs = [
        random.normal(size=[2 if n is None else n for n in x.shape]).astype(x.dtype.as_numpy_dtype)
        for x in model.inputs
    ]
    outputs = listed(model(inputs if len(inputs) > 1 else inputs[0], training=False))
    arrays = {f"{name}/x{i}": x for i, x in enumerate(inputs)} | {f"{name}/y{i}": y for i, y in enumerate(outputs)}
    model.save(folder / f"{name}.h5", include_optimizer=False)
    if name == "stateful":
        arrays |= {f"stateful/z{i}": y for i, y in enumerate(model(inputs[0], training=False))}
    if name in ("cells", "remembering"):
        with tf.GradientTape() as tape:
            y = listed(model(inputs if len(inputs) > 1 else inputs[0], training=True))
            loss = sum(tf.reduce_mean(tf.square(each)) for each in y) + sum(model.losses)
        for variable, gradient in zip(model.weights, tape.gradient(loss, model.weights), strict=True):
            variable.assign_sub(RATE * gradient)
            if variable.constraint is not None:
                variable.assign(variable.constraint(variable))
        after = listed(model(inputs if len(inputs) > 1 else inputs[0], training=False))
        arrays |= {f"{name}/loss": loss, **{f"{name}/after{i}": y for i, y in enumerate(after)}}
    if name == "adversarial":
        model.save(folder / f"{name}.keras")
    return {key: np.asarray(array) for key, array in arrays.items()}


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
