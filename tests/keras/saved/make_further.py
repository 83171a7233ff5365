"""Writes further.zip: python -m tests.keras.saved.make_further, where tf_keras is installed.

Small models with random weights, of layers and calls that no other archive has. The archive has the files that tf_keras
saves, inputs and outputs, and the loss and the weights of a training step.
"""

import tempfile
import zipfile
from pathlib import Path

import numpy as np
import tensorflow as tf
import tf_keras
from tf_keras import layers as L

ARCHIVE = Path(__file__).with_name("further.zip")
RATE = 0.05


def normalized():
    """Batch normalization over several axes, with a mask, and over several devices; and kernels of norm 1."""
    x, image = L.Input((6, 4)), L.Input((5, 6, 3))
    masked = L.Masking()(x)
    found = [
        *(L.BatchNormalization()(masked), L.BatchNormalization(axis=1)(masked)),
        *(L.BatchNormalization(renorm=True)(masked), L.BatchNormalization(axis=[1, 2])(x)),
        L.BatchNormalization(axis=[1, 3], gamma_regularizer="l2", beta_constraint="non_neg")(image),
        L.BatchNormalization(axis=[2, 3], scale=False)(image),
        *(L.experimental.SyncBatchNormalization()(image), L.BatchNormalization(axis=[1, 2], renorm=True)(x)),
        L.BatchNormalization()(L.Dense(3)(L.Flatten()(x)), training=True),
        L.TimeDistributed(L.BatchNormalization())(image),
        L.SpectralNormalization(L.Conv2D(4, 3, kernel_regularizer="l2"))(image),
        L.SpectralNormalization(L.LocallyConnected2D(2, 3), power_iterations=2)(image),
        L.SpectralNormalization(L.Dense(3))(x),
    ]
    return tf_keras.Model([x, image], found, name="normalized")


def stacked():
    """Stacked cells, and bidirectional layers of cells and of images."""
    x, film, h = L.Input((6, 4)), L.Input((3, 5, 5, 2)), L.Input((3,))
    masked = L.Masking()(x)
    regular = {"kernel_regularizer": "l2", "bias_constraint": "non_neg"}
    cells = [L.LSTMCell(3, **regular), L.SimpleRNNCell(2), L.GRUCell(3, reset_after=False)]
    found = [
        L.RNN(cells, return_sequences=True)(masked),
        *L.RNN([L.GRUCell(3), L.LSTMCell(2)], return_state=True, go_backwards=True)(masked),
        L.RNN([L.GRUCell(3), L.GRUCell(2)])(x, initial_state=[h, h[:, :2]]),
        L.Bidirectional(L.RNN(L.GRUCell(3, recurrent_regularizer="l1")))(masked),
        L.Bidirectional(L.RNN([L.LSTMCell(3), L.LSTMCell(2)], return_sequences=True), merge_mode="sum")(masked),
        L.Bidirectional(L.ConvLSTM2D(2, 3, return_sequences=True))(film),
    ]
    return tf_keras.Model([x, film, h], found, name="stacked")


def called():
    """Calls with masks and with `training`, equations, categories, functions, and the layers that `add_loss` makes."""
    x, kept, ids, weights = L.Input((6, 4)), L.Input((6,), dtype="bool"), L.Input((4,), dtype="int32"), L.Input((4,))
    image = L.Reshape((6, 2, 2))(x)
    shape = {"kernel_regularizer": "l2", "kernel_constraint": "max_norm"}
    found = [
        L.LSTM(3, return_sequences=True)(L.GRU(3, return_sequences=True)(x, mask=kept)),
        *(L.Attention()([x, x], mask=[kept, kept]), L.GlobalAveragePooling1D()(x, mask=kept)),
        L.EinsumDense("abc,cd->abd", (None, 5), bias_axes="d", activation="relu", **shape)(x),
        *(L.EinsumDense("abc,bcd->ad", 3)(x), L.EinsumDense("abc,bde->acde", (4, 2, 3), bias_axes="ce")(x)),
        *(
            L.EinsumDense("...x,xy->...y", 5, bias_axes="y")(image),
            L.EinsumDense("ab...,bc->ac...", 3, bias_axes="c")(image),
        ),
        L.CategoryEncoding(7, output_mode="multi_hot")(ids),
        L.CategoryEncoding(7, output_mode="count")(ids, count_weights=weights),
        L.CategoryEncoding(7, output_mode="one_hot")(ids[:, :1]),
        L.Discretization([-0.5, 0.0, 0.75])(x),
        L.Discretization([-0.5, 0.0, 0.75], output_mode="count")(weights),
        L.IntegerLookup(vocabulary=[5, 1, 3])(ids),
        L.IntegerLookup(vocabulary=[5, 1, 3], mask_token=0, num_oov_indices=2)(ids),
        L.IntegerLookup(vocabulary=[5, 1, 3], output_mode="multi_hot")(ids),
        *(L.Dropout(0.0)(x, training=True), x // 0.5, tf.math.floordiv(2.0, 1 + x * x), tf.math.cumprod(x, axis=1)),
        tf.math.cumprod(x, axis=-1, exclusive=True, reverse=True),
        tf.ensure_shape(L.LocallyConnected1D(2, 3)(x), (None, 4, 2)),
    ]
    square, box = tf.matmul(x, x, transpose_a=True), {"target_height": 7, "target_width": 5}
    found += [
        *(
            tf.nn.conv1d(x, tf.ones((3, 4, 2)) / 7, 2, "SAME"),
            tf.nn.conv2d(image, tf.ones((3, 1, 1, 2)), [2, 1], "VALID"),
        ),
        tf.image.extract_patches(image, [1, 2, 2, 1], [1, 2, 1, 1], [1, 2, 1, 1], "SAME"),
        *(tf.image.crop_to_bounding_box(image, 1, 0, 3, 2), tf.image.pad_to_bounding_box(image, 1, 2, **box)),
        *(tf.image.per_image_standardization(image), tf.gather(x, ids[:, :2] % 6, axis=1, batch_dims=1)),
        *(tf.linalg.diag_part(square), tf.linalg.trace(square), tf.math.atan2(x, 2 - x), tf.math.xdivy(x, 2 + x * x)),
        *(tf.math.multiply_no_nan(x, x), L.Softmax()(L.LocallyConnected1D(6, 6)(x), mask=kept[:, None])),
    ]
    model = tf_keras.Model([x, kept, ids, weights], found, name="called")
    model.add_loss(tf.reduce_mean(tf.square(found[0])))
    model.add_metric(tf.reduce_sum(x), name="sum", aggregation="mean")
    return model


MODELS = (normalized, stacked, called)


def drawn(x, random):
    """A random input of a model, with some zero steps for `Masking`."""
    shape = [3 if n is None else n for n in x.shape]
    if x.dtype == tf.bool:
        return random.random(shape) < 0.7
    if x.dtype.is_integer:
        return random.integers(0, 7, shape).astype("int32")
    numbers = random.normal(size=shape).astype("float32")
    if shape[1:] == [6, 4]:
        numbers[:, 4:][:2] = 0
    return numbers


def write(make, seed, folder):
    """Save one model with random weights, and return its inputs, its outputs and its loss."""
    tf_keras.backend.clear_session()
    random, model = np.random.default_rng(seed), make()
    for variable in model.weights:
        numbers = random.normal(size=variable.shape).astype("float32") * 0.4
        positive = any(part in variable.name for part in ("variance", "stddev"))
        variable.assign(np.abs(numbers) + 0.5 if positive else numbers)
    name = model.name
    inputs = [drawn(x, random) for x in model.inputs]
    outputs = tf.nest.flatten(model(inputs, training=False))
    arrays = {f"{name}/x{i}": x for i, x in enumerate(inputs)} | {f"{name}/y{i}": y for i, y in enumerate(outputs)}
    for kind in ("h5", "keras"):
        model.save(folder / f"{name}.{kind}")
    (folder / f"{name}.json").write_text(model.to_json())
    with tf.GradientTape() as tape:
        outputs = [y for y in tf.nest.flatten(model(inputs, training=True)) if y.dtype == tf.float32]
        loss = sum(tf.reduce_mean(tf.square(y)) for y in outputs) + sum(model.losses)
    weights = model.trainable_weights
    for variable, gradient in zip(weights, tape.gradient(loss, weights), strict=True):
        variable.assign_sub(RATE * gradient)
        if variable.constraint is not None:
            variable.assign(variable.constraint(variable))
    model.save(folder / f"{name}.after.h5", include_optimizer=False)
    return {key: np.asarray(array) for key, array in {**arrays, f"{name}/loss": loss}.items()}


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
